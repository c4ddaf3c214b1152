"""Assigned requests that wait for their instance: their order, and which ones move.

An assigned request counts as load of its instance, so that the next decision includes it. Its entry
keeps what the decision knew (its cached prefix there) until its first token. The caller states
which requests are still queued.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from fairlead_gateway.routing.load.inflight import Endpoint, InflightTracker
from fairlead_gateway.routing.policies import published_dualmap
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, QueueKey
from fairlead_gateway.routing.prefix.cache_view import CacheView
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import RouteRequest


class AssignedQueue:
    """The assigned requests of one model that wait for their instance, by id.

    - queue_sort_key: the preset's sort key.
    - rebalances: whether the preset moves requests between instances.
    - entries: by id, until a request no longer waits.
    """

    def __init__(
        self,
        inflight: InflightTracker,
        cache: CacheView,
        queue_sort_key: Callable[[AssignedRequest], QueueKey],
        *,
        rebalances: bool,
    ) -> None:
        self._inflight = inflight
        self._cache = cache
        self._queue_key = queue_sort_key
        self._rebalances = rebalances
        self.entries: dict[str, AssignedRequest] = {}

    def add(self, assigned: AssignedRequest) -> None:
        """Adds a request. One that is assigned again keeps the time of its first assignment."""
        former = self.entries.get(assigned.id)
        if former is not None:
            assigned.assigned_at = former.assigned_at
        self.entries[assigned.id] = assigned

    def queue_sort_key(self, request_id: str) -> QueueKey:
        entry = self.entries.get(request_id)
        return (math.inf, math.inf, request_id) if entry is None else self._queue_key(entry)

    def remove(self, request_id: str, endpoint: Endpoint | None) -> RouteRequest | None:
        """Returns a request that moves away from `endpoint`; None if it is unknown.

        The blocks that only this request would have cached at `endpoint` no longer count there. The
        request stays in the queue.
        """
        entry = self.entries.get(request_id)
        if entry is None:
            return None
        if endpoint is not None:
            self._cache.remove(endpoint, entry.request.chain, entry.cached_bytes)
        return entry.request

    def plan_moves(
        self,
        queued: Mapping[str, Sequence[str]],
        endpoints: Sequence[Endpoint],
        homes: Callable[[RouteRequest], tuple[str, ...]],
        scale_of: Callable[[Hashable], float],
        *,
        objective_seconds: float,
        now: float,
    ) -> list[tuple[str, str]]:
        """Returns the requests to move, as pairs of request id and new instance.

        Returns none if the preset moves no requests.

        - queued: ids of the queued requests by instance.
        - homes: returns the homes of a request.
        - scale_of: returns the prompt tokens per estimated token of a caller.
        """
        if not self._rebalances:
            return []
        known = {endpoint.id: endpoint for endpoint in endpoints}
        waiting: dict[str, list[published_dualmap.QueuedAssignment]] = {}
        pending = {}
        for index, endpoint in enumerate(endpoints):
            neighbour = endpoints[(index + 1) % len(endpoints)]
            seconds = self._inflight.total_load(endpoint.load).backlog_seconds
            entries = self._queued_at(queued.get(endpoint.id, ()), endpoint.id)
            for _, _, prefill_seconds in entries:  # the backlog counts them too; only these can move
                seconds -= prefill_seconds
            pending[endpoint.id] = seconds = max(0.0, seconds)
            total = seconds + sum([prefill_seconds for _, _, prefill_seconds in entries])
            needs_rebalance = published_dualmap.needs_rebalance(
                total, [entry.assigned_at for _, entry, _ in entries], objective_seconds, now
            )
            waiting[endpoint.id] = assignments = []
            for request_id, entry, prefill_seconds in entries:
                costs, alternate = {endpoint.id: (entry.cached_tokens, prefill_seconds)}, None
                if needs_rebalance:  # other queues need no costs of alternatives
                    alternate = next((known[home] for home in homes(entry.request) if home != endpoint.id), None)
                    for other in (alternate, neighbour):
                        if other is not None and other is not endpoint:
                            costs[other.id] = self._cached_and_cost(
                                entry.request, other, scale_of(entry.request.caller)
                            )
                assignments.append(
                    published_dualmap.QueuedAssignment(
                        request_id, entry.assigned_at, None if alternate is None else alternate.id, costs
                    )
                )
        self._cache.drop_match()  # of a queued request: the index may change before its dispatch
        return published_dualmap.rebalance(waiting, pending, objective_seconds=objective_seconds, now=now)

    def _queued_at(self, request_ids: Sequence[str], instance: str) -> list[tuple[str, AssignedRequest, float]]:
        """Returns the requests that are assigned to the instance, with their prefill seconds."""
        found = []
        for request_id in request_ids:
            entry, inflight = self.entries.get(request_id), self._inflight.get(request_id)
            if entry is not None and inflight is not None and inflight.load.instance == instance:
                found.append((request_id, entry, inflight.prefill_seconds))
        return found

    def _cached_and_cost(self, request: RouteRequest, endpoint: Endpoint, scale: float) -> tuple[float, float]:
        """Returns the cached prompt tokens of a request at an endpoint, and the seconds to prefill
        the others.
        """
        prompt = request.prompt_tokens * scale
        cached = min(prompt, self._cache.match(request).bytes_at(endpoint.cache_bit) * (scale / BYTES_PER_TOKEN))
        return cached, endpoint.profile.prefill_time(prompt, cached)
