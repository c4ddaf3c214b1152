"""The state of a model's router, and the reports on instances and requests that change it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from fairlead.engine_profile import builtin_profiles
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.routing.accelerator_selection import AcceleratorSelector, RankedKinds
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.routing.load.inflight import EndpointLoad, InflightRequest, InflightTracker, InstanceLoad
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.load.sampled_load import SampledLoads
from fairlead_gateway.routing.load.token_calibration import TokenCalibration
from fairlead_gateway.routing.policies.assigned_queue import AssignedQueue
from fairlead_gateway.routing.policies.policy_input import AssignedRequest
from fairlead_gateway.routing.policies.registry import (
    POLICIES,
    PRESETS,
    QUEUE_KEYS,
    REBALANCING_PRESETS,
    WINDOWED_PRESETS,
    Policy,
)
from fairlead_gateway.routing.prefix.cache_view import CachedTokens, CacheView
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, chain_seed, shared_bytes
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS, DEFAULT_TTFT_SECONDS, RouteRequest
from fairlead_gateway.routing.session_affinity import SessionAffinity

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)


class RouterState:
    """The state of one model's router: endpoints, load, prefix index, hot prefixes and homes.

    - secret: the key of the hash rings.
    - seed: start of the decision count, so that several models do not act in step.
    - load_override, cached_tokens: replace the in-flight load and the prefix index, for callers
      that know more. The first returns an instance's whole load, given this process's part.
    """

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
        self._session_seed = chain_seed(secret, b"session")
        self._limits = limits or Limits()
        self._decision_count = seed
        self._siblings = siblings
        self._hooks = hooks
        self._active_hooks: DispatchHooks | None = None  # the hooks, while any instance reports its cache
        self._inflight = InflightTracker(siblings.loads if siblings is not None else None, load_override)
        self._sampled = SampledLoads(self._inflight)
        self._cache = CacheView(self._limits.mirror_blocks_per_instance, cached_tokens)
        self._hot_prefixes = HotPrefixes()
        self._affinity = SessionAffinity(self._limits)
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

    @property
    def is_indexed(self) -> bool:
        """True if an instance reports KV events and the router has callbacks for dispatches."""
        return self._active_hooks is not None

    def update(self, model: Model, instances: Sequence[Instance]) -> None:
        """Replaces the model's settings and instances. Instances neither ready nor draining count
        as without cache. Raises BadInput for an unknown preset.
        """
        if model.preset not in PRESETS:
            raise BadInput(
                f"no routing preset is called {model.preset!r}", field="routing.preset", hint=", ".join(PRESETS)
            )
        if model.preset != self._preset:
            self._policy = POLICIES.get(model.preset)
            queue_sort_key, rebalances = QUEUE_KEYS.get(model.preset), model.preset in REBALANCING_PRESETS
            self._assigned = (
                None
                if queue_sort_key is None
                else AssignedQueue(self._inflight, self._cache, queue_sort_key, rebalances=rebalances)
            )
            self._window = LoadWindow() if model.preset in WINDOWED_PRESETS else None
        self._model_key, self._preset, self._objectives = model.key, model.preset, model.objectives
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
        self._active_hooks = self._hooks if any(instance.kv_events is not None for instance in instances) else None
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
        self._pending_pull = None
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
        if self._assigned is not None and is_waiting:
            stay = AssignedRequest(request.id, now, matched, seconds, self.ttft_objective(prompt))
            self._assigned.add(request, match.bytes_at(bit), stay)
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

    def set_hot_prefixes(self, epoch: int, table: frozenset[Hashable]) -> None:
        """Sets the hot prefixes that all gateways share. Epoch 0: they are no longer updated."""
        self._hot_prefixes.set_shared_table(epoch, table)

    def apply_correction(
        self, instance_id: str, forget: str, removed: Sequence[Hashable], cached: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """Applies what the KV-cache index reports of an instance.

        - forget: first drop what the index reported before (`told`), or all cached blocks (`all`);
          empty: nothing.
        - removed: blocks that are not cached.
        - cached: chains from the start of the prompt that are cached.
        """
        endpoint = self._endpoints.get(instance_id)
        if endpoint is None:
            return
        self._cache.apply_correction(endpoint, forget, removed, cached)

    def republish_loads(self) -> None:
        """Publishes all loads again, after slots of the shared table were reassigned."""
        self._inflight.republish()

    def on_first_token(self, request_id: str, now: float) -> None:
        """Records the first token of a request: its prefill is no longer backlog."""
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
        """Ends a request whose response is complete, and learns from what the engine reported.

        Values that the engine did not report are None.
        """
        inflight = self._end_request(request_id, output_tokens, now)
        if inflight is None:
            return
        self._report_finish(inflight, prompt_tokens, cached_tokens)
        request = inflight.request
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
            self._report_finish(inflight, None, None)

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
        """Returns the ready endpoints with their loads, sibling workers included."""
        return [(endpoint, self._inflight.total_load(endpoint.load)) for endpoint in self._endpoint_list]

    @property
    def endpoints(self) -> list[Endpoint]:
        """The ready endpoints; callers do not change the list."""
        return self._endpoint_list

    def total_load(self, local: EndpointLoad) -> EndpointLoad:
        """Returns an endpoint's load with that of sibling workers, given this process's part."""
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
        """Returns the current homes of the request's prefix: two, or as many as are ready."""
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
        """Returns the bytes of prompt text that `tokens` engine tokens correspond to."""
        return int(tokens * _BYTES_PER_TOKEN / self._calibration.scale)

    def _end_request(self, request_id: str, output_tokens: int | None, now: float) -> InflightRequest | None:
        if self._assigned is not None:
            self._assigned.forget(request_id)
        inflight = self._inflight.on_finish(request_id)
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

    def _report_finish(self, inflight: InflightRequest, prompt_tokens: int | None, cached_tokens: int | None) -> None:
        if self._active_hooks is not None:
            self._active_hooks.on_finish(self._model_key, inflight, prompt_tokens, cached_tokens)

    def _forget_prompt(self, inflight: InflightRequest) -> None:
        """Undoes `_mark_cached`, up to the prefix that was cached before or that others in flight
        share.
        """
        request, instance = inflight.request, inflight.load.instance
        endpoint, chain = self._endpoints.get(instance), request.chain
        if endpoint is None:
            return
        size = round(inflight.matched_share * request.prompt_tokens * _BYTES_PER_TOKEN)
        for other in self._inflight.requests_at(instance):
            size = max(size, shared_bytes(chain, other.request.chain))
        self._cache.remove(endpoint, chain, size)

    def _mark_cached(self, endpoint: Endpoint, chain: PrefixChain) -> None:
        self._cache.add(endpoint, chain, self._text_bytes(endpoint.kv_tokens))

    def ttft_objective(self, prompt: float) -> float:
        """Returns the TTFT objective in seconds for a prompt of `prompt` tokens, or the default."""
        limit = self._objectives.ttft_limit_seconds(prompt) if self._ttft_grows else self._ttft_limit
        return DEFAULT_TTFT_SECONDS if limit is None else limit
