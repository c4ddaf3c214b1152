"""What arrives at a simulated model and what became of it: a load, and the book of a run over it."""

from collections.abc import Sequence
from dataclasses import dataclass

NOT_YET = -1.0


@dataclass(frozen=True, slots=True)
class ArrivalTrace:
    """Requests in the order of arrival: seconds from the start, tokens of prompt and of answer (at least one of each)."""

    arrivals: Sequence[float]
    prompts: Sequence[int]
    outputs: Sequence[int]

    def __len__(self) -> int:
        return len(self.arrivals)


class RequestTable:
    """A load being served. Times are seconds, ``NEVER`` = it has not happened; a request is named by its place in the load.

    ``sent`` is when a gateway last handed it to an engine, ``first`` when the client had its first token, ``end`` its last.
    ``prefilled`` collects what prefill engines have done, (when, request), for the plant to hand on; ``kept`` is 1 of a request whose
    prompt the decode engine computes that answers it.
    """

    def __init__(self, load: ArrivalTrace, patience_seconds: float) -> None:
        count = len(load)
        self.arrival: list[float] = list(load.arrivals)
        self.prompt: list[int] = list(load.prompts)
        self.output: list[int] = list(load.outputs)
        self.sent: list[float] = [NOT_YET] * count
        self.first: list[float] = [NOT_YET] * count
        self.end: list[float] = [NOT_YET] * count
        self.patience_seconds = patience_seconds
        self.abandoned = 0
        self.lost = 0
        self.prefilled: list[tuple[float, int]] = []
        self.computed_at_decode = bytearray(count)

    def has_given_up(self, request: int, now: float) -> bool:
        """Whether its client has given up waiting for a first token."""
        return self.first[request] < 0.0 and now > self.arrival[request] + self.patience_seconds
