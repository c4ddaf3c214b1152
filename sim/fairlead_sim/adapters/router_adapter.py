"""The gateway's router behind the router seam; it translates types and decides nothing.

``docs/reference/seams.md`` has the protocol.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from xxhash import xxh3_64_intdigest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_sim.adapters.endpoint_view import EndpointView
from fairlead_sim.adapters.field_parsing import parse_number, parse_time, read_count, read_field, read_id, require_list
from fairlead_sim.adapters.missing_feedback import CompletionInference
from fairlead_sim.workload.trace_prompts import trace_chain
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS

NAMESPACE = "seam"
MODEL = "model"


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
        self._model = Model(NAMESPACE, MODEL, objectives, preset)
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
        """Returns the sort key of a queued request; the smallest goes first."""
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
    """Returns a block hash as a number: itself, or the hash of its text."""
    return block if isinstance(block, int) else xxh3_64_intdigest(str(block).encode())


def _blocks(request: Any) -> tuple[Any, ...]:
    blocks = read_field(request, "blocks")
    return () if blocks is None else tuple(require_list(blocks, "request.blocks"))


def _queued_requests(endpoint: Any) -> Iterable[Any]:
    queued = read_field(endpoint, "held")
    return () if queued is None or isinstance(queued, int) else require_list(queued, "endpoint.held")


def _known_count(value: Any, field: str) -> int | None:
    """Returns the count; None if it is missing, negative or not finite."""
    counted = -1.0 if value is None else parse_number(value, field)
    return int(counted) if 0.0 <= counted < math.inf else None


def _hint_or_default(info: Any, name: str, default: int) -> int:
    """Returns a hint as a whole number; the default if it is missing, impossible or 0."""
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
