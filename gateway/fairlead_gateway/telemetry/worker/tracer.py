"""Spans of the requests that are sampled.

The tracer first decides whether a request is sampled: as its client did in a valid `traceparent`,
else at random. A sampled request has a server span, and a client span for every attempt,
continuation and prefill. Spans hold ids, names, counts and times, never a prompt. They are exported
when the request has ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead_gateway.caller_key import caller_name
from fairlead_gateway.http import trace_context
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.worker.trace_record import PREFILL, SpanRecord, TraceRecord, random_id
from fairlead_gateway.upstream.request_encoder import forward_headers

AttributeValue = str | int | float | bool
KIND_SERVER, KIND_CLIENT = 2, 3
PROVIDER = "fairlead"
_MAX_PATH_CHARS = 200


@dataclass(slots=True)
class Span:
    """One span. Times are Unix seconds, ids lower-case hexadecimal.

    kind: as OTLP numbers it.
    """

    trace_id: str
    span_id: str
    parent_id: str
    state: str
    name: str
    kind: int
    started_at: float
    ended_at: float
    error: str | None
    attributes: dict[str, AttributeValue]


class Tracer:
    """The tracer of a worker: it decides which requests are sampled, and exports their spans.

    draw_bits: returns a random number of that many bits.
    """

    def __init__(
        self,
        *,
        sample_share: float,
        now: Callable[[], float],
        draw_bits: Callable[[int], int],
        export: Callable[[list[Span]], None],
    ) -> None:
        self._sample_threshold = int(sample_share * (1 << 53))
        self._now = now
        self._draw_bits = draw_bits
        self._export = export

    def start_trace(self, http_request: HttpRequest) -> TraceRecord | None:
        """Returns the trace of a request; None if it is not sampled.

        The context of the trace then replaces the client's in requests to engines.
        """
        head = http_request.head
        parent = trace_context.extract_context(head.fields) if head.get(trace_context.TRACEPARENT) is not None else None
        if not (parent.is_sampled if parent is not None else self._draw_bits(53) < self._sample_threshold):
            return None
        if parent is not None:
            forward_headers(head, traced=True)
        draw, span_id = self._draw_bits, random_id(self._draw_bits, 64)
        if parent is None:
            return TraceRecord(random_id(draw, 128), span_id, "", 1, "", self._now, draw)
        return TraceRecord(parent.trace_id, span_id, parent.span_id, parent.flags, parent.state, self._now, draw)

    def on_finished(self, context: RequestContext) -> None:
        """Exports the spans of a request that was routed and has ended."""
        outcome = context.result
        if context.trace is not None:
            self._export(_build_spans(context, context.trace, outcome.status, outcome.error, self._now(), outcome))

    def on_rejected(self, context: RequestContext, status: int, error: str) -> None:
        if context.trace is not None:
            self._export(_build_spans(context, context.trace, status, error, self._now(), None))


def _build_spans(
    context: RequestContext,
    trace: TraceRecord,
    status: int,
    error: str | None,
    now: float,
    outcome: RequestOutcome | None,
) -> list[Span]:
    wall_offset = context.http_request.received_wall - context.http_request.received_at
    operation = context.request.dialect.operation or context.http_request.head.path.rpartition("/")[2][:64]
    name = f"{operation} {context.request.model.name}"
    server_span = Span(
        trace.trace_id,
        trace.span_id,
        trace.parent_id,
        trace.state,
        name,
        KIND_SERVER,
        context.http_request.received_wall,
        now + wall_offset,
        error if status >= 500 or (status < 400 and error is not None) else None,
        _request_attributes(context, operation, status, error, outcome),
    )
    return [server_span, *(_engine_span(context, trace, span, operation, now, wall_offset) for span in trace.spans)]


def _request_attributes(
    context: RequestContext, operation: str, status: int, error: str | None, outcome: RequestOutcome | None
) -> dict[str, AttributeValue]:
    head, choice, address = context.http_request.head, context.choice, context.address
    optional: dict[str, AttributeValue | None] = {
        "error.type": error,
        "gen_ai.request.max_tokens": context.request.max_tokens,
        "fairlead.caller": caller_name(context.http_request.caller),
        "fairlead.instance": address.id if address is not None else None,
        "fairlead.rule": choice.decision.rule if choice is not None else None,
    }
    if context.handoff_record is not None:
        optional |= {
            "fairlead.handoff.outcome": context.handoff_record.outcome,
            "fairlead.handoff.reason": context.handoff_record.reason,
        }
    if outcome is not None:
        optional |= {
            "gen_ai.usage.input_tokens": outcome.prompt_tokens,
            "gen_ai.usage.output_tokens": outcome.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": outcome.cached_tokens,
            "gen_ai.response.time_to_first_chunk": outcome.ttft_seconds,
            "fairlead.cached_tokens.predicted": outcome.predicted_cached_tokens,
            "fairlead.overhead_seconds": outcome.overhead_seconds,
            "fairlead.queued_seconds": outcome.queued_seconds,
            "fairlead.attempts": outcome.attempts,
        }
    required: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": context.request.model_key,
        "gen_ai.request.stream": context.request.stream,
        "http.request.method": head.method,
        "url.path": head.path[:_MAX_PATH_CHARS],
        "http.response.status_code": status,
        "fairlead.request_id": context.http_request.id,
        "fairlead.decision": context.id,
    }
    return required | {key: value for key, value in optional.items() if value is not None}


def _engine_span(
    context: RequestContext, trace: TraceRecord, span: SpanRecord, operation: str, now: float, wall_offset: float
) -> Span:
    address, result = urlsplit(span.instance.url), context.result
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": span.instance.engine,
        "gen_ai.request.model": context.request.model_key,
        "server.address": address.hostname or "",
        "server.port": address.port or (443 if address.scheme == "https" else 80),
        "fairlead.instance": span.instance.id,
        "fairlead.step": span.kind,
        "fairlead.rule": span.rule,
    }
    failed_last = (
        span.ended_at is None
        and span.kind != PREFILL
        and not result.client_disconnected
        and result.error != "engine-refused"
    )
    error = result.error if failed_last else span.error
    if error is not None:
        attributes["error.type"] = error
    return Span(
        trace.trace_id,
        span.span_id,
        trace.span_id,
        trace.state,
        f"{span.kind} {context.request.model.name}",
        KIND_CLIENT,
        span.started_at + wall_offset,
        (now if span.ended_at is None else span.ended_at) + wall_offset,
        error,
        attributes,
    )
