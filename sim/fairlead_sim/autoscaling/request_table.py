"""The requests of one autoscaling run: their arrivals, and a table of what happened to them."""

from collections.abc import Sequence
from dataclasses import dataclass

NOT_YET = -1.0


@dataclass(frozen=True, slots=True)
class ArrivalTrace:
    """Requests in order of arrival: seconds from the start, and tokens of prompt and answer
    (≥ 1).
    """

    arrivals: Sequence[float]
    prompts: Sequence[int]
    outputs: Sequence[int]

    def __len__(self) -> int:
        return len(self.arrivals)


class RequestTable:
    """The requests of one run, as columns. A request is named by its index; a time that
    has not come is ``NOT_YET``.

    - sent: when a gateway last sent it to an engine; ``first``, ``end``: the client's first and
      last token.
    - prefilled: completed prefills (time, request), which the plant transfers.
    - computed_at_decode: 1 for a request whose prompt its decode engine computes.
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
        return self.first[request] < 0.0 and now > self.arrival[request] + self.patience_seconds
