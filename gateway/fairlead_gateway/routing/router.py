"""One model's router: what it has seen and sent, and a Decision for every request.

It owns the state that decisions are made from (ledger, mirror, hot prefixes, homes) and nothing else: no clock, no
I/O. The gateway, the fleet simulator and the seams drive this same class; the deciding itself is done by the pure
functions of the presets.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision
from fairlead.engine_profile import builtin_profiles
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.routing.accelerator_selection import AcceleratorSelector, RankedKinds, decide_by_kind, with_kind
from fairlead_gateway.routing.candidates import Candidate, policy_candidates
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.routing.kv_pull import offer_pulls
from fairlead_gateway.routing.load.inflight import EndpointLoad, InflightRequest, InflightTracker, InstanceLoad
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.load.sampled_load import SampledLoads
from fairlead_gateway.routing.load.token_calibration import TokenCalibration
from fairlead_gateway.routing.policies import dual_hash
from fairlead_gateway.routing.policies.assigned_queue import AssignedQueue
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, PolicyInput
from fairlead_gateway.routing.policies.registry import (
    POLICIES,
    PRESETS,
    QUEUE_KEYS,
    REBALANCING_PRESETS,
    WINDOWED_PRESETS,
    Policy,
)
from fairlead_gateway.routing.prefill_placement import PrefillOption, prefill_option
from fairlead_gateway.routing.prefix.cache_view import CachedTokens, CacheView
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.routing.session_affinity import SessionAffinity

DEFAULT_OUTPUT_TOKENS: Final = 256.0
_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_NOBODY: frozenset[str] = frozenset()


class ModelRouter:
    """``secret`` keys the homes; ``seed`` shifts ties so that several models do not move in step. ``load`` and ``knows`` are
    for who sees instances better than the ledger and the mirror do: an instance's whole load, given our own part, and who holds
    how much."""

    def __init__(
        self,
        *,
        secret: bytes,
        seed: int = 0,
        limits: Limits | None = None,
        siblings: SiblingWorkers | None = None,
        hooks: DispatchHooks | None = None,
        load_override: Callable[[EndpointLoad], EndpointLoad] | None = None,
        cached_tokens: CachedTokens | None = None,
    ) -> None:
        self._secret = secret
        self._limits = limits or Limits()
        self._decision_count = seed
        self._siblings = siblings
        self._hooks = hooks
        self._active_hooks: DispatchHooks | None = None  # the hooks, while any instance tells what it holds
        self._inflight = InflightTracker(siblings.loads if siblings is not None else None, load_override)
        self._sampled = SampledLoads(self._inflight)
        self._cache = CacheView(self._limits.mirror_blocks_per_instance, cached_tokens)
        self._hot_prefixes = HotPrefixes()
        self._affinity = SessionAffinity(self._limits)
        # What is asked for every request is read out of the model once: it is of a module that is not compiled.
        self._model_key = ""
        self._preset = ""
        self._policy: Policy | None = None  # None: the default
        self._assigned: AssignedQueue | None = None  # while the preset holds requests
        self._window: LoadWindow | None = None  # while the preset goes by it
        self._objectives = SloTargets()
        self._ttft_limit: float | None = None
        self._ttft_grows = False
        self._endpoints: dict[str, Endpoint] = {}
        self._endpoint_list: list[Endpoint] = []
        self._local_loads: list[EndpointLoad] = []
        self._can_pull = False
        self._pending_pull: tuple[RouteRequest, Candidate] | None = None  # what was last decided to be pulled
        self._weights: dict[str, float] = {}
        self._homes = HomeRings({}, secret=secret)
        self._accelerators = AcceleratorSelector(secret)
        self._ranked_kinds: RankedKinds | None = None  # of what was last decided, where there are kinds
        self._profile_default = builtin_profiles()["h100-llama8b"]
        self._calibration = TokenCalibration()
        self._inter_token: InterTokenTimes | None = None  # where instances hand over KV
        self._profiled_ids: frozenset[str] = frozenset()  # whose profile is known

    @property
    def is_indexed(self) -> bool:
        """Whether any instance tells what it holds, and somebody is told what is sent."""
        return self._active_hooks is not None

    def update(self, model: Model, instances: Sequence[Instance], membership_epoch: int) -> None:
        """Replace what is routable. An instance that is neither ready nor draining has lost its cache."""
        if model.preset not in PRESETS:
            raise BadInput(
                f"no routing preset is called {model.preset!r}", field="routing.preset", hint=", ".join(PRESETS)
            )
        if model.preset != self._preset:
            self._policy = POLICIES.get(model.preset)
            queue_key, rebalances = QUEUE_KEYS.get(model.preset), model.preset in REBALANCING_PRESETS
            self._assigned = (
                None
                if queue_key is None
                else AssignedQueue(self._inflight, self._cache, queue_key, rebalances=rebalances)
            )
            self._window = LoadWindow() if model.preset in WINDOWED_PRESETS else None
        self._model_key, self._preset, self._objectives = model.key, model.preset, model.objectives
        self._ttft_limit = model.objectives.ttft_limit_seconds(0.0)
        self._ttft_grows = model.objectives.ttft_per_kilo_token_seconds != 0.0
        alive = (InstanceState.READY, InstanceState.DRAINING)
        live_ids = [item.id for item in instances if item.state in alive]
        self._cache.retain(live_ids)
        departed = self._endpoints.keys() - live_ids
        if departed:
            self._affinity.forget_instances(departed)
        if any(item.transfer is not None for item in instances):
            self._inter_token = self._inter_token or InterTokenTimes()
            self._inter_token.retain(live_ids)
        self._profiled_ids = frozenset([item.id for item in instances if item.profile is not None])
        self._active_hooks = self._hooks if any(item.kv_events is not None for item in instances) else None
        ready = [item for item in instances if item.state is InstanceState.READY]
        weights = {item.id: item.weight for item in ready}
        if weights != self._weights:
            self._homes, self._weights = HomeRings(weights, secret=self._secret), weights
        self._inflight.retain(weights)
        self._sampled.retain(weights)
        if self._window is not None:
            self._window.retain(weights)
        self._endpoints = {
            item.id: self._cache.create_endpoint(
                item.id,
                item.profile or self._profile_default,
                self._inflight.local_load(item.id),
                item.pull if item.transfer is None else None,  # between prefill and decode KV goes another way
            )
            for item in ready
        }
        self._endpoint_list = list(self._endpoints.values())
        self._local_loads = [place.load for place in self._endpoint_list]
        self._can_pull = sum([place.pull is not None for place in self._endpoint_list]) > 1
        self._pending_pull = None
        self._cache.set_endpoints(self._endpoints)
        self._accelerators.update(ready, self._endpoints, model.objectives)

    def decide(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = _NOBODY) -> Decision:
        """Choose an instance; ``excluded`` ones have just failed this request. ``chosen`` is None when none is left."""
        endpoints = (
            [place for place in self._endpoint_list if place.id not in excluded] if excluded else self._endpoint_list
        )
        if not endpoints:
            return Decision(
                None, "none", "no instance is ready" if not self._endpoints else "every ready instance was tried"
            )
        self._cache.drop_match()
        retried = self._inflight.is_inflight(request.id)  # a prompt is seen once, however often its request is retried
        chain, hot = request.chain, self._hot_prefixes
        key = hot.routing_key(chain) if retried else hot.observe(chain, len(self._endpoints))
        decision = self._decide_with(key, request, endpoints, now, excluded)
        if self._ranked_kinds is not None:
            if not retried:
                self._accelerators.charge(self._ranked_kinds)
            self._ranked_kinds = None
        return decision

    def preview(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = _NOBODY) -> Decision:
        """What ``decide`` would say; nothing is counted or remembered of the question."""
        endpoints = [place for place in self._endpoint_list if place.id not in excluded]
        if not endpoints:
            return Decision(None, "none", "no instance is ready")
        turn, pulled = self._decision_count, self._pending_pull
        self._cache.drop_match()
        decision = self._decide_with(self._hot_prefixes.routing_key(request.chain), request, endpoints, now, excluded)
        self._cache.drop_match()
        self._decision_count, self._pending_pull, self._ranked_kinds = turn, pulled, None
        return decision

    def _decide_with(
        self, key: Hashable, request: RouteRequest, endpoints: list[Endpoint], now: float, excluded: frozenset[str]
    ) -> Decision:
        """By the preset's rule, among ``places``; ``key`` is what homes are computed from."""
        chain, policy = request.chain, self._policy
        if policy is None:
            if self._accelerators.has_choice:
                return self._decide_by_kind(key, request, endpoints, now, excluded)
            return self._decide_dual_hash(
                request, self._homes.pair(key, excluded=excluded), endpoints, now, not excluded
            )
        is_session_key = self._preset == "session" and request.session is not None
        if is_session_key:
            key = xxhash.xxh3_64_intdigest((request.session or "").encode(), 7)
        policy_input = self._policy_input(request, self._homes.pair(key, excluded=excluded), endpoints, now)
        policy_input.is_session_key = is_session_key
        policy_input.first_on_ring = lambda full: self._first_on_ring(chain, excluded | full)
        self._decision_count += 1
        return policy(policy_input)

    def _decide_by_kind(
        self, key: Hashable, request: RouteRequest, endpoints: list[Endpoint], now: float, excluded: frozenset[str]
    ) -> Decision:
        """By the default preset inside the kind of accelerator that the request is for, and among all together where nobody meets
        the objective."""
        scale, loads = self._calibration.scale, self._sampled
        loads.begin_decision(len(self._endpoint_list))
        prompt, match = request.prompt_tokens * scale, self._cache.match(request)
        ranked = self._accelerators.rank(prompt, request.max_tokens, match, scale / _BYTES_PER_TOKEN, loads)
        self._ranked_kinds = ranked

        def among(homes: HomeRings, own: list[Endpoint]) -> Decision:
            return self._decide_dual_hash(request, homes.pair(key, excluded=excluded), own, now, not excluded)

        return decide_by_kind(ranked, among, excluded) or with_kind(among(self._homes, endpoints), ranked, -1)

    def on_dispatch(
        self, request: RouteRequest, instance_id: str, now: float, *, prefilled_elsewhere: bool = False
    ) -> None:
        """The request was sent there: its prefill is backlog, and its blocks count as held there from now on. ``elsewhere``: another
        engine has computed the prompt."""
        if request.session_hash is not None:
            self._affinity.put(request.session_hash, instance_id, now)
        endpoint, cache = self._endpoints.get(instance_id), self._cache
        profile = self._profile_default if endpoint is None else endpoint.profile
        prompt = request.prompt_tokens * self._calibration.scale
        match = cache.match(request)
        bit = cache.bit_of(instance_id) if endpoint is None else endpoint.cache_bit
        matched = (
            prompt
            if prefilled_elsewhere
            else min(prompt, match.bytes_at(bit) * (self._calibration.scale / _BYTES_PER_TOKEN))
        )
        cache.drop_match()
        max_tokens = request.max_tokens
        tokens = prompt + (
            DEFAULT_OUTPUT_TOKENS if not max_tokens or max_tokens > DEFAULT_OUTPUT_TOKENS else max_tokens
        )
        hooks, indexed_share, matched_share = self._active_hooks, -1.0, 0.0
        if endpoint is not None and request.prompt_tokens > 0.0:
            size = request.prompt_tokens * _BYTES_PER_TOKEN
            matched_share = min(1.0, match.bytes_at(bit) / size)
            if hooks is not None:
                if endpoint.index_bit:
                    indexed_share = min(1.0, match.bytes_at(endpoint.index_bit) / size)
                hooks.on_dispatch(self._model_key, request, instance_id)
        pull, self._pending_pull = self._pending_pull, None
        seconds = profile.prefill_time(prompt, matched)
        if pull is not None and pull[0] is request and pull[1].id == instance_id:
            seconds = pull[1].prefill_seconds
            matched_share = max(
                matched_share, min(1.0, (pull[1].matched_tokens + pull[1].pull_tokens) / max(1.0, prompt))
            )
        self._inflight.on_dispatch(
            request,
            instance_id,
            prefill_seconds=seconds,
            tokens=tokens,
            indexed_share=indexed_share,
            matched_share=matched_share,
        )
        if self._siblings is not None:
            self._siblings.report_dispatch(self._model_key, request, instance_id)
        if self._assigned is not None:
            stay = AssignedRequest(request.id, now, matched, seconds, self._ttft_objective(prompt))
            self._assigned.add(request, match.bytes_at(bit), stay)
        if self._inter_token is not None and not prefilled_elsewhere:
            self._inter_token.add_prefill(instance_id, seconds, now)
        if self._window is not None:
            self._window.on_dispatch(instance_id, seconds, prompt - matched, now)
        if endpoint is not None:
            self._mark_cached(endpoint, request.chain)

    def on_peer_dispatch(self, instance_id: str, chain: PrefixChain, now: float, session_hash: Hashable = None) -> None:
        """A sibling or another gateway sent a prompt there: its blocks are held there, and it counts for how hot prefixes are.
        ``pin`` is of its session, None where it has none."""
        endpoint = self._endpoints.get(instance_id)
        if endpoint is not None:
            if session_hash is not None:
                self._affinity.put(session_hash, instance_id, now)
            self._hot_prefixes.observe(chain, len(self._endpoints))
            self._mark_cached(endpoint, chain)

    def set_hot_prefixes(self, epoch: int, table: frozenset[Hashable]) -> None:
        """The hot prefixes as all gateways see them; epoch 0: nobody tells them any more."""
        self._hot_prefixes.set_shared_table(epoch, table)

    def apply_correction(
        self, instance_id: str, forget: str, removed: Sequence[Hashable], cached: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance: first ``forget`` what it told before (``told``) or all that is believed
        (``all``); then the blocks that are ``gone``, and chains from the prompt's start that are ``held`` there."""
        endpoint = self._endpoints.get(instance_id)
        if endpoint is None:
            return
        self._cache.apply_correction(endpoint, forget, removed, cached)

    def republish_loads(self) -> None:
        """The slots of the shared rows have been given out anew."""
        self._inflight.republish()

    def on_first_token(self, request_id: str, now: float) -> None:
        """The engine answered: this prefill is no longer before anyone."""
        self._inflight.on_first_token(request_id)
        if self._window is not None:
            self._window.on_first_token(request_id, now)
        if self._inter_token is not None:
            self._inter_token.on_first_token(request_id, now)
        if self._assigned is not None:
            self._assigned.forget(request_id)

    def on_finish(
        self,
        request_id: str,
        now: float,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """The answer is complete; what the engine reported may be None."""
        inflight = self._end_request(request_id, output_tokens, now)
        if inflight is None:
            return
        self._report_finish(inflight, prompt_tokens, cached_tokens)
        self._calibration.observe(inflight.request.prompt_tokens, inflight.matched_share, prompt_tokens, cached_tokens)
        endpoint = self._endpoints.get(inflight.load.instance) if output_tokens else None
        if endpoint is not None and output_tokens:
            self._cache.reserve(endpoint, self._text_bytes(output_tokens), self._text_bytes(endpoint.kv_tokens))

    def on_abandoned(self, request_id: str, now: float) -> None:
        """The request failed there or its client left: its load is gone at once."""
        inflight = self._end_request(request_id, None, now)
        if inflight is not None:
            self._report_finish(inflight, None, None)

    @property
    def queues_assigned(self) -> bool:
        """Whether the preset wants requests to be held before engines, in ``order``. Who cannot hold them sends them at once."""
        return self._assigned is not None

    def queue_key(self, request_id: str) -> tuple[float, float, str]:
        """Of requests held for one instance the smallest goes first; only of a preset that ``holds``."""
        assert self._assigned is not None
        return self._assigned.queue_key(request_id)

    def rebalance(self, queued: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        """Which of the requests that are ``held`` (ids, by instance) had better go to another instance (request, instance).
        They count there from now on."""
        if self._assigned is None or not self._endpoint_list:
            return []
        objective = self._ttft_objective(0.0)
        moves = self._assigned.plan_moves(
            queued, self._endpoint_list, self.homes, self._calibration.scale, objective_seconds=objective, now=now
        )
        for request_id, target in moves:
            flight = self._inflight.get(request_id)
            request = self._assigned.remove(
                request_id, self._endpoints.get(flight.load.instance) if flight is not None else None
            )
            if request is not None:
                self.on_dispatch(request, target, now)
        return moves

    def prefill_option(self, request: RouteRequest, instance_id: str, now: float) -> PrefillOption | None:
        """A ready instance as the prompt would find it; None when it is not ready."""
        endpoint = self._endpoints.get(instance_id)
        if endpoint is None:
            return None
        prompt = self.prompt_tokens(request)
        cached = min(
            prompt,
            self._cache.match(request).bytes_at(endpoint.cache_bit) * (self._calibration.scale / _BYTES_PER_TOKEN),
        )
        self._cache.drop_match()
        load, has_profile = self._inflight.total_load(endpoint.load), instance_id in self._profiled_ids
        return prefill_option(endpoint, load, prompt, cached, has_profile, self._inter_token, now)

    def uncached_tokens(self, request: RouteRequest) -> float:
        """Tokens of the prompt that even the instance that holds most of it would have to compute."""
        prompt = self.prompt_tokens(request)
        return prompt - min(prompt, self._cache.longest_match(request) * (self._calibration.scale / _BYTES_PER_TOKEN))

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This process's own load on every instance that is ready, and on those that still have some of it."""
        return {
            item: self._inflight.instance_load(item)
            for item in dict.fromkeys((*self._endpoints, *self._inflight.busy_instances()))
        }

    def endpoint_loads(self) -> list[tuple[Endpoint, EndpointLoad]]:
        """The ready instances, and what siblings and we have there: what the gate before them sees."""
        return [(place, self._inflight.total_load(place.load)) for place in self._endpoint_list]

    def endpoint(self, instance_id: str) -> Endpoint | None:
        """A ready instance."""
        return self._endpoints.get(instance_id)

    def least_backlog_seconds(self) -> float:
        """Seconds of prefill before the least busy ready instance, what siblings sent included."""
        return min(
            (self._inflight.total_load(place.load).backlog_seconds for place in self._endpoint_list), default=0.0
        )

    def homes(self, request: RouteRequest) -> tuple[str, ...]:
        """The two homes that the request's prefix hashes to at this moment."""
        return self._homes.pair(self._hot_prefixes.routing_key(request.chain))

    def prompt_tokens(self, request: RouteRequest) -> float:
        """The prompt's length as this model's engines count it."""
        return request.prompt_tokens * self._calibration.scale

    def _text_bytes(self, tokens: int) -> int:
        """How much prompt text that many of the engine's tokens are."""
        return int(tokens * _BYTES_PER_TOKEN / self._calibration.scale)

    def _end_request(self, request_id: str, output_tokens: int | None, now: float) -> InflightRequest | None:
        if self._assigned is not None:
            self._assigned.forget(request_id)
        inflight = self._inflight.on_finish(request_id)
        if self._window is not None and inflight is not None:
            self._window.on_finish(request_id, inflight.load.instance, output_tokens, now)
        if self._accelerators.has_choice and inflight is not None and output_tokens:
            self._accelerators.observe_answer(self.prompt_tokens(inflight.request), output_tokens)
        if self._inter_token is not None:
            self._inter_token.on_finish(
                request_id, "" if inflight is None else inflight.load.instance, output_tokens, now
            )
        return inflight

    def _report_finish(self, inflight: InflightRequest, prompt_tokens: int | None, cached_tokens: int | None) -> None:
        if self._active_hooks is not None:
            instance = inflight.load.instance
            self._active_hooks.on_finish(
                self._model_key,
                inflight.request,
                instance,
                prompt_tokens,
                cached_tokens,
                inflight.indexed_share,
                inflight.matched_share,
            )

    def _mark_cached(self, endpoint: Endpoint, chain: PrefixChain) -> None:
        self._cache.add(endpoint, chain, self._text_bytes(endpoint.kv_tokens))

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
        prompt = request.prompt_tokens * self._calibration.scale
        tokens_per_byte = self._calibration.scale / _BYTES_PER_TOKEN
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
            chosen.insert(0, session_endpoint)  # a tie goes to the first
        candidates: list[Candidate] = []
        for endpoint in chosen:
            load = loads.measure(endpoint.load)
            cached = min(prompt, match.bytes_at(endpoint.cache_bit) * tokens_per_byte)
            candidates.append(
                Candidate(
                    endpoint.id,
                    load.backlog_seconds,
                    endpoint.profile.prefill_time(prompt, cached),
                    cached,
                    load.inflight,
                    load.inflight_tokens,
                    endpoint.kv_tokens,
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
            objective_seconds=self._ttft_objective(prompt),
            hot_epoch=self._hot_prefixes.epoch,
            hot_table_lost=self._hot_prefixes.has_lost_table,
            unforeseen_share=self._calibration.unforeseen_share,
        )
        if decision.source is not None:
            for item in candidates:
                if item.id == decision.chosen:
                    self._pending_pull = (request, item)
        return decision

    def _policy_input(
        self, request: RouteRequest, homes: tuple[str, ...], endpoints: list[Endpoint], now: float
    ) -> PolicyInput:
        """All that a published rule may look at."""
        prompt = request.prompt_tokens * self._calibration.scale
        tokens_per_byte = self._calibration.scale / _BYTES_PER_TOKEN
        candidates = policy_candidates(
            request,
            endpoints,
            self._inflight,
            self._cache,
            self._window,
            prompt=prompt,
            tokens_per_byte=tokens_per_byte,
            now=now,
        )
        return PolicyInput(
            request.id,
            candidates,
            homes=homes,
            prompt_tokens=prompt,
            objective_seconds=self._ttft_objective(prompt),
            decision_count=self._decision_count,
            now=now,
        )

    def _ttft_objective(self, prompt: float) -> float:
        """Of a prompt of so many tokens."""
        limit = self._objectives.ttft_limit_seconds(prompt) if self._ttft_grows else self._ttft_limit
        return dual_hash.DEFAULT_TTFT_SECONDS if limit is None else limit

    def _first_on_ring(self, chain: PrefixChain, excluded: frozenset[str]) -> str | None:
        """Of the ring from the prompt's first block."""
        found = self._homes.pair(chain.hashes[0] if chain.hashes else chain.tail, excluded=excluded)
        return found[0] if found else None

    def _session_endpoint(self, request: RouteRequest, endpoints: list[Endpoint], now: float) -> Endpoint | None:
        """Who served the session last, if it is among those that can be asked. An instance that is gone is in no table."""
        name = self._affinity.get(request.session_hash, now)
        endpoint = None if name is None else self._endpoints.get(name)
        return (
            endpoint if endpoint is not None and (endpoints is self._endpoint_list or endpoint in endpoints) else None
        )
