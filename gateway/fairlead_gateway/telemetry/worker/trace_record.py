"""The record of one sampled request while it runs: its engines, their times and errors."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.fleet.model import Instance
from fairlead_gateway.http import trace_context

ATTEMPT, CONTINUATION, PREFILL = "attempt", "continuation", "prefill"
"""The kinds of spans."""


@dataclass(slots=True)
class SpanRecord:
    """One request to an engine. Times are monotonic seconds.

    kind: `ATTEMPT`, `CONTINUATION` or `PREFILL`.
    ended_at: None until it has ended.
    error: None unless it failed.
    """

    span_id: str
    instance: Instance
    kind: str
    rule: str
    started_at: float
    ended_at: float | None = None
    error: str | None = None


@dataclass(slots=True)
class TraceRecord:
    """The trace of one request. Ids are lower-case hexadecimal.

    parent_id: empty if the trace begins here.
    draw_bits: returns a random number of that many bits.
    """

    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    state: str
    now: Callable[[], float]
    draw_bits: Callable[[int], int]
    spans: list[SpanRecord] = field(default_factory=list)

    def start_span(self, instance: Instance, kind: str, rule: str) -> str:
        """Records a request to an engine; returns the header lines with its context."""
        span = SpanRecord(random_id(self.draw_bits, 64), instance, kind, rule, self.now())
        self.spans.append(span)
        return trace_context.sampled_header(self.trace_id, span.span_id, self.flags, self.state)

    def finish_span(self, kind: str, error: str | None) -> None:
        """Records the end of the last open span of that kind, if one is open.

        error: one word for what went wrong.
        """
        for span in reversed(self.spans):
            if span.kind == kind and span.ended_at is None:
                span.ended_at, span.error = self.now(), error
                return

    @property
    def response_header(self) -> str:
        return f"traceresponse: 00-{self.trace_id}-{self.span_id}-01\r\n"


def random_id(draw_bits: Callable[[int], int], bits: int) -> str:
    return f"{draw_bits(bits) or 1:0{bits // 4}x}"
