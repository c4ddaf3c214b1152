"""The gateway's router behind the router seam; it translates types and decides nothing.

``docs/reference/seams.md`` has the protocol.

The router's view of the endpoints that a tool describes through the router seam.

**Load.** The tool's counters are the whole load of an endpoint: this core's own part, exact, and
the part of other gateways as last published. They are read only for endpoints that a decision
compares. If they count only the requests of this core, the backlog is the smaller of two counts,
the tool's and this core's. Both overestimate: the tool counts a cached prompt as uncached until
events arrive, and this core does so if another gateway sent the prompt's prefix. Counters below
what this core sent are ignored, unless the tool reports no completions (``missing_feedback``).

**Cached prefixes.** ``matched_tokens`` comes from KV events. Events are late and do not cover
waiting or running requests. So the blocks of a routed request count as cached from the pick until
``EVENT_DELAY_SECONDS`` after its end. If no endpoint has ever reported more than 0, the router uses
its own prefix map.

Completion inference for tools that report routing decisions but no completions.

Feedback is optional in the seam. Once ``INFERENCE_REQUESTS`` requests were routed and none was
reported complete, each counts as complete ``INFERENCE_SECONDS`` after its first token. For a tool
that reports no first tokens either, the time counts from the pick. The first real completion ends
the inference: from then on a request without a completion counts as running.

Why: without completions every request would stay in the load forever and weigh on its endpoint.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, Model, ModelRouting, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_sim.adapters.field_parsing import parse_number, parse_time, read_count, read_field, read_id, require_list
from fairlead_sim.workload.trace_prompts import trace_chain
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS

EVENT_DELAY_SECONDS: Final = 5.0

INFERENCE_SECONDS: Final = 10.0
INFERENCE_REQUESTS: Final = 200
"""A bound that a person who tries some picks by hand does not reach."""

NAMESPACE = "seam"
MODEL = "model"


class _BlockRoutes:
    """The endpoints to which a block is routed: a request count and a bit for each."""

    __slots__ = ("counts", "endpoint_mask")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.endpoint_mask = 0


class EndpointView:
    """The endpoints of the last call by name, and the blocks routed to each."""

    def __init__(self, prefill_token_seconds: float, block_tokens: int) -> None:
        self._prefill_token_seconds = prefill_token_seconds
        self._block_tokens = block_tokens
        self._endpoints: Mapping[str, Any] = {}
        self._reported: dict[
            str, tuple[Mapping[str, float], Sequence[Hashable]]
        ] = {}  # request → reported cache, its blocks
        self._sent: dict[str, tuple[str, tuple[Hashable, ...]]] = {}
        self._blocks: dict[Hashable, _BlockRoutes] = {}
        self._names: list[str] = []  # by bit
        self._bits: dict[str, int] = {}
        self._expiring: deque[tuple[float, str, tuple[Hashable, ...]]] = deque()
        self._reports_cache = False  # a tool without events may send 0 everywhere
        self._reports_load = False  # an endpoint has had load
        self.is_inferring = False  # the tool reports no completions, so its counters are better than ours

    def set_endpoints(self, endpoints: Mapping[str, Any]) -> None:
        self._endpoints = endpoints

    def add_request(self, request: str, blocks: Sequence[Hashable], now: float) -> None:
        """Stores the cached tokens that the tool reports for a request, until its first token."""
        while self._expiring and self._expiring[0][0] <= now:
            _, endpoint, expired_blocks = self._expiring.popleft()
            self._drop_blocks(endpoint, expired_blocks)
        matched = {name: read_count(item, "matched_tokens", "endpoint") for name, item in self._endpoints.items()}
        self._reports_cache = self._reports_cache or any(matched.values())
        if self._reports_cache and any(tokens is not None for tokens in matched.values()):
            self._reported[request] = {name: tokens for name, tokens in matched.items() if tokens}, blocks
        else:
            self.settle(request)

    def cached_tokens(self, request: str) -> Mapping[str, float] | None:
        """Returns the cached prompt tokens of a request by endpoint; None if the tool
        reports none.
        """
        entry = self._reported.get(request)
        if entry is None:
            return None
        reported, blocks = entry
        by_endpoint = self._routed_tokens(blocks)
        for name, tokens in reported.items():
            if tokens > by_endpoint.get(name, 0.0):
                by_endpoint[name] = tokens
        return by_endpoint

    def load(self, own: EndpointLoad) -> EndpointLoad:
        """Returns the whole load of an endpoint.

        own: the load that this core sent.
        """
        endpoint = self._endpoints.get(own.instance)
        inflight = None if endpoint is None else read_count(endpoint, "inflight", "endpoint")
        if inflight is None:
            return own
        self._reports_load = self._reports_load or inflight > 0.0
        if inflight < own.inflight and not (self.is_inferring and self._reports_load):
            return own
        waiting = read_count(endpoint, "waiting", "endpoint")
        pending = read_count(endpoint, "pending_prefill_tokens", "endpoint")
        tokens = read_count(endpoint, "inflight_tokens", "endpoint")
        backlog = own.backlog_seconds if pending is None else pending * self._prefill_token_seconds
        if inflight == own.inflight:  # all load is ours: the side that knows of more cached blocks is right
            backlog = min(backlog, own.backlog_seconds)
        return EndpointLoad(
            own.instance,
            int(inflight),
            own.waiting if waiting is None else int(waiting),
            backlog,
            own.inflight_tokens if tokens is None else tokens,
        )

    def add_routed(self, request: str, endpoint: str, blocks: Sequence[Hashable], now: float) -> None:
        """Counts the blocks of a request at its endpoint, and no longer at an earlier endpoint."""
        self.remove_routed(request, now, had_first_token=False)
        routed_blocks = tuple(blocks)
        self._sent[request] = (endpoint, routed_blocks)
        bit = self._bits.get(endpoint, 0)
        if not bit:
            bit = self._bits[endpoint] = 1 << len(self._names)
            self._names.append(endpoint)
        for block in routed_blocks:
            routes = self._blocks.get(block)
            if routes is None:
                routes = self._blocks[block] = _BlockRoutes()
            routes.counts[endpoint] = routes.counts.get(endpoint, 0) + 1
            routes.endpoint_mask |= bit

    def settle(self, request: str) -> None:
        self._reported.pop(request, None)

    def remove_routed(self, request: str, now: float, *, had_first_token: bool = True) -> None:
        """Ends a request. After a first token its blocks count ``EVENT_DELAY_SECONDS`` longer."""
        if had_first_token:
            self.settle(request)
        routed = self._sent.pop(request, None)
        if routed is None:
            return
        if had_first_token:
            self._expiring.append((now + EVENT_DELAY_SECONDS, *routed))
        else:
            self._drop_blocks(*routed)

    def remove_endpoint(self, endpoint: str) -> None:
        """Drops an endpoint that left, with its cache."""
        for block in [block for block, routes in self._blocks.items() if endpoint in routes.counts]:
            self._clear_block(block, endpoint)
        self._expiring = deque(item for item in self._expiring if item[1] != endpoint)
        self._sent = {name: sent for name, sent in self._sent.items() if sent[0] != endpoint}

    def _routed_tokens(self, blocks: Iterable[Hashable]) -> dict[str, float]:
        """Returns the routed prefix of a prompt in tokens, by endpoint."""
        by_endpoint: dict[str, float] = {}
        reached, alive, tokens = 0, -1, 0.0
        for block in blocks:
            routes = self._blocks.get(block)
            holders = 0 if routes is None else alive & routes.endpoint_mask
            if reached and holders != alive:
                self._record_tokens(alive & ~holders, tokens, by_endpoint)
            alive = holders
            if not alive:
                return by_endpoint
            reached += 1
            tokens = float(reached * self._block_tokens)
        if reached:
            self._record_tokens(alive, tokens, by_endpoint)
        return by_endpoint

    def _record_tokens(self, mask: int, tokens: float, by_endpoint: dict[str, float]) -> None:
        while mask:
            bit = mask & -mask
            mask ^= bit
            by_endpoint[self._names[bit.bit_length() - 1]] = tokens

    def _drop_blocks(self, endpoint: str, blocks: Sequence[Hashable]) -> None:
        for block in blocks:
            routes = self._blocks.get(block)
            if routes is None or endpoint not in routes.counts:
                continue
            routes.counts[endpoint] -= 1
            if not routes.counts[endpoint]:
                self._clear_block(block, endpoint)

    def _clear_block(self, block: Hashable, endpoint: str) -> None:
        """Removes an endpoint from the routes of a block."""
        routes = self._blocks[block]
        del routes.counts[endpoint]
        routes.endpoint_mask &= ~self._bits[endpoint]
        if not routes.counts:
            del self._blocks[block]


class CompletionInference:
    """The inference of completions, until the tool reports its first one."""

    def __init__(self) -> None:
        self._reports_first_tokens = False
        self._reports_completions = False
        self._last: dict[str, float] = {}
        self._due: deque[tuple[float, str, bool]] = deque()
        self._sent = 0
        self.is_inferring = False

    def on_routed(self, request: str, now: float) -> None:
        self._sent += 1
        self._note(request, now, began=False)

    def on_first_token(self, request: str, now: float) -> None:
        self._reports_first_tokens = True
        self._note(request, now, began=True)

    def on_complete(self) -> None:
        """Ends the inference: the tool reports completions."""
        if not self._reports_completions:
            self._reports_completions, self.is_inferring = True, False
            self._due.clear()
            self._last.clear()

    def infer_completed(self, now: float) -> list[str]:
        """Removes and returns the requests that count as complete now.

        Sets ``is_inferring`` if there are any.
        """
        completed: list[str] = []
        if self._sent < INFERENCE_REQUESTS:
            return completed
        while self._due and self._due[0][0] + INFERENCE_SECONDS <= now:
            at, request, began = self._due.popleft()
            if self._last.get(request) == at and (began or not self._reports_first_tokens):
                del self._last[request]
                completed.append(request)
        self.is_inferring = self.is_inferring or bool(completed)
        return completed

    def _note(self, request: str, now: float, *, began: bool) -> None:
        if not self._reports_completions:
            self._last[request] = now
            self._due.append((now, request, began))


class RouterAdapter:
    """The gateway's router with the interface of the seam.

    Equal seeds give equal homes, so that several routers act as one. The tool's values are ``Any``
    to the compiler.
    """

    def __init__(self, info: Any, *, preset: str, seed: int) -> None:
        objectives = SloTargets(
            ttft_seconds=read_count(info, "ttft_slo", "info") or None,
            ttft_per_kilo_token_seconds=read_count(info, "ttft_slo_per_kilo_token", "info") or 0.0,
        )
        self._model = Model(NAMESPACE, MODEL, objectives, ModelRouting(preset))
        self._block_tokens = _hint_or_default(info, "block_tokens", TRACE_BLOCK_TOKENS)
        self._profile = _profile(info)
        self._secret = f"seam {seed}".encode()
        self._view = EndpointView(self._profile.prefill_token_seconds, self._block_tokens)
        self._router = ModelRouter(
            secret=self._secret,
            seed=seed,
            load_override=self._view.load,
            cached_tokens=lambda request: self._view.cached_tokens(request.id),
        )
        self._ids: dict[str, Any] = {}  # name in the core (text) → id of the tool
        self._endpoint_of: dict[str, str] = {}  # request in flight → endpoint
        self._cached: dict[str, int] = {}
        self._inference = CompletionInference()
        self._absent: dict[str, tuple[str, ...]] = {}  # absent endpoint → its requests in flight when it left
        live = read_field(info, "live")
        self._update(() if live is None else require_list(live, "info.live"))

    def pick(self, request: Any, endpoints: Any, now: Any) -> Any:
        """Returns the endpoint of the request and counts it as sent; None if there is no endpoint.

        Raises BadInput, with the field's name, for a missing or malformed field.
        """
        now = parse_time(now)
        blocks = _blocks(request)
        route_request = self._route_request(request, blocks)
        self._infer_completions(now)
        offered = self._offered(endpoints, now)
        self._view.add_request(route_request.id, blocks, now)
        decision = self._router.choose_instance(
            route_request, now, excluded=frozenset(self._ids.keys() - offered.keys())
        )
        if decision.chosen is None:
            return None
        self._router.on_dispatch(route_request, decision.chosen, now)
        self._view.add_routed(route_request.id, decision.chosen, blocks, now)
        self._endpoint_of[route_request.id] = decision.chosen
        self._cached.pop(route_request.id, None)
        self._inference.on_routed(route_request.id, now)
        return self._ids[decision.chosen]

    def on_first_token(self, request: Any, endpoint: Any, now: Any, cached_tokens: Any = None) -> None:
        """Records the first token of a request, if the request is still at this endpoint.

        cached_tokens: as the engine reported them.
        """
        name, now, cached = read_id(request, "request"), parse_time(now), _known_count(cached_tokens, "cached_tokens")
        if self._endpoint_of.get(name) == str(endpoint):
            self._router.on_first_token(name, now)
            self._view.settle(name)
            self._inference.on_first_token(name, now)
            if cached is not None:
                self._cached[name] = cached

    def on_complete(self, request: Any, endpoint: Any, now: Any, output_tokens: Any = None) -> None:
        """Records a complete answer, if the request is still at this endpoint."""
        name, now, generated = (
            read_id(request, "request"),
            parse_time(now),
            _known_count(output_tokens, "output_tokens"),
        )
        self._inference.on_complete()
        if self._endpoint_of.get(name) == str(endpoint):
            self._finish(name, now, generated)

    def on_endpoints(self, live_ids: Any, now: Any) -> None:
        """Replaces the endpoints in service, and drops the requests on endpoints that left."""
        now = parse_time(now)
        before = set(self._ids)
        self._update(require_list(live_ids, "live"))
        for name in before - self._ids.keys():
            self._view.remove_endpoint(name)
            self._absent.pop(name, None)
        self._abandon([name for name, where in self._endpoint_of.items() if where not in self._ids], now)

    def _finish(self, name: str, now: float, output_tokens: int | None) -> None:
        del self._endpoint_of[name]
        self._view.remove_routed(name, now)
        self._router.on_finish(name, now, cached_tokens=self._cached.pop(name, None), output_tokens=output_tokens)

    def _abandon(self, names: Iterable[str], now: float) -> None:
        for name in names:
            del self._endpoint_of[name]
            self._cached.pop(name, None)
            self._view.remove_routed(name, now)
            self._router.on_abandoned(name, now)

    def _infer_completions(self, now: float) -> None:
        """Finishes requests of tools that report no completions."""
        for name in self._inference.infer_completed(now):
            if name in self._endpoint_of:
                self._finish(name, now, None)
        self._view.is_inferring = self._inference.is_inferring

    def _offered(self, endpoints: Any, now: float) -> Mapping[str, Any]:
        """Returns the endpoints that may be chosen, by name, and registers new ones."""
        named = [(read_id(item, "endpoint"), item) for item in require_list(endpoints, "endpoints")]
        offered = {name: item for name, item in named if read_field(item, "up") is not False}
        new = [read_field(item, "id") for name, item in offered.items() if name not in self._ids]
        if new:
            self._update([*self._ids.values(), *new])
        self._view.set_endpoints(offered)
        if self._absent or len(offered) < len(self._ids):
            self._track_absences(offered, now)
        return offered

    def _track_absences(self, offered: Mapping[str, Any], now: float) -> None:
        """Detects endpoints that restarted without a call of ``on_endpoints``.

        An endpoint that returns with less in flight than was sent there has lost its earlier
        requests.
        """
        for name in self._absent.keys() & offered.keys():
            before = self._absent.pop(name)
            inflight = read_count(offered[name], "inflight", "endpoint")
            if inflight is not None and inflight < sum(where == name for where in self._endpoint_of.values()):
                self._abandon([request for request in before if self._endpoint_of.get(request) == name], now)
        newly_absent = self._ids.keys() - offered.keys() - self._absent.keys()
        if newly_absent:
            requests_at: dict[str, list[str]] = {name: [] for name in newly_absent}
            for request, where in self._endpoint_of.items():
                if where in newly_absent:
                    requests_at[where].append(request)
            self._absent.update({name: tuple(requests) for name, requests in requests_at.items()})

    def _update(self, live: Iterable[Any]) -> None:
        ids: dict[str, Any] = {}
        for raw in live:
            if ids.setdefault(str(raw), raw) != raw:
                raise BadInput(f"live: two endpoints are called {raw}, once as text and once as a number", field="live")
        self._ids = ids
        instances = [
            Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="seam", url="", profile=self._profile)
            for name in sorted(self._ids)
        ]
        self._router.update(self._model, instances)

    def _route_request(self, request: Any, blocks: Iterable[Any]) -> RouteRequest:
        name, session = read_id(request, "request"), read_field(request, "session")
        tokens = read_count(request, "prompt_tokens", "request")
        if tokens is None:
            message = "request.prompt_tokens must be a number of tokens, 0 or more"
            raise BadInput(message, field="request.prompt_tokens")
        chain = trace_chain(
            [_block_number(block) for block in blocks],
            tokens,
            secret=self._secret,
            seed=self._model.key.encode(),
            block_tokens=self._block_tokens,
        )
        return RouteRequest(name, chain, tokens, session=None if session is None else str(session))


class LateBindingRouterAdapter(RouterAdapter):
    """A router adapter for presets with late binding."""

    def order_key(self, request: Any) -> tuple[float, float, str]:
        return self._router.queue_sort_key(read_id(request, "request"))

    def rebalance(self, endpoints: Any, now: Any) -> list[tuple[Any, Any]]:
        """Returns moves (request, endpoint id) among the requests in ``endpoint.held``.

        The moves are counted immediately. A tool that passes only the number of queued requests
        gets no moves.
        """
        now = parse_time(now)
        offered = self._offered(endpoints, now)
        requests = {
            name: {read_id(request, "request"): request for request in _queued_requests(item)}
            for name, item in offered.items()
        }
        known = {name: request for queued in requests.values() for name, request in queued.items()}
        moved = []
        for name, to in self._router.rebalance({endpoint: tuple(queued) for endpoint, queued in requests.items()}, now):
            self._view.add_routed(name, to, _blocks(known[name]), now)
            self._endpoint_of[name] = to
            moved.append((known[name], self._ids[to]))
        return moved


def _block_number(block: Any) -> int:
    return block if isinstance(block, int) else xxh3_64_intdigest(str(block).encode())


def _blocks(request: Any) -> tuple[Any, ...]:
    blocks = read_field(request, "blocks")
    return () if blocks is None else tuple(require_list(blocks, "request.blocks"))


def _queued_requests(endpoint: Any) -> Iterable[Any]:
    queued = read_field(endpoint, "held")
    return () if queued is None or isinstance(queued, int) else require_list(queued, "endpoint.held")


def _known_count(value: Any, field: str) -> int | None:
    counted = -1.0 if value is None else parse_number(value, field)
    return int(counted) if 0.0 <= counted < math.inf else None


def _hint_or_default(info: Any, name: str, default: int) -> int:
    return int(read_count(info, name, "info") or 0.0) or default


def _profile(info: Any) -> EngineProfile:
    """Returns the engine profile of the hints; the built-in ``h100-llama8b`` fills gaps."""
    defaults = builtin_profile("h100-llama8b")
    return EngineProfile(
        name="seam",
        prefill_token_seconds=read_count(info, "prefill_s_per_token", "info") or defaults.prefill_token_seconds,
        kv_tokens=_hint_or_default(info, "kv_tokens", defaults.kv_tokens),
        max_sequences=_hint_or_default(info, "max_seqs", defaults.max_sequences),
        step_tokens=_hint_or_default(info, "step_tokens", defaults.step_tokens),
    )
