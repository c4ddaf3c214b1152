"""The model that gets a request next, after the one before has not answered it.

Only requests of routes have fallbacks, and only before the first byte of an answer. The choice is
the pure core's (`fairlead.routes.fallback_graph`); this module gives it the state of the models at
the time of the failure.
"""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

from fairlead.fleet.model import Fleet, Model
from fairlead.routes.fallback_graph import FallbackGraph, fallback_edges, fallback_weight
from fairlead.routes.model import FailureKind, Route
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import (
    BadRequest,
    EngineFailed,
    EngineTimeout,
    ExternalRefused,
    GatewayError,
    NoReadyInstance,
    Overloaded,
    QuarantinedRequest,
    RequestShed,
    RouteWithoutTarget,
)
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.resilience.worker.retry import MAX_CRASHES, StallTimeout
from fairlead_gateway.router_registry import RoleRouters
from fairlead_gateway.routes.target_choice import FallbackStep, RouteDecision
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.tenants.worker.tenant_policy import ModelVisibility
from fairlead_gateway.upstream.request_encoder import sanitize_header_value
from fairlead_gateway.upstream.response import EngineResponse

UNAVAILABLE: Final[str] = FailureKind.UNAVAILABLE.value
NO_CAPACITY: Final[str] = FailureKind.NO_CAPACITY.value
CONTEXT_TOO_LONG: Final[str] = FailureKind.CONTEXT_TOO_LONG.value
DEADLINE_UNATTAINABLE: Final[str] = FailureKind.DEADLINE_UNATTAINABLE.value
REFUSED: Final[str] = FailureKind.REFUSED.value
WAKING_SECONDS: Final = 60.0
"""Predicted latency of a model that has no instance, but gets one for the request."""
_PROMPT_TOKEN_SECONDS: Final = 1e-3
"""Prefill of a token where no profile of the engine is known."""
_NO_ATTEMPT: Final = "fallback"
_EXTERNAL_REFUSED: Final = "ExternalRefused"
_MAX_GRAPHS: Final = 1_024
_SCANNED_BYTES: Final = 4_096
_TOO_LONG: Final = re.compile(
    rb"maximum context length|context_length_exceeded|max_model_len"  # vLLM, OpenAI
    rb"|longer than the model's context length|exceeds the maximum allowed length"  # SGLang
    rb"|available context size|should not exceed max_num_tokens|prompt is too long"  # llama.cpp, TensorRT-LLM, Anthropic
)


class FallbackRequest:
    """A request that starts again, for the model of a fallback.

    decision: its last step names that model.
    previous: the request at the model that failed; None if it never started.
    """

    __slots__ = ("decision", "previous")

    def __init__(self, decision: RouteDecision, previous: RequestContext | None) -> None:
        self.decision = decision
        self.previous = previous


