"""The course of a simulation: engines, requests on their way, and one heap of what happens when.

No byte is sent and no time is read, so equal arguments give equal results. At one moment, ends of steps and what is told come
before arrivals. What stands before the engines (one router, or several gateways) is a ``Front``: it chooses, and is told what
a gateway would be told, when it would be told.
"""

import heapq
import random
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Protocol, TypeAlias

from fairlead.errors import BadInput, FairleadError
from fairlead.profile import EngineProfile
from fairlead_sim.blocks import KvEvent
from fairlead_sim.engine import EngineCore, Step
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.trace_prompts import trace_keys
from fairlead_sim.traces import TraceRequest

Act: TypeAlias = Callable[[float], None]
_TELLING, _ARRIVING = 0, 1


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request; times in simulated seconds, ``finish`` since the simulation began.

    ``gaps`` are the seconds between its tokens, in order. ``error`` is set when no engine could take it.
    """

    id: str
    arrival: float
    instance: str | None
    ttft_seconds: float | None
    itl_mean_seconds: float | None
    finish: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None
    gaps: Sequence[float]


class Front(Protocol):
    """Who chooses an engine for a request, and what it is told. Times are simulated seconds."""

    def begin(self, course: "Course") -> None:
        """The simulation begins; ``course.later`` may be called from now on."""
        ...

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Choose an engine and take the request as sent there; None and why where there is none."""
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


@dataclass(slots=True, eq=False)
class _Engine:
    """One simulated engine and whether a step of it is under way."""

    name: str
    core: EngineCore
    stepping: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """One request on its way: what it is, where it went, when its last token came."""

    request: TraceRequest
    instance: str | None
    error: str | None = None
    sequence: EngineSequence | None = None
    first: float | None = None
    last: float = 0.0
    finish: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))

    def served(self) -> Served:
        sequence = self.sequence
        return Served(
            id=self.request.id,
            arrival=self.request.arrival,
            instance=self.instance,
            ttft_seconds=None if self.first is None else self.first - self.request.arrival,
            itl_mean_seconds=sum(self.gaps) / len(self.gaps) if self.gaps else None,
            finish=self.finish,
            prompt_tokens=self.request.prompt_tokens,
            cached_tokens=sequence.cached_tokens if sequence else 0,
            output_tokens=sequence.generated if sequence else 0,
            error=self.error,
            gaps=self.gaps,
        )


class Course:
    """``names`` are those of equal engines; with ``events`` the front hears what they store and remove. The front hears of first
    tokens and ends ``hearing_seconds`` after they happened, as a gateway does."""

    def __init__(
        self,
        front: Front,
        names: Sequence[str],
        profile: EngineProfile,
        *,
        block_tokens: int,
        events: bool = False,
        hearing_seconds: float = 0.0,
    ) -> None:
        self._front = front
        self._block_tokens = block_tokens
        self._events = events
        self._hearing_seconds = hearing_seconds
        self._engines = {
            name: _Engine(name, EngineCore(profile, block_tokens=block_tokens, events=events)) for name in names
        }
        self._due: list[tuple[float, int, int, Act]] = []
        self._order = count()
        self._flights: dict[str, _Flight] = {}
        self._open = 0
        self._ended: dict[str, Act] = {}

    @property
    def cores(self) -> Mapping[str, EngineCore]:
        """The engines by name, for a front that knows everything."""
        return {name: engine.core for name, engine in self._engines.items()}

    def later(self, at: float, act: Act) -> None:
        """``act(at)`` is called then, unless every request has ended before."""
        heapq.heappush(self._due, (at, _TELLING, next(self._order), act))

    def serve(self, requests: Sequence[TraceRequest]) -> list[Served]:
        """Open loop: requests arrive when the trace says, whatever the engines do. In the order given."""
        _named_apart(requests)
        for request in sorted(requests, key=lambda request: request.arrival):
            self._send(request, request.arrival)
        self._go_on()
        return [self._flights[request.id].served() for request in requests]

    def converse(
        self, sessions: Sequence[Sequence[TraceRequest]], *, at_once: int, way_seconds: float, seed: int
    ) -> list[Served]:
        """Closed loop: so many sessions at once, each turn some ``way_seconds`` (0.5 to 1.5 times) behind the end of the one
        before; when the trace says its requests arrive does not matter."""
        _named_apart([request for session in sessions for request in session])
        draw, waiting = random.Random(seed), deque(sessions)

        def turn(session: Sequence[TraceRequest], index: int, now: float) -> None:
            if index == len(session):
                if not waiting:
                    return
                session, index = waiting.popleft(), 0
            at = now + way_seconds * draw.uniform(0.5, 1.5)
            request = replace(session[index], arrival=at)
            self._ended[request.id] = partial(turn, session, index + 1)
            self._send(request, at)

        for _ in range(min(at_once, len(sessions))):
            turn((), 0, 0.0)
        self._go_on()
        return [self._flights[request.id].served() for session in sessions for request in session]

    # --- what happens ---------------------------------------------------------------------------------------------------

    def _send(self, request: TraceRequest, at: float) -> None:
        self._open += 1
        arrive: Act = partial(self._arrive, request)
        heapq.heappush(self._due, (at, _ARRIVING, next(self._order), arrive))

    def _go_on(self) -> None:
        self._front.begin(self)
        due = self._due
        while self._open:
            now, _, _, act = heapq.heappop(due)
            act(now)

    def _arrive(self, request: TraceRequest, now: float) -> None:
        chosen, why = self._front.arrive(request, now)
        flight = self._flights[request.id] = _Flight(request, chosen)
        if chosen is None:
            self._end(flight, now, why)
            return
        engine = self._engines[chosen]
        sequence = EngineSequence(
            id=request.id,
            arrival=now,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
            keys=trace_keys(request.blocks, request.prompt_tokens, self._block_tokens),
        )
        try:
            engine.core.add(sequence)
        except FairleadError as error:
            self._front.refused(request.id, now)
            self._end(flight, now, error.message)
            return
        flight.sequence = sequence
        if not engine.stepping:
            self._begin_step(engine, now)

    def _begin_step(self, engine: _Engine, now: float) -> None:
        step = engine.core.step(now)
        engine.stepping = step is not None
        if step is not None:
            self.later(now + step.seconds, partial(self._end_step, engine, step))

    def _end_step(self, engine: _Engine, step: Step, now: float) -> None:
        flights, front = self._flights, self._front
        if self._events and step.events:
            front.told(engine.name, step.events, now)
        for sequence in step.first:
            flights[sequence.id].first = now
            self._hear(partial(front.first_token, sequence.id), now)
        for sequence in step.tokens:
            flight = flights[sequence.id]
            if flight.last:
                flight.gaps.append(now - flight.last)
            flight.last = now
        for sequence, _ in step.finished:
            self._hear(partial(front.finished, sequence), now)
            self._end(flights[sequence.id], now, None)
        self._begin_step(engine, now)

    def _end(self, flight: _Flight, now: float, error: str | None) -> None:
        flight.error = error
        if error is None:
            flight.finish = now
        self._open -= 1
        after = self._ended.pop(flight.request.id, None)
        if after is not None:
            after(now)

    def _hear(self, tell: Act, now: float) -> None:
        if self._hearing_seconds:
            self.later(now + self._hearing_seconds, tell)
        else:
            tell(now)


def _named_apart(requests: Sequence[TraceRequest]) -> None:
    if len({request.id for request in requests}) != len(requests):
        raise BadInput("two requests have one id", field="id")
