"""A simulated request: in flight, and its result."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.workload.traces import TraceRequest


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The result of one request, in simulated seconds.

    - error: set if no engine took the request, or if the answer was cut.
    - finish: seconds since the start of the simulation.
    - step_ends, spans: token i of span s came at ``step_ends[spans[s][0] + i]``. A preempted
      request has several spans.
    """

    id: str
    arrival: float
    instance: str | None
    ttft_seconds: float | None
    finish: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None
    step_ends: Sequence[float]
    spans: tuple[tuple[int, int], ...]
    preemptions: int = 0
    retries: int = 0

    @property
    def token_times(self) -> "array[float]":
        """Returns the time of each token."""
        times: array[float] = array("d")
        for begin, end in self.spans:
            times.extend(self.step_ends[begin:end])
        return times

    @property
    def token_gaps(self) -> "array[float]":
        """Returns the seconds between tokens, in order."""
        times = self.token_times
        return array("d", [later - earlier for earlier, later in pairwise(times)])

    @property
    def tpot_seconds(self) -> float | None:
        """Returns the mean gap between tokens; None for an answer of one token."""
        tokens = sum([end - begin for begin, end in self.spans])
        if tokens < 2:
            return None
        return (self.step_ends[self.spans[-1][1] - 1] - self.step_ends[self.spans[0][0]]) / (tokens - 1)


class InflightRequest:
    """One request in flight: its route and the times of its tokens."""

    __slots__ = (
        "_span_begin",
        "_spans",
        "error",
        "finish",
        "first_token_at",
        "instance",
        "is_ended",
        "request",
        "retries",
        "sequence",
        "step_ends",
    )

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        self.instance: str | None = None
        self.error: str | None = None
        self.is_ended = False
        self.sequence: EngineSequence | None = None
        self.first_token_at: float | None = None
        self.finish: float | None = None
        self.retries = 0
        self.step_ends: array[float] = array("d")
        self._span_begin = -1
        self._spans: list[tuple[int, int]] = []

    def is_current(self, sequence: EngineSequence) -> bool:
        return self.sequence is sequence and not self.is_ended

    def begin_span(self, index: int) -> None:
        self._span_begin = index

    def end_span(self, index: int) -> None:
        """Notes that the request gets no token at the end of this step or of a later one."""
        if self._span_begin >= 0:
            self._spans.append((self._span_begin, index))
            self._span_begin = -1

    def result(self) -> RequestResult:
        """Returns the result of the ended request."""
        request, sequence = self.request, self.sequence
        return RequestResult(
            id=request.id,
            arrival=request.arrival,
            instance=self.instance,
            ttft_seconds=None if self.first_token_at is None else self.first_token_at - request.arrival,
            finish=self.finish,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=sequence.cached_tokens if sequence else 0,
            output_tokens=sequence.generated if sequence else 0,
            error=self.error,
            step_ends=self.step_ends,
            spans=tuple(self._spans),
            preemptions=sequence.preemptions if sequence else 0,
            retries=self.retries,
        )
