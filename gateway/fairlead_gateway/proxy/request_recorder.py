"""Records each request once: its choices when they are made, its outcome when it has ended."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from fairlead.decision import Decision, DecisionText
from fairlead.limits import Limits
from fairlead_gateway.caller_key import caller_name
from fairlead_gateway.errors import ExternalRefused, FieldRefused, GatewayError
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.limits.worker.amounts import GeneratedTokens
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.routing.prefix.prefix_hash import estimated_tokens
from fairlead_gateway.telemetry import MetricsRecorder, RequestOutcome, assess_attainment
from fairlead_gateway.telemetry.counters import UNFINISHED
from fairlead_gateway.telemetry.decision_log import DecisionLog, DecisionRecord
from fairlead_gateway.telemetry.handoff_record import FAILED
from fairlead_gateway.upstream.engine_address import EngineAddress
from fairlead_gateway.upstream.request_encoder import forward_headers

CLIENT_CLOSED_STATUS: Final = 499
LOGGED_REFUSAL_SECONDS: Final = 0.1
"""Between two refused requests in the log: a flood of them must not fill it."""
_MAX_NAME_BYTES: Final = 64
"""Bytes of a header's name that are recorded. Clients choose names, and thousands are kept."""

OnFinished = Callable[[RequestContext], None]


class CopyLifecycle:
    """The owner of copied requests; its methods are called for the originals.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def on_chosen(self, context: RequestContext) -> None:
        """Notes the first choice of an instance for a request that may be copied."""

    @abstractmethod
    def on_original_ended(self, context: RequestContext) -> None:
        """Notes the end of a request that may have been copied."""


class RequestRecorder:
    """The writer of choices and outcomes to the metrics, the decision log and the observers.

    on_finished: called last, with each request that was routed; must neither wait nor raise.
    copies: copies requests of routes; set by the gateway.
    """

    def __init__(
        self,
        telemetry: MetricsRecorder,
        decisions: DecisionLog,
        limits: Limits,
        on_finished: tuple[OnFinished, ...] = (),
    ) -> None:
        self.telemetry = telemetry
        self.decisions = decisions
        self._generated_tokens = GeneratedTokens(limits)
        self._on_finished = on_finished
        self._refusal_logged_at = -LOGGED_REFUSAL_SECONDS
        self.limit_gate: LimitGate | None = None
        self.copies: CopyLifecycle | None = None

    def record_choice(
        self,
        context: RequestContext,
        address: EngineAddress,
        decision: Decision,
        number: int,
        prompt_tokens: float,
        now: float,
    ) -> None:
        """Makes the choice of an instance the request's current one; counts and logs it."""
        key, http_request = context.request.model_key, context.http_request
        self.telemetry.record_routed(key, address.id, decision, now)
        record = context.choice = DecisionRecord(
            context.id,
            http_request.received_wall,
            key,
            decision,
            number,
            _round_half_even(prompt_tokens),
            None if http_request.caller is None else http_request.caller.name,
            None if context.handoff is None else context.handoff.record,
        )
        context.address = address
        route = context.request.route
        if route is not None:
            record.route = route
            if route.shadow is not None and self.copies is not None and number == 1 and not route.steps:
                self.copies.on_chosen(context)
        if http_request.id != context.id:
            record.client_id = http_request.id
        if http_request.head.forwarded_fields is None:
            forward_headers(http_request.head)
        if context.request.removed or http_request.head.dropped_fields:
            record.kept_back = self._record_kept_back(context, number == 1)
        self.decisions.append(record, context.result)

    def _record_kept_back(self, context: RequestContext, is_first: bool) -> tuple[str, ...]:
        """Returns the fields and headers that engines do not get; counts them once a request."""
        removed, allowed = context.request.removed, context.request.entry.allowed_headers
        dropped = [
            name[:_MAX_NAME_BYTES].decode() for name in context.http_request.head.dropped_fields if name not in allowed
        ]
        if is_first and not context.earlier_attempts:
            for name in removed:
                self.telemetry.record_kept_back(context.request.model_key, "removed-field", name)
            for name in dropped:
                self.telemetry.record_kept_back(context.request.model_key, "dropped-header", name)
        return (*[f"field {name}" for name in removed], *[f"header {name}" for name in dropped])

    def record_refusal(self, context: RequestContext, error: GatewayError) -> None:
        """Logs a request that a limit of its tenant has refused, without an instance."""
        self._log_refusal(
            context.http_request, error, _refused_record(context, Decision(None, "limit", DecisionText(str(error))))
        )

    def record_unserved(self, http_request: HttpRequest, context: RequestContext | None, error: GatewayError) -> None:
        """Logs a request that no instance has got.

        Its last fallback has refused it, it was withheld from external endpoints, a field of it was
        refused, or no engine could take it.

        context: None if the error came before it.
        """
        if context is None:
            if isinstance(error, FieldRefused):
                self.telemetry.record_kept_back(error.key, "refused-field", error.param or "unknown")
            elif not isinstance(error, ExternalRefused):
                return
            if self._may_log_refusal(http_request):
                self._log_refusal(http_request, error, _unrouted_record(http_request, error))
            return
        route = context.request.route
        if route is not None and (route.steps or route.withheld):
            decision = Decision(None, "fallback", DecisionText(str(error)))
            self._log_refusal(http_request, error, _refused_record(context, decision))
        elif error.status >= 500 and self._may_log_refusal(http_request):
            decision = Decision(None, "unserved", DecisionText(str(error)))
            self._log_refusal(http_request, error, _refused_record(context, decision))

    def _may_log_refusal(self, http_request: HttpRequest) -> bool:
        if http_request.received_at - self._refusal_logged_at < LOGGED_REFUSAL_SECONDS:
            return False
        self._refusal_logged_at = http_request.received_at
        return True

    def _log_refusal(self, http_request: HttpRequest, error: GatewayError, record: DecisionRecord) -> None:
        if http_request.id != record.request_id:
            record.client_id = http_request.id
        outcome = RequestOutcome(record.request_id, record.model_key, http_request.received_wall)
        outcome.status, outcome.error = error.status, error.code
        self.decisions.append(record, outcome)
        self.decisions.complete(outcome)

    def record_outcome(self, context: RequestContext, now: float) -> None:
        """Settles a request with its tenant's limits, and records how it ended.

        Records nothing if no instance was ever chosen for it.
        """
        choice, result = context.choice, context.result
        if result.prompt_tokens is None and self.limit_gate is not None:
            result.estimated_prompt = self.limit_gate.estimate_prompt(context)
        if result.output_tokens is None:
            result.estimated_tokens = self._generated_tokens.estimate(context, now)
            if context.request.runs_on and result.dispatched_at is not None:
                self.telemetry.record(context.request.model_key, UNFINISHED)
        elif context.request.stream:
            self._generated_tokens.learn(context)
        if context.reservation is not None and self.limit_gate is not None:
            self.limit_gate.settle(context)
        route = context.request.route
        if route is not None and route.shadow is not None and self.copies is not None:
            self.copies.on_original_ended(context)
        if choice is None or context.address is None:
            return
        prompt, output = result.prompt_tokens, result.output_tokens
        received_at, is_stream = context.http_request.received_at, context.request.stream
        ttft = result.first_at - received_at if is_stream and result.first_at is not None else None
        tokens = (output or result.event_count) // context.route_request.sequences  # answers share each step
        tpot = None if ttft is None else tpot_seconds(result, tokens)
        failed = result.status >= 500 or result.error is not None
        refused = 400 <= result.status < 500
        attainment = None
        if not refused and not result.client_disconnected and (is_stream or failed):
            attainment = assess_attainment(
                context.request.model.objectives,
                prompt_tokens=prompt if prompt is not None else context.route_request.prompt_tokens,
                ttft_seconds=ttft,
                itl_mean_seconds=tpot,
                failed=failed,
            )
        if result.client_disconnected:
            result.status, result.error = CLIENT_CLOSED_STATUS, "client-gone"
        result.instance_id = context.address.id
        result.duration_seconds = now - received_at
        result.ttft_seconds = ttft
        result.itl_mean_seconds = tpot
        if context.handoff is not None and context.handoff.is_transferred:
            result.cached_tokens = None  # of a prompt whose KV was transferred, they mean nothing
        result.attempts = choice.attempt
        result.overhead_seconds = _overhead_seconds(context)
        if attainment is not None:
            result.within_objective = attainment.both
            result.within_ttft, result.within_itl = attainment.ttft, attainment.itl
        if context.failures or context.earlier_failures:
            failures = [*context.earlier_failures, *context.failures]
            result.failures = tuple([(failure.instance_id, failure.cause) for failure in failures])
        self.telemetry.record_finished(result, now)
        if route is not None:
            self.telemetry.record_route(result.model_key, result.status, route.route)
        self.decisions.complete(result)
        for on_finished in self._on_finished:
            on_finished(context)


