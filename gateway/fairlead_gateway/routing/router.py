"""The router of one model: a decision for every request.

It has no clock and no I/O. Gateway, fleet simulator and seams drive this class. The decisions are
made by the pure functions of `policies`, from the state below.

The state of a model's router, and the reports on instances and requests that change it.

Session affinity: the instance that served a conversation last is a candidate for its next turn.

That instance is one more candidate for `session_pin_seconds`, and the first of candidates of equal
cost. A busy instance is left like any other, and nothing is assumed about its cache. Gateways share
their sessions (`peers.supervisor`). Beyond a limit, the oldest sessions are dropped.

Why: that instance mostly has the start of the prompt cached. A client may write the same turns in
other bytes (another serializer, a field that moved). Then no prefix matches, and hashing sends the
turn to homes that have nothing cached.

The callbacks of a router: for the KV-cache index, sibling workers and other gateways.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from fairlead.decision import Decision, DecisionText
from fairlead.engine_profile import builtin_profiles
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.routing.accelerator_selection import AcceleratorSelector, RankedKinds, decide_by_kind, with_kind
from fairlead_gateway.routing.candidates import Candidate, offer_pulls, policy_candidates
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_gateway.routing.load.inflight import (
    NOTHING_DEFERRED,
    Endpoint,
    EndpointLoad,
    InflightRequest,
    InflightTracker,
    InstanceLoad,
    SampledLoads,
)
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.load.prompt_sizes import TokenCalibration
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
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
from fairlead_gateway.routing.prefill_placement import PrefillEstimate, estimate_prefill
from fairlead_gateway.routing.prefix.cache_view import CachedTokens, CacheView, slow_tokens
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, chain_seed
from fairlead_gateway.routing.prefix.session_prompts import ComputedPrompt, SessionPrompts
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS, DEFAULT_TTFT_SECONDS, NO_INSTANCES, RouteRequest

SESSION_PIN_SECONDS: Final = 60.0
"""Limit: how long a session's instance is remembered: tools of agents take 1 to 8 s, people
longer.
"""

MAX_MARKED_PROMPTS: Final = 512
"""Limit: different prompts in flight, the newest ones, that count as cached again at an instance
whose cache was cleared. Engines compute fewer at a time.
"""

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class DispatchHooks:
    """Callbacks of a router for the prompts that it counts at instances.

    - on_dispatch: called with model, request and instance, and whether the prompt is indexed.
    - on_finish: called for indexed models with model, request, and the prompt and cached tokens
      that the engine reported (None if it did not).
    - is_shared: `on_dispatch` is called for all models, else only for indexed ones.
    """

    on_dispatch: Callable[[str, RouteRequest, str, bool], None]
    on_finish: Callable[[str, InflightRequest, int | None, int | None], None]
    is_shared: bool


class SessionAffinity:
    """The last instance of each session, by `RouteRequest.session_hash`.

    Entries expire. Times are monotonic seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_sessions = limits.session_pins
        self._seconds = SESSION_PIN_SECONDS
        self._instances: dict[Hashable, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def put(self, session_hash: Hashable, instance: str, now: float) -> None:
        """Records the instance that serves a session now."""
        instances = self._instances
        if session_hash in instances:
            del instances[session_hash]  # dictionary order is age
        elif len(instances) >= self._max_sessions:
            del instances[next(iter(instances))]
        instances[session_hash] = (instance, now + self._seconds)

    def forget_instances(self, instances: Collection[str]) -> None:
        self._instances = {pin: found for pin, found in self._instances.items() if found[0] not in instances}

    def get(self, session_hash: Hashable, now: float) -> str | None:
        """Returns the instance that served the session last; None if unknown or too long ago."""
        found = self._instances.get(session_hash)
        if found is None:
            return None
        if found[1] <= now:
            del self._instances[session_hash]
            return None
        return found[0]


class ModelRouter:
    """The router of one model: it chooses an instance for each request and tracks the load.

    - secret: the key of the hash rings.
    - seed: start of the decision count, so that several models do not act in step.
    - shared_loads: the loads of sibling workers and peers.
    - load_override, cached_tokens: replace the in-flight load and the prefix index, for callers
      that know more. The first returns an instance's whole load, given this process's part.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        seed: int = 0,
        limits: Limits | None = None,
        shared_loads: SharedLoadTable | None = None,
        hooks: DispatchHooks | None = None,
        load_override: Callable[[EndpointLoad], EndpointLoad] | None = None,
        cached_tokens: CachedTokens | None = None,
    ) -> None:
        self._secret = secret
        self._session_seed = chain_seed(secret, b"session")
        self._limits = limits or Limits()
        self._decision_count = seed
        self._hooks = hooks
        self._is_shared = hooks is not None and hooks.is_shared
        self.is_indexed = False  # set by its owner
        self._inflight = InflightTracker(shared_loads, load_override)
        self._sampled = SampledLoads(self._inflight)
        self._cache = CacheView(self._limits.mirror_blocks_per_instance, cached_tokens)
        self._hot_prefixes = HotPrefixes()
        self._affinity = SessionAffinity(self._limits)
        self._session_prompts = SessionPrompts(self._limits.session_pins)
        # Fields of the model that every request needs. Why: the model's module is not compiled.
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

    def update(self, model: Model, instances: Sequence[Instance]) -> None:
        """Replaces the model's settings and instances. Instances neither ready nor draining count
        as without cache. Raises BadInput for an unknown preset.
        """
        if model.routing.preset not in PRESETS:
            raise BadInput(
                f"no routing preset is called {model.routing.preset!r}", field="routing.preset", hint=", ".join(PRESETS)
            )
        if model.routing.preset != self._preset:  # else the queue and the window keep what is in flight
            self._policy = POLICIES.get(model.routing.preset)
            queue_sort_key, rebalances = (
                QUEUE_KEYS.get(model.routing.preset),
                model.routing.preset in REBALANCING_PRESETS,
            )
            self._assigned = (
                None
                if queue_sort_key is None
                else AssignedQueue(self._inflight, self._cache, queue_sort_key, rebalances=rebalances)
            )
            self._window = LoadWindow() if model.routing.preset in WINDOWED_PRESETS else None
        self._model_key, self._preset, self._objectives = model.key, model.routing.preset, model.objectives
        self._ttft_limit = model.objectives.ttft_limit_seconds(0.0)
        self._ttft_grows = model.objectives.ttft_per_kilo_token_seconds != 0.0
        alive = (InstanceState.READY, InstanceState.DRAINING)
        live_ids = [instance.id for instance in instances if instance.state in alive]
        self._cache.retain(live_ids)
        departed = self._endpoints.keys() - live_ids
        if departed:
            self._affinity.forget_instances(departed)
        if any(instance.transfer is not None for instance in instances):
            self._inter_token = self._inter_token or InterTokenTimes()
            self._inter_token.retain(live_ids)
        self._profiled_ids = frozenset([instance.id for instance in instances if instance.profile is not None])
        ready = [instance for instance in instances if instance.state is InstanceState.READY]
        weights = {instance.id: instance.weight for instance in ready}
        if weights != self._weights:
            self._homes, self._weights = HomeRings(weights, secret=self._secret), weights
        self._inflight.retain(weights)
        self._sampled.retain(weights)
        if self._window is not None:
            self._window.retain(weights)
        self._endpoints = {
            instance.id: self._cache.create_endpoint(
                instance.id,
                instance.profile or self._profile_default,
                self._inflight.local_load(instance.id),
                instance.pull if instance.transfer is None else None,  # prefill and decode transfer KV in another way
            )
            for instance in ready
        }
        self._endpoint_list = list(self._endpoints.values())
        self._local_loads = [endpoint.load for endpoint in self._endpoint_list]
        self._can_pull = sum([endpoint.pull is not None for endpoint in self._endpoint_list]) > 1
        self._pending_pull = None  # its candidate is of the endpoints before
        self._cache.set_endpoints(self._endpoints)
        self._accelerators.update(ready, self._endpoints, model.objectives)

    def on_dispatch(
        self,
        request: RouteRequest,
        instance_id: str,
        now: float,
        *,
        prefilled_elsewhere: bool = False,
        is_waiting: bool = True,
    ) -> None:
        """Records that the request was sent. Its prefill is backlog, and its blocks count as
        cached.

        prefilled_elsewhere: another instance computed the prompt.
        is_waiting: it may still wait for the instance, and then has a place in the order there.
        """
        if request.session_hash is not None:
            self._affinity.put(request.session_hash, instance_id, now)
        endpoint, cache = self._endpoints.get(instance_id), self._cache
        profile = self._profile_default if endpoint is None else endpoint.profile
        scale = self._calibration.scale_of(request.caller)
        prompt = request.prompt_tokens * scale
        match = cache.match(request)
        bit = cache.bit_of(instance_id) if endpoint is None else endpoint.cache_bit
        matched = prompt if prefilled_elsewhere else min(prompt, match.bytes_at(bit) * (scale / _BYTES_PER_TOKEN))
        cache.drop_match()
        max_tokens = request.max_tokens
        tokens = prompt + (
            DEFAULT_OUTPUT_TOKENS if not max_tokens or max_tokens > DEFAULT_OUTPUT_TOKENS else max_tokens
        )
        indexed_share, matched_share, is_indexed = -1.0, 0.0, False
        if endpoint is not None and request.prompt_tokens > 0.0:
            size, is_indexed = request.prompt_tokens * _BYTES_PER_TOKEN, self.is_indexed
            matched_share = min(1.0, match.bytes_at(bit) / size)
            if is_indexed and endpoint.index_bit:
                indexed_share = min(1.0, match.bytes_at(endpoint.index_bit) / size)
        # The decision priced a pull: that counts if this request goes where it was decided.
        pull, self._pending_pull = self._pending_pull, None
        seconds = profile.prefill_time(prompt, matched)
        if pull is not None and pull[0] is request and pull[1].id == instance_id:
            seconds = pull[1].prefill_seconds
            matched_share = max(
                matched_share, min(1.0, (pull[1].matched_tokens + pull[1].pull_tokens) / max(1.0, prompt))
            )
        self._inflight.add(
            request,
            instance_id,
            prefill_seconds=seconds,
            tokens=tokens,
            indexed_share=indexed_share,
            matched_share=matched_share,
        )
        if self._hooks is not None and (is_indexed or self._is_shared):
            self._hooks.on_dispatch(self._model_key, request, instance_id, is_indexed)
        if self._assigned is not None and is_waiting:
            objective = self.ttft_objective(prompt)
            self._assigned.add(AssignedRequest(request, now, matched, seconds, objective, match.bytes_at(bit)))
        if self._inter_token is not None and not prefilled_elsewhere:
            self._inter_token.add_prefill(instance_id, seconds, now)
        if self._window is not None:
            self._window.on_dispatch(instance_id, seconds, prompt - matched, now)
        if endpoint is not None:
            self._mark_cached(endpoint, request.chain)

    def on_peer_dispatch(self, instance_id: str, chain: PrefixChain, now: float, session_hash: Hashable = None) -> None:
        """Records a dispatch of a sibling worker or a peer: cached blocks, hot prefixes and
        session.

        session_hash: None without a session.
        """
        endpoint = self._endpoints.get(instance_id)
        if endpoint is not None:
            if session_hash is not None:
                self._affinity.put(session_hash, instance_id, now)
            self._hot_prefixes.observe(chain, len(self._endpoints))
            self._mark_cached(endpoint, chain)

    def apply_correction(
        self,
        instance_id: str,
        forget: str,
        removed: Sequence[Hashable],
        cached: Sequence[tuple[Hashable, ...]],
        tier: int = 0,
    ) -> None:
        """Applies what the KV-cache index reports of an instance.

        - instance_id: empty for the store that all instances reach.
        - forget: first drop what the index reported before (`told`), or all cached blocks (`all`).
          The latter leaves prompts in flight there, which it will compute. Empty: drop nothing.
        - removed: blocks that are not cached.
        - cached: chains from the start of the prompt that are cached.
        - tier: both are about GPU memory (0), or CPU memory too (1), or the disk too (2).
        """
        self._cache.apply_correction(instance_id, tier, forget, removed, cached)
        endpoint = self._endpoints.get(instance_id)
        if forget == "all" and endpoint is not None:
            newest: dict[Hashable, PrefixChain] = {}  # equal prompts once
            for inflight in reversed(self._inflight.requests_at(instance_id)):
                if len(newest) < MAX_MARKED_PROMPTS:
                    newest.setdefault(inflight.request.chain.tail, inflight.request.chain)
            for chain in reversed(newest.values()):
                self._mark_cached(endpoint, chain)

    def republish_loads(self) -> None:
        self._inflight.republish()

    def on_first_token(self, request_id: str, now: float) -> None:
        """Records the first token of a request: its prefill is no longer backlog."""
        self._inflight.on_first_token(request_id)
        if self._window is not None:
            self._window.on_first_token(request_id, now)
        if self._inter_token is not None:
            self._inter_token.on_first_token(request_id, now)
        if self._assigned is not None:
            self._assigned.entries.pop(request_id, None)

    def on_finish(
        self,
        request_id: str,
        now: float,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """Ends a request whose response is complete, and learns from what the engine reported.

        Values that the engine did not report are None.
        """
        inflight = self._end_request(request_id, output_tokens, now)
        if inflight is None:
            return
        if self.is_indexed and self._hooks is not None:
            self._hooks.on_finish(self._model_key, inflight, prompt_tokens, cached_tokens)
        request = inflight.request
        if request.session_hash is not None and prompt_tokens:
            self._session_prompts.observe(
                request.session_hash,
                request.chain,
                ComputedPrompt(inflight.load.instance, request.chain, prompt_tokens, output_tokens or 0),
                cached_tokens,
                inflight.matched_bytes,
            )
        # A prompt with pictures says nothing about the tokens of a byte.
        text_tokens = None if request.media else prompt_tokens
        self._calibration.observe(
            request.caller, request.prompt_tokens, inflight.matched_share, text_tokens, cached_tokens
        )
        endpoint = self._endpoints.get(inflight.load.instance) if output_tokens else None
        if endpoint is not None and output_tokens:
            self._cache.reserve(endpoint, self._text_bytes(output_tokens), self._text_bytes(endpoint.kv_tokens))

    def on_abandoned(self, request_id: str, now: float, *, is_computed: bool = True) -> None:
        """Ends a request that failed, was refused, or whose client disconnected.

        is_computed: the engine has answered, so it has computed the prompt. If not, the prompt's
            blocks no longer count as cached.
        """
        inflight = self._end_request(request_id, None, now)
        if inflight is not None:
            if not is_computed:
                self._forget_prompt(inflight)
            if self.is_indexed and self._hooks is not None:
                self._hooks.on_finish(self._model_key, inflight, None, None)

    def on_queued(self, instance_id: str, change: int) -> None:
        """Counts answers that wait for an instance in this process.

        change: the answers of a request; negative if it does not wait any more.
        """
        self._inflight.on_queued(instance_id, change)

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Returns this process's load by instance: all ready ones, and others with requests in
        flight.
        """
        return {
            instance: self._inflight.instance_load(instance)
            for instance in dict.fromkeys((*self._endpoints, *self._inflight.busy_instances()))
        }

    def endpoint_loads(self) -> list[tuple[Endpoint, EndpointLoad]]:
        return [(endpoint, self._inflight.total_load(endpoint.load)) for endpoint in self._endpoint_list]

    @property
    def endpoints(self) -> list[Endpoint]:
        return self._endpoint_list

    def total_load(self, local: EndpointLoad) -> EndpointLoad:
        return self._inflight.total_load(local)

    def endpoint(self, instance_id: str) -> Endpoint | None:
        """Returns the endpoint of a ready instance; None if the instance is not ready."""
        return self._endpoints.get(instance_id)

    def least_backlog_seconds(self) -> float:
        """Returns the backlog in seconds of the least busy ready instance, sibling workers
        included.

        0 if no instance is ready.
        """
        return min(
            (self._inflight.total_load(endpoint.load).backlog_seconds for endpoint in self._endpoint_list), default=0.0
        )

    def homes(self, request: RouteRequest) -> tuple[str, ...]:
        return self._homes.pair(self._hot_prefixes.routing_key(request.chain))

    def prompt_tokens(self, request: RouteRequest) -> float:
        """Returns the prompt's length in tokens as this model's engines count them, by
        calibration of its caller.
        """
        return request.prompt_tokens * self._calibration.scale_of(request.caller)

    def uncached_tokens(self, request: RouteRequest) -> float:
        """Returns the prompt tokens that even the instance with the longest cached prefix would
        compute.
        """
        scale = self._calibration.scale_of(request.caller)
        prompt = request.prompt_tokens * scale
        return prompt - min(prompt, self._cache.longest_match(request) * (scale / _BYTES_PER_TOKEN))

    def _text_bytes(self, tokens: int) -> int:
        return int(tokens * _BYTES_PER_TOKEN / self._calibration.scale)

    def predict_cached_tokens(self, request: RouteRequest, instance_id: str, matched_tokens: float) -> float:
        """Returns the prompt tokens that an instance should have cached.

        It is the estimate of the decision, `matched_tokens`, unless the request has a session and
        an engine has counted the tokens of what was found.
        """
        if request.session_hash is None:
            return matched_tokens
        matched_bytes = matched_tokens * _BYTES_PER_TOKEN / self._calibration.scale_of(request.caller)
        known = self._session_prompts.cached(request.session_hash, instance_id, request.chain, matched_bytes)
        return matched_tokens if known is None else known

    def _end_request(self, request_id: str, output_tokens: int | None, now: float) -> InflightRequest | None:
        if self._assigned is not None:
            self._assigned.entries.pop(request_id, None)
        inflight = self._inflight.remove(request_id)
        if inflight is not None and output_tokens and inflight.sequences > 1:
            output_tokens = max(1, output_tokens // inflight.sequences)  # answers share each step
        if self._window is not None and inflight is not None:
            self._window.on_finish(request_id, inflight.load.instance, output_tokens, now)
        if self._accelerators.has_choice and inflight is not None and output_tokens:
            self._accelerators.observe_answer(self.prompt_tokens(inflight.request), output_tokens)
        if self._inter_token is not None:
            self._inter_token.on_finish(
                request_id, "" if inflight is None else inflight.load.instance, output_tokens, now
            )
        return inflight

    def _forget_prompt(self, inflight: InflightRequest) -> None:
        """Undoes `_mark_cached`, up to the prefix that was cached before or that others in flight
        share.
        """
        request, instance = inflight.request, inflight.load.instance
        endpoint, chain = self._endpoints.get(instance), request.chain
        if endpoint is None:
            return
        size = max(round(inflight.matched_bytes), self._inflight.shared_bytes(instance, chain))
        self._cache.remove(endpoint, chain, size)

    def _mark_cached(self, endpoint: Endpoint, chain: PrefixChain) -> None:
        self._cache.add(endpoint, chain, self._text_bytes(endpoint.kv_tokens))

    def ttft_objective(self, prompt: float) -> float:
        """Returns the TTFT objective in seconds for a prompt of `prompt` tokens, or the default."""
        limit = self._objectives.ttft_limit_seconds(prompt) if self._ttft_grows else self._ttft_limit
        return DEFAULT_TTFT_SECONDS if limit is None else limit

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
        match = self._cache.match(request)
        cached = min(prompt, match.bytes_at(endpoint.cache_bit) * (scale / _BYTES_PER_TOKEN))
        self._cache.drop_match()
        load, has_profile = self._inflight.total_load(endpoint.load), instance_id in self._profiled_ids
        seconds = 0.0
        if endpoint.has_slow_tiers:
            seconds = endpoint.profile.load_time(*slow_tokens(endpoint, match, prompt, scale / _BYTES_PER_TOKEN))
        return estimate_prefill(endpoint, load, prompt, cached, has_profile, self._inter_token, now, seconds)

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
        least_busy = ready[idlest.instance]
        chosen = [ready[home] for home in homes]
        if holder is not None and holder not in chosen:
            chosen.append(holder)
        if least_busy not in chosen:
            chosen.append(least_busy)
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
                    # Homes come first, unless the endpoint of the session was put before them.
                    endpoint.id in homes if session_endpoint is not None else len(candidates) < len(homes),
                    endpoint is holder,
                    min(prompt, match.bytes_at(endpoint.index_bit) * tokens_per_byte) if endpoint.index_bit else -1.0,
                    endpoint is session_endpoint,
                )
            )
            if endpoint.has_slow_tiers:
                loaded = slow_tokens(endpoint, match, prompt, tokens_per_byte)
                candidates[-1].loaded, candidates[-1].load_seconds = loaded, endpoint.profile.load_time(*loaded)
        loads.end_decision(self._local_loads)
        if self._can_pull and holder is not None and is_first_attempt:  # a retry computes what it lacks
            offer_pulls(candidates, chosen, holder, prompt)
        decision = dual_hash.choose(
            candidates,
            mean_backlog_seconds=mean,
            objective_seconds=self.ttft_objective(prompt),
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
