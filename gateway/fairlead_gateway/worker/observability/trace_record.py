"""What is written down of one sampled request while it runs: which engines were asked, when, for what, and how that ended."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.fleet.model import Instance
from fairlead_gateway.http import trace_context

ATTEMPT, CONTINUATION, PREFILL = "attempt", "continuation", "prefill"
"""What a step was for."""


@dataclass(slots=True)
class SpanRecord:
    """One engine that was asked. Times are monotonic seconds; ``ended`` is None until it is known, ``why`` unless it failed."""

    span_id: str
    instance: Instance
    kind: str
    rule: str
    started_at: float
    ended_at: float | None = None
    error: str | None = None


@dataclass(slots=True)
class TraceRecord:
    """Ids are lower-case hexadecimal; ``parent_id`` is empty where the trace begins here. ``draw`` gives random numbers of so many
    bits."""

    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    state: str
    now: Callable[[], float]
    draw: Callable[[int], int]
    spans: list[SpanRecord] = field(default_factory=list)

    def start_span(self, instance: Instance, kind: str, rule: str) -> str:
        """An engine is asked now: ready header text with the context that it is sent."""
        step = SpanRecord(random_id(self.draw, 64), instance, kind, rule, self.now())
        self.spans.append(step)
        return trace_context.sampled_header(self.trace_id, step.span_id, self.flags, self.state)

    def finish_span(self, kind: str, error: str | None) -> None:
        """The last step of that kind is over; ``why`` is one word for what went wrong."""
        for step in reversed(self.spans):
            if step.kind == kind and step.ended_at is None:
                step.ended_at, step.error = self.now(), error
                return

    @property
    def response_header(self) -> str:
        """Ready header text for the client: which trace this was."""
        return f"traceresponse: 00-{self.trace_id}-{self.span_id}-01\r\n"


def random_id(draw: Callable[[int], int], bits: int) -> str:
    """A random id in hexadecimal; all zeros would mean none."""
    return f"{draw(bits) or 1:0{bits // 4}x}"