class Fallbacks:
    """The fallbacks of all routes in one worker."""

    def __init__(
        self,
        routers: RoleRouters,
        outlier_detector: OutlierDetector,
        telemetry: MetricsRecorder,
        visible_models: ModelVisibility,
        limit_gate: LimitGate,
    ) -> None:
        self._routers = routers
        self._outlier_detector = outlier_detector
        self._telemetry = telemetry
        self._visible_models = visible_models
        self._limit_gate = limit_gate
        self._graphs: dict[int, tuple[Route, FallbackGraph]] = {}

    def take(
        self, context: RequestContext | None, error: GatewayError, caller: Caller | None, now: float
    ) -> FallbackRequest | None:
        """Takes a further fallback of a request; returns None if the request ends with the error.

        The request at the model before is over then: its limits are settled, and nothing charged.
        context: None if the error came before the model of the request was known.
        """
        decision = self._choose_after_error(context, error, caller, now)
        if decision is None:
            return None
        step = decision.steps[-1]
        self._telemetry.record_fallback(step.failed, step.kind, step.model)
        if context is not None:
            if context.address is not None:
                cause = context.failures[-1].cause if context.failures else _NO_ATTEMPT
                self._telemetry.record_retry(step.failed, context.address.id, cause)
            context.is_handed_over = True
            self._limit_gate.settle(context)
        return FallbackRequest(decision, context)

    def _choose_after_error(
        self, context: RequestContext | None, error: GatewayError, caller: Caller | None, now: float
    ) -> RouteDecision | None:
        if error.next_route is not None:
            return error.next_route
        decision = error.route if context is None else context.request.route
        if decision is None or decision.target is None:
            return None
        kind = _unserved_kind(error, decision) if context is None else _failure_kind(context, error, now)
        return None if kind is None else self._choose_next(decision, kind, caller, context, now)

    def can_leave(self, timeout: StallTimeout, now: float) -> bool:
        """Returns whether another model can take a request whose instance sends nothing."""
        decision = timeout.request.route
        if decision is None or decision.target is None:
            return False
        return self._choose_next(decision, UNAVAILABLE, timeout.client, None, now) is not None

    def raise_if_refused(self, context: RequestContext, engine_response: EngineResponse, now: float) -> None:
        """Raises a BadRequest with the next model as `next_route`, if the engine refused the
        request and that model may answer instead.
        """
        decision = context.request.route
        if decision is None or decision.target is None:
            return
        kind = _refusal_kind(engine_response)
        if kind is None:
            return
        following = self._choose_next(decision, kind, context.http_request.caller, context, now)
        if following is not None:
            raise _refusal_with_next(following)

    def _choose_next(
        self, decision: RouteDecision, kind: str, caller: Caller | None, context: RequestContext | None, now: float
    ) -> RouteDecision | None:
        route = self._visible_models.of(caller).fleet.routes.get(decision.route)
        if route is None or not route.fallbacks or decision.target is None:
            return None
        steps = decision.steps
        failed: str = steps[-1].model if steps else decision.target
        failures = {step.failed: step.kind for step in steps}
        failures[failed] = kind
        graph = self._cached_graph(route)
        weights = self._usable_model_weights(
            graph, failures, 0.0 if context is None else context.route_request.prompt_tokens, now
        )
        choice = graph.shortest_path(failures, weights)
        if caller is not None and not caller.tenant.may_leave_cluster:
            withheld = list(decision.withheld)
            while choice is not None and self._leaves_cluster(choice.model):
                withheld.append(choice.model)
                del weights[choice.model]
                choice = graph.shortest_path(failures, weights)
            decision.withheld = tuple(dict.fromkeys(withheld))
        if choice is None:
            return None
        reason = f"of the least weight ({choice.weight:.3g})"
        if choice.failed != failed:
            reason += f", as a fallback of {choice.failed}"
        passed = [model for model in choice.passed if model not in decision.withheld]
        if passed:
            reason += f", past {', '.join(passed)} without a ready instance"
        return decision.with_step(FallbackStep(failed, kind, choice.model, reason))

    def _leaves_cluster(self, key: str) -> bool:
        model = self._routers.fleet.models.get(key)
        return model is not None and model.leaves_cluster

    def _cached_graph(self, route: Route) -> FallbackGraph:
        """Returns the graph of a route, which is made once for each version of it."""
        known = self._graphs.get(id(route))
        if known is not None and known[0] is route:
            return known[1]
        if len(self._graphs) >= _MAX_GRAPHS:
            self._graphs.clear()
        graph = FallbackGraph(fallback_edges(route))
        self._graphs[id(route)] = (route, graph)
        return graph

    def _usable_model_weights(
        self, graph: FallbackGraph, failures: Mapping[str, str], prompt_tokens: float, now: float
    ) -> dict[str, float]:
        """Returns the weights of the models that can answer."""
        fleet = self._routers.fleet
        models: dict[str, Model] = {}
        for key in graph.models():
            model = fleet.models.get(key)
            if model is not None and key not in failures:
                models[key] = model
        prices = {key: float(model.price.input + model.price.output) for key, model in models.items() if model.price}
        cheapest = min((price for price in prices.values() if price > 0.0), default=1.0)
        weights: dict[str, float] = {}
        for key, model in models.items():
            share, seconds = self._ready_share_and_latency(fleet, model, key, prompt_tokens, now)
            weight = fallback_weight(share, max(1.0, prices.get(key, cheapest) / cheapest), seconds)
            if isfinite(weight):
                weights[key] = weight
        return weights

    def _ready_share_and_latency(
        self, fleet: Fleet, model: Model, key: str, prompt_tokens: float, now: float
    ) -> tuple[float, float]:
        """Returns the share of a model's instances that can answer, and its predicted latency."""
        ready, detector = self._routers.ready_instances(key), self._outlier_detector
        usable = [name for name in ready if detector.health(name, now)[0] is not HealthState.EJECTED]
        router = self._routers.router(key)
        if not usable or router is None:
            return (1.0, WAKING_SECONDS) if model.wakes and not ready else (0.0, 0.0)
        profiles = [instance.profile for name, instance in ready.items() if instance.profile is not None]
        tokens = max(1.0, prompt_tokens)
        prefill = profiles[0].prefill_time(tokens) if profiles else tokens * _PROMPT_TOKEN_SECONDS
        return len(usable) / len(fleet.instances[key]), router.least_backlog_seconds() + prefill


