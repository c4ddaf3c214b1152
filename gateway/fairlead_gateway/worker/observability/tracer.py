"""Spans of the requests that are sampled; for all others nothing of this exists.

Whether a request is sampled is decided before any object is made: as its caller did, where it sent a right ``traceparent``, else by
chance. A sampled one has a span of its own (server), one for every engine that was asked (client), and one for every prefill
leg. They hold ids, names, counts and times, never a prompt, and leave through ``otlp`` when the request is over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead_gateway.http import trace_context
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.worker.observability.trace_record import PREFILL, SpanRecord, TraceRecord, random_id
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.upstream.request_encoder import forwarded_headers

AttributeValue = str | int | float | bool
KIND_SERVER, KIND_CLIENT = 2, 3
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
PROVIDER = "fairlead"
_MAX_PATH_CHARS = 200


@dataclass(slots=True)
class Span:
    """One span; ``began`` and ``ended`` are Unix seconds, ids lower-case hexadecimal, ``kind`` as OTLP numbers it."""

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
    """Decides what is sampled, and hands finished spans to ``export``. ``draw`` gives random numbers of so many bits."""

    def __init__(
        self,
        *,
        sample_share: float,
        now: Callable[[], float],
        draw: Callable[[int], int],
        export: Callable[[list[Span]], None],
    ) -> None:
        self._sample_threshold = int(sample_share * (1 << 53))
        self._now = now
        self._draw = draw
        self._export = export

    def start_trace(self, http_request: HttpRequest) -> TraceRecord | None:
        """The trace of a request that is sampled; its own context then takes the place of the client's."""
        head = http_request.head
        found = trace_context.extract_context(head.fields) if head.get(trace_context.TRACEPARENT) is not None else None
        if not (found.is_sampled if found is not None else self._draw(53) < self._sample_threshold):
            return None
        if found is not None:
            head.forwarded_fields = forwarded_headers(head, traced=True)
        span_id = random_id(self._draw, 64)
        if found is None:
            return TraceRecord(random_id(self._draw, 128), span_id, "", 1, "", self._now, self._draw)
        return TraceRecord(found.trace_id, span_id, found.span_id, found.flags, found.state, self._now, self._draw)

    def on_finished(self, context: RequestContext, outcome: RequestOutcome) -> None:
        """A request that was routed is over."""
        if context.trace is not None:
            self._export(_build_spans(context, context.trace, outcome.status, outcome.error, self._now(), outcome))

    def on_rejected(self, context: RequestContext, status: int, error: str) -> None:
        """A request that was sampled never reached an engine."""
        if context.trace is not None:
            self._export(_build_spans(context, context.trace, status, error, self._now(), None))


def _build_spans(
    context: RequestContext,
    found: TraceRecord,
    status: int,
    error: str | None,
    now: float,
    outcome: RequestOutcome | None,
) -> list[Span]:
    offset = context.http_request.received_wall - context.http_request.received_at
    operation = _OPERATIONS.get(context.http_request.head.path, context.http_request.head.path.rpartition("/")[2][:64])
    name = f"{operation} {context.request.model.name}"
    own = Span(
        found.trace_id,
        found.span_id,
        found.parent_id,
        found.state,
        name,
        KIND_SERVER,
        context.http_request.received_wall,
        now + offset,
        error if status >= 500 or (status < 400 and error is not None) else None,
        _request_attributes(context, operation, status, error, outcome),
    )
    steps = [_attempt_span(context, found, step, operation, now, offset) for step in found.spans]
    return [own, *steps]


def _request_attributes(
    context: RequestContext, operation: str, status: int, error: str | None, outcome: RequestOutcome | None
) -> dict[str, AttributeValue]:
    head = context.http_request.head
    optional: dict[str, AttributeValue | None] = {
        "error.type": error,
        "gen_ai.request.max_tokens": context.request.max_tokens,
        "fairlead.caller": context.http_request.caller,
        "fairlead.instance": context.instance.id if context.instance is not None else None,
        "fairlead.rule": context.decision.rule if context.decision is not None else None,
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
        "fairlead.request_id": context.id,
    }
    return required | {key: value for key, value in optional.items() if value is not None}


def _attempt_span(
    context: RequestContext, found: TraceRecord, step: SpanRecord, operation: str, now: float, offset: float
) -> Span:
    address = urlsplit(step.instance.url)
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": step.instance.engine,
        "gen_ai.request.model": context.request.model_key,
        "server.address": address.hostname or "",
        "server.port": address.port or (443 if address.scheme == "https" else 80),
        "fairlead.instance": step.instance.id,
        "fairlead.step": step.kind,
        "fairlead.rule": step.rule,
    }
    broke = (
        step.ended_at is None
        and step.kind != PREFILL
        and not context.client_disconnected
        and context.error != "engine-refused"
    )
    why = context.error if broke else step.error
    if why is not None:
        attributes["error.type"] = why
    return Span(
        found.trace_id,
        step.span_id,
        found.span_id,
        found.state,
        f"{step.kind} {context.request.model.name}",
        KIND_CLIENT,
        step.started_at + offset,
        (now if step.ended_at is None else step.ended_at) + offset,
        why,
        attributes,
    )
