"""Late binding: requests are assigned to an engine on arrival, and sent when it can begin them.

An engine gets the next request, in the preset's order, when the prefill that this gateway sent
there is nearly done. Live gateways use the same bound. While requests are queued, the preset may
move them to other engines.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.admission.admission_policy import MIN_BACKLOG_SECONDS
from fairlead_gateway.admission.kv_capacity import MAX_WAITING_STEP_SHARE
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.simulation import QUEUED

REBALANCE_SECONDS: Final = 0.25
"""Interval of rebalancing."""


class LateBindingRouter(Protocol):
    """The interface of a router with late binding, such as ``ModelRouter``."""

    def queue_sort_key(self, request_id: str) -> tuple[float, float, str]:
        """Returns the sort key of a queued request; the smallest goes first."""

    def rebalance(self, queued: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        """Returns moves (request, instance), which the router has counted already."""


class LateBindingQueue:
    """The assigned requests of one gateway.

    - send: sends a request (request, instance, time).
    - schedule: calls back at a time.
    - max_backlog_seconds: an engine with less prefill before it gets the next request.
    - rebalances: False for live gateways, which move no request.
    """

    def __init__(
        self,
        router: LateBindingRouter,
        send: Callable[[str, str, float], None],
        schedule: Callable[[float, Callable[[float], None]], None],
        *,
        max_backlog_seconds: float = 0.0,
        rebalances: bool = True,
    ) -> None:
        self._max_backlog_seconds = max_backlog_seconds
        self._rebalances = rebalances
        self._router = router
        self._send = send
        self._schedule = schedule
        self._queued: dict[str, dict[str, float]] = {}  # instance → request → seconds of its prefill
        self._sent: dict[str, dict[str, float]] = {}  # the same for sent requests without a first token
        self._instance_of: dict[str, str] = {}
        self._rebalance_scheduled = False

    def assign(self, request_id: str, instance: str, now: float, prefill_seconds: float = 0.0) -> bool:
        """Returns True if the request is to be sent at once; otherwise queues it."""
        self._instance_of[request_id] = instance
        if self._has_room(instance) and not self._queued.get(instance):
            self._sent.setdefault(instance, {})[request_id] = prefill_seconds
            return True
        self._queued.setdefault(instance, {})[request_id] = prefill_seconds
        if self._rebalances and not self._rebalance_scheduled:
            self._rebalance_scheduled = True
            self._schedule(now + REBALANCE_SECONDS, self._rebalance)
        return False

    def on_first_token(self, request_id: str, now: float) -> None:
        """Releases the next request after a first token, or after the end of a request."""
        instance = self._instance_of.pop(request_id, None)
        if instance is None:
            return
        self._queued.get(instance, {}).pop(request_id, None)
        self._sent.get(instance, {}).pop(request_id, None)
        self._release(instance, now)

    def retain(self, live_engines: Sequence[str]) -> list[str]:
        """Drops the queues of all instances but ``live_engines`` and returns their requests."""
        unreached = [name for name in self._queued if name not in live_engines]
        dropped = [request for name in unreached for request in self._queued.pop(name)]
        for request in dropped:
            del self._instance_of[request]
        return dropped

    def queued(self) -> list[str]:
        return [request for requests in self._queued.values() for request in requests]

    def _release(self, instance: str, now: float) -> None:
        queued = self._queued.get(instance)
        while queued and self._has_room(instance):
            first = min(queued, key=self._router.queue_sort_key)
            self._sent.setdefault(instance, {})[first] = queued.pop(first)
            self._send(first, instance, now)

    def _has_room(self, instance: str) -> bool:
        sent = self._sent.get(instance)
        return not sent or sum(sent.values()) < self._max_backlog_seconds

    def _rebalance(self, now: float) -> None:
        queued = {name: tuple(requests) for name, requests in self._queued.items() if requests}
        self._rebalance_scheduled = bool(queued)
        if not queued:
            return
        for request_id, to in self._router.rebalance(queued, now):
            prefill_seconds = self._queued[self._instance_of[request_id]].pop(request_id)
            self._queued.setdefault(to, {})[request_id] = prefill_seconds
            self._instance_of[request_id] = to
        for instance in list(self._queued):
            self._release(instance, now)
        self._schedule(now + REBALANCE_SECONDS, self._rebalance)


class Dispatcher:
    """The sending half of one gateway: a router and, for presets with late binding, its queue.

    never_queues: sends every request immediately, also with a preset that binds late.
    """

    def __init__(
        self,
        router: ModelRouter,
        profile: EngineProfile,
        send: Callable[[str, str, float], None],
        schedule: Callable[[float, Callable[[float], None]], None],
        *,
        never_queues: bool = False,
        rebalances: bool = True,
    ) -> None:
        self._router = router
        self._queue: LateBindingQueue | None = None
        if not never_queues and router.queues_assigned:
            room = max(MAX_WAITING_STEP_SHARE * profile.prefill_time(profile.step_tokens), MIN_BACKLOG_SECONDS)
            self._queue = LateBindingQueue(router, send, schedule, max_backlog_seconds=room, rebalances=rebalances)

    def dispatch(self, route_request: RouteRequest, chosen: str, now: float) -> str:
        """Counts the request at the chosen engine. Returns the engine, or ``QUEUED`` for a queued
        request.
        """
        if self._queue is None:
            self._router.on_dispatch(route_request, chosen, now)
            return chosen
        endpoint = self._router.endpoint(chosen)
        backlog_before = 0.0 if endpoint is None else endpoint.load.backlog_seconds
        self._router.on_dispatch(route_request, chosen, now)
        prefill_seconds = 0.0 if endpoint is None else endpoint.load.backlog_seconds - backlog_before
        return chosen if self._queue.assign(route_request.id, chosen, now, prefill_seconds) else QUEUED

    def on_first_token(self, request: str, now: float) -> None:
        self._router.on_first_token(request, now)
        if self._queue is not None:
            self._queue.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._router.on_finish(
            sequence.id,
            now,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            output_tokens=sequence.generated,
        )

    def on_abandoned(self, request: str, now: float) -> None:
        """Drops the load of a request that got no answer."""
        self._router.on_abandoned(request, now)
        if self._queue is not None:
            self._queue.on_first_token(request, now)

    def queued_count(self) -> int:
        return 0 if self._queue is None else len(self._queue.queued())

    def retain(self, reached: Sequence[str], now: float) -> list[str]:
        """Drops and returns the requests queued for engines other than ``reached``."""
        dropped = [] if self._queue is None else self._queue.retain(reached)
        for request in dropped:
            self._router.on_abandoned(request, now)
        return dropped