def fallback_header(route: RouteDecision | None) -> str:
    """Returns the header line with the models that have not answered, in order, each with the kind
    of its failure. Last come those that the tenant refuses. Empty without any.
    """
    if route is None or not (route.steps or route.withheld):
        return ""
    withheld = route.withheld
    failed = [
        f"{sanitize_header_value(step.failed)} {step.kind}" for step in route.steps if step.failed not in withheld
    ]
    failed += [f"{sanitize_header_value(model)} {_EXTERNAL_REFUSED}" for model in withheld]
    return f"x-fairlead-fallback: {', '.join(failed)}\r\n"


def _unserved_kind(error: GatewayError, decision: RouteDecision) -> str | None:
    """Returns the kind of a failure before a request had a model; None if it ends with it."""
    if isinstance(error, RouteWithoutTarget | ExternalRefused):
        return UNAVAILABLE
    # Mistakes of the client were found at the target: only the fallback takes no such fields.
    return REFUSED if isinstance(error, BadRequest) and decision.steps else None


def _failure_kind(context: RequestContext, error: GatewayError, now: float) -> str | None:
    """Returns the kind of a failure; None if the request ends with it.

    None: the deadline has passed, the first byte was sent, or two engines broke off on the request.
    """
    failures, response = context.failures, context.response
    if (response.started and not response.is_waiting) or response.finished or isinstance(error, QuarantinedRequest):
        return None
    if context.deadline is not None and now >= context.deadline:
        return None
    if sum(failure.crashed for failure in (*context.earlier_failures, *failures)) >= MAX_CRASHES:
        return None
    if isinstance(error, RequestShed):
        return DEADLINE_UNATTAINABLE
    if isinstance(error, Overloaded):
        return None if failures and failures[-1].is_local else NO_CAPACITY
    if isinstance(error, NoReadyInstance | EngineFailed):
        return UNAVAILABLE
    if isinstance(error, EngineTimeout):
        return UNAVAILABLE if failures and not failures[-1].is_final else None
    return None


def _refusal_with_next(following: RouteDecision) -> BadRequest:
    """Returns the error of a request that its route gives to another model."""
    error = BadRequest("the engine has refused the request", code="engine_refused")
    error.next_route = following
    return error


def _refusal_kind(engine_response: EngineResponse) -> str | None:
    """Returns the kind of an engine's refusal; None if it has not refused the request."""
    error = engine_response.in_band_error
    if error is not None:
        if error.status >= 500:
            return None
        status, text = error.status, error.message.encode("utf-8", "replace")
    elif 400 <= engine_response.status < 500:
        status, text = engine_response.status, engine_response.buffered_body
    else:
        return None
    if status == 429:
        return NO_CAPACITY
    return CONTEXT_TOO_LONG if _TOO_LONG.search(text[:_SCANNED_BYTES]) is not None else REFUSED
