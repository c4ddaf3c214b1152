"""The router of one model: a decision for every request.

It has no clock and no I/O. Gateway, fleet simulator and seams drive this class. The decisions are
made by the pure functions of `policies`, from the state in `router_state`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision, DecisionText
from fairlead_gateway.routing.accelerator_selection import decide_by_kind, with_kind
from fairlead_gateway.routing.candidates import Candidate, policy_candidates
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_gateway.routing.kv_pull import offer_pulls
from fairlead_gateway.routing.load.inflight import NOTHING_DEFERRED
from fairlead_gateway.routing.policies import dual_hash
from fairlead_gateway.routing.policies.policy_input import PolicyInput
from fairlead_gateway.routing.prefill_placement import PrefillEstimate, estimate_prefill
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain
from fairlead_gateway.routing.request import NO_INSTANCES, RouteRequest
from fairlead_gateway.routing.router_state import RouterState

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)


class ModelRouter(RouterState):
    """The router of one model: it chooses an instance for each request and tracks the load."""

    def choose_instance(
        self,
        request: RouteRequest,
        now: float,
        *,
        excluded: frozenset[str] = NO_INSTANCES,
        deferred: Mapping[str, float] = NOTHING_DEFERRED,
    ) -> Decision:
        """Returns the decision for a request; its `chosen` is None if no instance is left.

        Counts the request for hot prefixes and accelerator prices, unless it is a retry.

        excluded: instances that just failed this request.
        deferred: prefill in seconds by instance that waits behind this request; it is no load then.
        """
        if deferred:
            self._inflight.defer(deferred)
            try:
                return self.choose_instance(request, now, excluded=excluded)
            finally:
                self._inflight.defer(NOTHING_DEFERRED)
        endpoints = (
            [endpoint for endpoint in self._endpoint_list if endpoint.id not in excluded]
            if excluded
            else self._endpoint_list
        )
        if not endpoints:
            reason = "no instance is ready" if not self._endpoints else "every ready instance was tried"
            return Decision(None, "none", DecisionText(reason))
        self._cache.begin_decision()
        retried = self._inflight.is_inflight(request.id)  # a retry counts a prompt only once
        chain, hot = request.chain, self._hot_prefixes
        key = hot.routing_key(chain) if retried else hot.observe(chain, len(self._endpoints))
        decision = self._decide_with(key, request, endpoints, now, excluded)
        if self._ranked_kinds is not None:
            if not retried:
                self._accelerators.charge(self._ranked_kinds)
            self._ranked_kinds = None
        return decision

    def preview(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = NO_INSTANCES) -> Decision:
        """Returns what `choose_instance` would return, without any effect on later decisions."""
        endpoints = [endpoint for endpoint in self._endpoint_list if endpoint.id not in excluded]
        if not endpoints:
            return Decision(None, "none", DecisionText("no instance is ready"))
        turn, pulled = self._decision_count, self._pending_pull
        self._cache.drop_match()
        decision = self._decide_with(self._hot_prefixes.routing_key(request.chain), request, endpoints, now, excluded)
        self._cache.drop_match()
        self._decision_count, self._pending_pull, self._ranked_kinds = turn, pulled, None
        return decision

    def _decide_with(
        self, key: Hashable, request: RouteRequest, endpoints: list[Endpoint], now: float, excluded: frozenset[str]
    ) -> Decision:
        """Returns the preset's decision among `endpoints`.

        key: the routing key, from which homes are computed.
        """
        chain, policy = request.chain, self._policy
        if policy is None:
            if self._accelerators.has_choice:
                return self._decide_by_kind(key, request, endpoints, now, excluded)
            return self._decide_dual_hash(
                request, self._homes.pair(key, excluded=excluded), endpoints, now, not excluded
            )
        is_session_key = self._preset == "session" and request.session is not None
        if is_session_key:
            key = self._session_key(request.session or "")
        policy_input = self._policy_input(request, self._homes.pair(key, excluded=excluded), endpoints, now)
        policy_input.is_session_key = is_session_key
        policy_input.first_on_ring = lambda full: self._first_on_ring(chain, excluded | full)
        self._decision_count += 1
        return policy(policy_input)

    def _session_key(self, session: str) -> int:
        """Returns the routing key of a session, for the preset `session`.

        Why with the secret: clients could else compute many sessions that have one home.
        """
        return xxhash.xxh3_64_intdigest(session.encode(), self._session_seed)

    def _decide_by_kind(
        self, key: Hashable, request: RouteRequest, endpoints: list[Endpoint], now: float, excluded: frozenset[str]
    ) -> Decision:
        """Returns the decision inside the request's kind of accelerator, or among all instances if
        no kind meets the objective.
        """
        scale, loads = self._calibration.scale_of(request.caller), self._sampled
        loads.begin_decision(len(self._endpoint_list))
        prompt, match = request.prompt_tokens * scale, self._cache.match(request)
        ranked = self._accelerators.rank(prompt, request.max_tokens, match, scale / _BYTES_PER_TOKEN, loads)
        self._ranked_kinds = ranked

        def among(homes: HomeRings, own: list[Endpoint]) -> Decision:
            return self._decide_dual_hash(request, homes.pair(key, excluded=excluded), own, now, not excluded)

        return decide_by_kind(ranked, among, excluded) or with_kind(among(self._homes, endpoints), ranked, -1)

    @property
    def queues_assigned(self) -> bool:
        """True if the preset wants assigned requests to wait, in the order of `queue_sort_key`.

        A caller that cannot queue dispatches them at once.
        """
        return self._assigned is not None

    def queue_sort_key(self, request_id: str) -> tuple[float, float, str]:
        """Returns the sort key of an assigned request; the smallest goes first."""
        assert self._assigned is not None
        return self._assigned.queue_sort_key(request_id)

    def rebalance(self, queued: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        """Moves queued requests to other instances, where they count from now on. Returns the moves
        as pairs of request id and instance.

        queued: ids of the queued requests by instance.
        """
        if self._assigned is None or not self._endpoint_list:
            return []
        objective = self.ttft_objective(0.0)
        moves = self._assigned.plan_moves(
            queued, self._endpoint_list, self.homes, self._calibration.scale_of, objective_seconds=objective, now=now
        )
        for request_id, target in moves:
            flight = self._inflight.get(request_id)
            request = self._assigned.remove(
                request_id, self._endpoints.get(flight.load.instance) if flight is not None else None
            )
            if request is not None:
                self.on_dispatch(request, target, now)
        return moves

    def estimate_prefill(self, request: RouteRequest, instance_id: str, now: float) -> PrefillEstimate | None:
        """Returns the cost of computing the prompt at an instance; None if it is not ready."""
        endpoint = self._endpoints.get(instance_id)
        if endpoint is None:
            return None
        scale = self._calibration.scale_of(request.caller)
        prompt = request.prompt_tokens * scale
        cached = min(prompt, self._cache.match(request).bytes_at(endpoint.cache_bit) * (scale / _BYTES_PER_TOKEN))
        self._cache.drop_match()
        load, has_profile = self._inflight.total_load(endpoint.load), instance_id in self._profiled_ids
        return estimate_prefill(endpoint, load, prompt, cached, has_profile, self._inter_token, now)

    def _decide_dual_hash(
        self,
        request: RouteRequest,
        homes: tuple[str, ...],
        endpoints: list[Endpoint],
        now: float,
        is_first_attempt: bool,
    ) -> Decision:
        ready, loads = self._endpoints, self._sampled
        loads.begin_decision(len(endpoints))
        scale = self._calibration.scale_of(request.caller)
        prompt, tokens_per_byte = request.prompt_tokens * scale, scale / _BYTES_PER_TOKEN
        match = self._cache.match(request)
        is_whole_fleet = endpoints is self._endpoint_list
        holder = (
            self._cache.least_busy_holder(match, prompt, tokens_per_byte, None if is_whole_fleet else endpoints, loads)
            if match.masks
            else None
        )
        mean, idlest = loads.summarize(
            self._local_loads if is_whole_fleet else [endpoint.load for endpoint in endpoints]
        )
        least = ready[idlest.instance]
        chosen = [ready[home] for home in homes]
        if holder is not None and holder not in chosen:
            chosen.append(holder)
        if least not in chosen:
            chosen.append(least)
        session_endpoint = self._session_endpoint(request, endpoints, now) if request.session_hash is not None else None
        if session_endpoint is not None:
            if session_endpoint in chosen:
                chosen.remove(session_endpoint)
            chosen.insert(0, session_endpoint)  # ties go to the first
        candidates: list[Candidate] = []
        for endpoint in chosen:
            load = loads.measure(endpoint.load)
            cached = min(prompt, match.bytes_at(endpoint.cache_bit) * tokens_per_byte)
            candidates.append(
                Candidate(
                    load,
                    endpoint.kv_tokens,
                    endpoint.profile.prefill_time(prompt, cached),
                    cached,
                    endpoint.id in homes if session_endpoint is not None else len(candidates) < len(homes),
                    endpoint is holder,
                    min(prompt, match.bytes_at(endpoint.index_bit) * tokens_per_byte) if endpoint.index_bit else -1.0,
                    endpoint is session_endpoint,
                )
            )
        loads.end_decision(self._local_loads)
        if self._can_pull and holder is not None and is_first_attempt:  # a retry computes what it lacks
            offer_pulls(candidates, chosen, holder, prompt)
        decision = dual_hash.choose(
            candidates,
            mean_backlog_seconds=mean,
            objective_seconds=self.ttft_objective(prompt),
            hot_epoch=dual_hash.LOST_TABLE if self._hot_prefixes.has_lost_table else self._hot_prefixes.epoch,
            unforeseen_share=self._calibration.unforeseen_share,
        )
        if decision.source is not None:
            for candidate in candidates:
                if candidate.id == decision.chosen:
                    self._pending_pull = (request, candidate)
        return decision

    def _policy_input(
        self, request: RouteRequest, homes: tuple[str, ...], endpoints: list[Endpoint], now: float
    ) -> PolicyInput:
        scale = self._calibration.scale_of(request.caller)
        prompt = request.prompt_tokens * scale
        candidates = policy_candidates(
            request, endpoints, self._inflight, self._cache, self._window, token_scale=scale, now=now
        )
        return PolicyInput(
            request.id,
            candidates,
            homes=homes,
            prompt_tokens=prompt,
            objective_seconds=self.ttft_objective(prompt),
            decision_count=self._decision_count,
        )

    def _first_on_ring(self, chain: PrefixChain, excluded: frozenset[str]) -> str | None:
        """Returns the first instance on the ring after the hash of the prompt's first block, or
        None.
        """
        found = self._homes.pair(chain.hashes[0] if chain.hashes else chain.tail, excluded=excluded)
        return found[0] if found else None

    def _session_endpoint(self, request: RouteRequest, endpoints: list[Endpoint], now: float) -> Endpoint | None:
        """Returns the endpoint that served the session last; None if it is unknown or not
        eligible.
        """
        name = self._affinity.get(request.session_hash, now)
        endpoint = None if name is None else self._endpoints.get(name)
        return (
            endpoint if endpoint is not None and (endpoints is self._endpoint_list or endpoint in endpoints) else None
        )
