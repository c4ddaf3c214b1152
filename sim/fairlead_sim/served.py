"""What passes between a course and those around it: the front that chooses, a request on its way, and what became of it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from fairlead_sim.blocks import KvEvent
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.traces import TraceRequest

if TYPE_CHECKING:
    from fairlead_sim.course import Course


@dataclass(frozen=True, slots=True)
class Served:
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
    ends: Sequence[float]
    spans: tuple[tuple[int, int], ...]
    preemptions: int = 0
    retries: int = 0

    @property
    def times(self) -> "array[float]":
        """When each of its tokens came."""
        times: array[float] = array("d")
        for begin, end in self.spans:
            times.extend(self.ends[begin:end])
        return times

    @property
    def gaps(self) -> "array[float]":
        """The seconds between its tokens, in order."""
        times = self.times
        return array("d", [later - earlier for earlier, later in pairwise(times)])

    @property
    def itl_mean_seconds(self) -> float | None:
        """Mean of the gaps; None for an answer of one token."""
        tokens = sum([end - begin for begin, end in self.spans])
        if tokens < 2:
            return None
        return (self.ends[self.spans[-1][1] - 1] - self.ends[self.spans[0][0]]) / (tokens - 1)


class Flight:
    """One request on its way: what it is, where it went, when its tokens came."""

    __slots__ = (
        "_begun",
        "_spans",
        "ended",
        "ends",
        "error",
        "finish",
        "first",
        "instance",
        "request",
        "retries",
        "sequence",
    )

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        self.instance: str | None = None
        self.error: str | None = None
        self.ended = False
        self.sequence: EngineSequence | None = None
        self.first: float | None = None
        self.finish: float | None = None
        self.retries = 0
        self.ends: array[float] = array("d")
        self._begun = -1
        self._spans: list[tuple[int, int]] = []

    def on(self, sequence: EngineSequence) -> bool:
        """Whether what happens to this sequence is still about the request: not when it has been cut, or sent elsewhere."""
        return self.sequence is sequence and not self.ended

    def begin(self, index: int) -> None:
        """From the end of this step on, each gives it a token."""
        self._begun = index

    def pause(self, index: int) -> None:
        """The end of this step gives it none, nor do those after it."""
        if self._begun >= 0:
            self._spans.append((self._begun, index))
            self._begun = -1

    def served(self) -> Served:
        """What became of it, once it has ended."""
        request, sequence = self.request, self.sequence
        return Served(
            id=request.id,
            arrival=request.arrival,
            instance=self.instance,
            ttft_seconds=None if self.first is None else self.first - request.arrival,
            finish=self.finish,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=sequence.cached_tokens if sequence else 0,
            output_tokens=sequence.generated if sequence else 0,
            error=self.error,
            ends=self.ends,
            spans=tuple(self._spans),
            preemptions=sequence.preemptions if sequence else 0,
            retries=self.retries,
        )


class Front(Protocol):
    """Who chooses an engine for a request, and what it is told. Times are simulated seconds."""

    def begin(self, course: "Course") -> None:
        """The simulation begins; ``course.later`` may be called from now on."""
        ...

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Choose an engine and take the request as sent there; ``HELD`` to send it later; None and why where there is none."""
        ...

    def refused(self, request: str, now: float) -> None:
        """The engine did not take it."""
        ...

    def first_token(self, request: str, now: float) -> None:
        """Its first token came."""
        ...

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """Its answer is complete."""
        ...

    def told(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """An engine tells what it stored and removed in the step that ends now; only when the course has ``events``."""
        ...

    def members(self, live: Sequence[str], now: float) -> None:
        """The engines that are there from now on; only where some come or go."""
        ...

    def lost(self, request: str, now: float) -> None:
        """The engine that it was on is gone; it arrives anew at once where it has no first token yet."""
        ...
