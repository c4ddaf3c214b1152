"""What is written down of one sampled request while it runs: which engines were asked, when, for what, and how that ended."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.fleet import Instance
from fairlead_gateway import trace

ATTEMPT, CONTINUATION, PREFILL = "attempt", "continuation", "prefill"
"""What a step was for."""


@dataclass(slots=True)
class Step:
    """One engine that was asked. Times are monotonic seconds; ``ended`` is None until it is known, ``why`` unless it failed."""

    span_id: str
    instance: Instance
    what: str
    rule: str
    began: float
    ended: float | None = None
    why: str | None = None


@dataclass(slots=True)
class Trace:
    """Ids are lower-case hexadecimal; ``parent_id`` is empty where the trace begins here. ``draw`` gives random numbers of so many
    bits."""

    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    state: str
    now: Callable[[], float]
    draw: Callable[[int], int]
    steps: list[Step] = field(default_factory=list)

    def asked(self, instance: Instance, what: str, rule: str) -> str:
        """An engine is asked now: ready header text with the context that it is sent."""
        step = Step(new_id(self.draw, 64), instance, what, rule, self.now())
        self.steps.append(step)
        return trace.header(self.trace_id, step.span_id, self.flags, self.state)

    def ended(self, what: str, why: str | None) -> None:
        """The last step of that kind is over; ``why`` is one word for what went wrong."""
        for step in reversed(self.steps):
            if step.what == what and step.ended is None:
                step.ended, step.why = self.now(), why
                return

    @property
    def reply_field(self) -> str:
        """Ready header text for the client: which trace this was."""
        return f"traceresponse: 00-{self.trace_id}-{self.span_id}-01\r\n"


def new_id(draw: Callable[[int], int], bits: int) -> str:
    """A random id in hexadecimal; all zeros would mean none."""
    return f"{draw(bits) or 1:0{bits // 4}x}"