def _refused_record(context: RequestContext, decision: Decision) -> DecisionRecord:
    http_request, key = context.http_request, context.request.model_key
    tokens = _round_half_even(context.route_request.prompt_tokens)
    number, caller = context.earlier_attempts + 1, caller_name(http_request.caller)
    record = DecisionRecord(context.id, http_request.received_wall, key, decision, number, tokens, caller)
    record.route = context.request.route
    return record


def _unrouted_record(http_request: HttpRequest, error: ExternalRefused | FieldRefused) -> DecisionRecord:
    """Returns the record of a request that was refused before routing saw it.

    Its tokens are those of its whole body.
    """
    name, text = http_request.internal_id, DecisionText(str(error))
    decision = Decision(None, "field" if isinstance(error, FieldRefused) else "external", text)
    tokens, caller = estimated_tokens(http_request.body), caller_name(http_request.caller)
    number = 1 if error.route is None else len(error.route.steps) + 1
    record = DecisionRecord(name, http_request.received_wall, error.key, decision, number, tokens, caller)
    record.route = error.route
    return record


def _overhead_seconds(context: RequestContext) -> float | None:
    """Returns the seconds that the gateway itself took before the dispatch, without its queues.

    None without a dispatch, or if they are mixed with an engine's time, as after a failure.
    """
    if context.result.dispatched_at is None or context.failures:
        return None
    spent = context.result.dispatched_at - context.http_request.received_at - context.result.queued_seconds
    record = context.handoff_record
    if record is None:
        return spent
    return spent - record.waited_seconds if record.outcome != FAILED else None


def tpot_seconds(result: RequestOutcome, tokens: int) -> float | None:
    """Returns the mean seconds per output token; None without a second token."""
    first_at, last_at = result.first_at, result.last_at
    if first_at is None or last_at is None or tokens < 2:
        return None
    return (last_at - first_at) / (tokens - 1)


def _round_half_even(tokens: float) -> int:
    """Rounds like `round`, without the cost of the call."""
    whole = int(tokens)
    fraction = tokens - whole
    return whole + 1 if fraction > 0.5 or (fraction == 0.5 and whole % 2 == 1) else whole
