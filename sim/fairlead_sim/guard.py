"""Looks on while a fleet serves, and writes down whatever must never be. It stands as a front between a course and the real front.

- A request goes only to an engine that is in service and that its gateway reaches; nobody is chosen only where there is none.
- It is answered once: it arrives anew only while it has no first token, and its first token and its end come once.
- What an engine works on is what is on its way there, and every open request is somewhere.
- What gateways count as theirs (requests, those without a first token) is what is on its way; nothing counted is below zero.
- Nothing waits for ever: who is still open ``PATIENCE_SECONDS`` after the last arrival is lost.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from fairlead_sim.blocks import KvEvent
from fairlead_sim.course import HELD, Course
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.sequence import SequenceState
from fairlead_sim.served import Flight, Front
from fairlead_sim.traces import TraceRequest

LOOK_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 1_800.0
_MOST: Final = 20
_LEAST: Final = -1e-6

Count = tuple[str, int, int, float, float]
"""Of one gateway at one engine: requests in flight, those without a first token, their prefill, their tokens."""


class Lost(Exception):
    """Raised out of a run in which somebody waits for ever."""


class Guard:
    """``counts`` is what all gateways count. Where the front ``holds`` requests, the course does not know for which engine, so only
    the sum is compared. ``reached(request)`` are those in service that its gateway reaches."""

    def __init__(
        self,
        front: Front,
        names: Sequence[str],
        *,
        counts: Callable[[], Iterable[Count]],
        holds: bool,
        reached: Callable[[str, Collection[str]], Collection[str]],
        last: float,
    ) -> None:
        self.broken: list[str] = []
        self.looks = 0
        self.unserved: set[str] = set()
        self._front = front
        self._live = list(names)
        self._counts = counts
        self._holds = holds
        self._reached = reached
        self._last = last
        self._course: Course | None = None
        self._service: dict[str, list[list[float]]] = {name: [[0.0, float("inf")]] for name in names}
        self._firsts: set[str] = set()
        self._ends: set[str] = set()

    # --- what passes -----------------------------------------------------------------------------------------------------

    def begin(self, course: Course) -> None:
        """Looks begin too."""
        self._course = course
        self._front.begin(course)
        course.later(LOOK_SECONDS, self._look)

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Whom the front chooses."""
        flight = self._flight(request.id)
        if flight.ended or flight.first is not None:
            self._wrong(now, f"{request.id} arrives anew although it has begun")
        chosen, why = self._front.arrive(request, now)
        may = self._reached(request.id, self._live)
        if chosen is None:
            self.unserved.add(request.id)
            if may:
                self._wrong(now, f"{request.id} gets nobody ({why}) although {len(may)} are in service")
        elif chosen != HELD and chosen not in may:
            self._wrong(now, f"{request.id} goes to {chosen}, which is not in service or not in reach")
        return chosen, why

    def refused(self, request: str, now: float) -> None:
        """No engine refuses what it is sent here."""
        self._wrong(now, f"{request} is refused by {self._flight(request).instance}")
        self._front.refused(request, now)

    def first_token(self, request: str, now: float) -> None:
        """Once for each request."""
        if request in self._firsts:
            self._wrong(now, f"{request} begins twice")
        self._firsts.add(request)
        self._front.first_token(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """Once, after its first token."""
        if sequence.id in self._ends or sequence.id not in self._firsts:
            self._wrong(now, f"{sequence.id} ends twice, or before it begins")
        self._ends.add(sequence.id)
        self._front.finished(sequence, now)

    def told(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """What engines tell."""
        self._front.told(instance, events, now)

    def members(self, live: Sequence[str], now: float) -> None:
        """Who is in service, and since when."""
        for name in live:
            if name not in self._live:
                self._service.setdefault(name, []).append([now, float("inf")])
        for name in self._live:
            if name not in live:
                self._service[name][-1][1] = now
        self._live = list(live)
        self._front.members(live, now)

    def lost(self, request: str, now: float) -> None:
        """Its engine is gone."""
        self._front.lost(request, now)

    # --- looks -----------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """When all is over: nothing is left anywhere, and who was sent anything was in service at that moment."""
        course = self._there()
        for name, core in course.cores.items():
            if core.sequences() or core.pool.held:
                left = f"{len(core.sequences())} requests and {core.pool.held} blocks"
                self._wrong(self._last, f"{name} still holds {left} after the end")
        for name, *numbers in self._counts():
            if any(abs(number) > -_LEAST for number in numbers):
                self._wrong(self._last, f"{numbers} are still counted at {name} after the end")
        for flight in course.flights():
            at = None if flight.sequence is None else flight.sequence.arrival
            if at is None or flight.instance is None:
                continue
            if not any(since <= at <= until for since, until in self._service.get(flight.instance, ())):
                self._wrong(at, f"{flight.request.id} was sent to {flight.instance}, which was not in service")

    def _look(self, now: float) -> None:
        course = self._there()
        self.looks += 1
        if now > self._last + PATIENCE_SECONDS:
            waiting = [flight.request.id for flight in course.flights() if not flight.ended]
            raise Lost(f"{len(waiting)} requests are never answered, {waiting[0]} among them")
        self._look_at_engines(course, now)
        self._look_at_counts(course, now)
        course.later(now + LOOK_SECONDS, self._look)

    def _look_at_engines(self, course: Course, now: float) -> None:
        there = {name: {one.id: one for one in core.sequences()} for name, core in course.cores.items()}
        known: Counter[str] = Counter()
        for flight in course.flights():
            if flight.ended or flight.instance == HELD:
                continue
            here, sequence = there.get(flight.instance or "", {}), flight.sequence
            if sequence is not None and here.get(flight.request.id) is sequence:
                known[flight.instance or ""] += 1
            elif sequence is None or sequence.state is not SequenceState.FINISHED:  # it ends with the step under way
                self._wrong(now, f"{flight.request.id} is open and not at {flight.instance}")
        for name, here in there.items():
            if len(here) != known[name]:
                self._wrong(now, f"{name} works on {len(here)} requests, and {known[name]} are on their way there")

    def _look_at_counts(self, course: Course, now: float) -> None:
        wanted: Counter[tuple[str, bool]] = Counter()
        for flight in course.flights():
            if not flight.ended:
                name = "" if self._holds else flight.instance or ""
                wanted[name, True] += 1
                wanted[name, False] += flight.first is None
        counted: Counter[tuple[str, bool]] = Counter()
        for name, inflight, waiting, prefill, tokens in self._counts():
            if min(inflight, waiting, prefill, tokens) < _LEAST:
                self._wrong(now, f"{inflight}, {waiting}, {prefill}, {tokens} are counted at {name}")
            name = "" if self._holds else name
            counted[name, True] += inflight
            counted[name, False] += waiting
        for key in wanted.keys() | counted.keys():
            if wanted[key] != counted[key]:
                what = "in flight" if key[1] else "without a first token"
                self._wrong(now, f"{counted[key]} are counted {what} at {key[0] or 'all'}, and {wanted[key]} are")

    def _wrong(self, now: float, what: str) -> None:
        if len(self.broken) < _MOST:
            self.broken.append(f"{now:.3f} s: {what}")

    def _flight(self, request: str) -> Flight:
        return self._there().flight(request)

    def _there(self) -> Course:
        assert self._course is not None, "nothing happens before the course begins"
        return self._course
