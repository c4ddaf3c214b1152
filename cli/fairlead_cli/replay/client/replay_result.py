"""The result of one replayed request, shared by client, simulator and report."""

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReplayResult:
    """The result of one replayed request. Times are seconds on the run's clock, wall or simulated;
    None when the event did not happen.

    ttft_seconds: from the time when the request was due, so that a late client does not flatter the
    server.

    gaps: seconds between tokens, one fewer than tokens.
    """

    id: str
    due_seconds: float
    prompt_tokens: int
    instance: str | None = None
    ttft_seconds: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    finished_seconds: float | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    status: int | None = None
    reason: str | None = None
    late_seconds: float = 0.0

    @property
    def itl_mean_seconds(self) -> float | None:
        """TPOT of this request; None with fewer than two tokens."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else None
