"""What became of one replayed request: the value between the client, the fleet simulator and the report."""

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReplayResult:
    """Times are seconds on the run's own clock (0 = start), wall or simulated; None = it never happened.

    ``ttft_seconds`` counts from when the request was *due*, so a client that falls behind cannot flatter the server.
    ``gaps`` are the seconds between tokens, one fewer than tokens.
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
        """Mean gap of this request (its TPOT); None with fewer than two tokens."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else None
