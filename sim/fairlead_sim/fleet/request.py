"""What passes between a course and those around it: the front that chooses, a request on its way, and what became of it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.workload.traces import TraceRequest

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What became of one request; times in simulated seconds, ``finish`` since the simulation began.

    ``error`` is set when no engine could take it, or its answer was cut. Its tokens came at the ends of its engine's steps from
    ``spans[i][0]`` to before ``spans[i][1]``; more spans than one where it was preempted.
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
        """When each of its tokens came."""
        times: array[float] = array("d")
        for begin, end in self.spans:
            times.extend(self.step_ends[begin:end])
        return times

    @property
    def token_gaps(self) -> "array[float]":
        """The seconds between its tokens, in order."""
        times = self.token_times
        return array("d", [later - earlier for earlier, later in pairwise(times)])

    @property
    def tpot_seconds(self) -> float | None:
        """Mean of the gaps; None for an answer of one token."""
        tokens = sum([end - begin for begin, end in self.spans])
        if tokens < 2:
            return None
        return (self.step_ends[self.spans[-1][1] - 1] - self.step_ends[self.spans[0][0]]) / (tokens - 1)


class InflightRequest:
    """One request on its way: what it is, where it went, when its tokens came."""

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
        """Whether what happens to this sequence is still about the request: not when it has been cut, or sent elsewhere."""
        return self.sequence is sequence and not self.is_ended

    def begin_span(self, index: int) -> None:
        """From the end of this step on, each gives it a token."""
        self._span_begin = index

    def end_span(self, index: int) -> None:
        """The end of this step gives it none, nor do those after it."""
        if self._span_begin >= 0:
            self._spans.append((self._span_begin, index))
            self._span_begin = -1

    def result(self) -> RequestResult:
        """What became of it, once it has ended."""
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
