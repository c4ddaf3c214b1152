"""Spans of the requests that are sampled; for all others nothing of this exists.

Whether a request is sampled is decided before any object is made: as its caller did, where it sent a right ``traceparent``, else by
chance. A sampled one has a span of its own (server), one for every engine that was asked (client), and one for every prefill
leg. They hold ids, names, counts and times, never a prompt, and leave through ``otlp`` when the request is over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead_gateway import trace
from fairlead_gateway.job import Job
from fairlead_gateway.listen import Request
from fairlead_gateway.steps import PREFILL, Step, Trace, new_id
from fairlead_gateway.telemetry import Outcome
from fairlead_gateway.wire import fields_for_engines

Value = str | int | float | bool
SERVER, CLIENT = 2, 3
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
PROVIDER = "fairlead"
_PATH_CHARS = 200


@dataclass(slots=True)
class Span:
    """One span; ``began`` and ``ended`` are Unix seconds, ids lower-case hexadecimal, ``kind`` as OTLP numbers it."""

    trace_id: str
    span_id: str
    parent_id: str
    state: str
    name: str
    kind: int
    began: float
    ended: float
    error: str | None
    attributes: dict[str, Value]


class Tracer:
    """Decides what is sampled, and hands finished spans to ``export``. ``draw`` gives random numbers of so many bits."""

    def __init__(
        self,
        *,
        share: float,
        now: Callable[[], float],
        draw: Callable[[int], int],
        export: Callable[[list[Span]], None],
    ) -> None:
        self._below = int(share * (1 << 53))
        self._now = now
        self._draw = draw
        self._export = export

    def begin(self, request: Request) -> Trace | None:
        """The trace of a request that is sampled; its own context then takes the place of the client's."""
        head = request.head
        found = trace.context(head.fields) if head.get(trace.PARENT) is not None else None
        if not (found.sampled if found is not None else self._draw(53) < self._below):
            return None
        if found is not None:
            head.passed_on = fields_for_engines(head, traced=True)
        span_id = new_id(self._draw, 64)
        if found is None:
            return Trace(new_id(self._draw, 128), span_id, "", 1, "", self._now, self._draw)
        return Trace(found.trace_id, span_id, found.span_id, found.flags, found.state, self._now, self._draw)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A request that was routed is over."""
        if job.trace is not None:
            self._export(_spans(job, job.trace, outcome.status, outcome.error, self._now(), outcome))

    def refused(self, job: Job, status: int, error: str) -> None:
        """A request that was sampled never reached an engine."""
        if job.trace is not None:
            self._export(_spans(job, job.trace, status, error, self._now(), None))


def _spans(job: Job, found: Trace, status: int, error: str | None, now: float, outcome: Outcome | None) -> list[Span]:
    offset = job.request.wall - job.request.received
    operation = _OPERATIONS.get(job.request.head.path, job.request.head.path.rpartition("/")[2][:64])
    name = f"{operation} {job.ask.model.name}"
    own = Span(
        found.trace_id,
        found.span_id,
        found.parent_id,
        found.state,
        name,
        SERVER,
        job.request.wall,
        now + offset,
        error if status >= 500 or (status < 400 and error is not None) else None,
        _request_attributes(job, operation, status, error, outcome),
    )
    steps = [_step(job, found, step, operation, now, offset) for step in found.steps]
    return [own, *steps]


def _request_attributes(
    job: Job, operation: str, status: int, error: str | None, outcome: Outcome | None
) -> dict[str, Value]:
    head = job.request.head
    optional: dict[str, Value | None] = {
        "error.type": error,
        "gen_ai.request.max_tokens": job.ask.max_tokens,
        "fairlead.caller": job.request.caller,
        "fairlead.instance": job.instance.id if job.instance is not None else None,
        "fairlead.rule": job.decision.rule if job.decision is not None else None,
    }
    if job.story is not None:
        optional |= {"fairlead.handoff.outcome": job.story.outcome, "fairlead.handoff.reason": job.story.reason}
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
    required: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.ask.key,
        "gen_ai.request.stream": job.ask.stream,
        "http.request.method": head.method,
        "url.path": head.path[:_PATH_CHARS],
        "http.response.status_code": status,
        "fairlead.request_id": job.id,
    }
    return required | {key: value for key, value in optional.items() if value is not None}


def _step(job: Job, found: Trace, step: Step, operation: str, now: float, offset: float) -> Span:
    address = urlsplit(step.instance.url)
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": step.instance.engine,
        "gen_ai.request.model": job.ask.key,
        "server.address": address.hostname or "",
        "server.port": address.port or (443 if address.scheme == "https" else 80),
        "fairlead.instance": step.instance.id,
        "fairlead.step": step.what,
        "fairlead.rule": step.rule,
    }
    broke = step.ended is None and step.what != PREFILL and not job.client_gone and job.error != "engine-refused"
    why = job.error if broke else step.why
    if why is not None:
        attributes["error.type"] = why
    return Span(
        found.trace_id,
        step.span_id,
        found.span_id,
        found.state,
        f"{step.what} {job.ask.model.name}",
        CLIENT,
        step.began + offset,
        (now if step.ended is None else step.ended) + offset,
        why,
        attributes,
    )
