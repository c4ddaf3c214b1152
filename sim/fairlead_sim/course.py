"""The course of a simulation: engines, requests on their way, and one heap of what happens when.

No byte is sent and no time is read, so equal arguments give equal results. At one moment, ends of steps come first (in the order
of the engines), then what is told, then arrivals. What stands before the engines (one router, or several gateways) is a
``Front``: it chooses, and is told what a gateway would be told, when it would be told.

Where an engine does nothing but decode, its steps are not gone through one by one: the course foresees when each of them ends, up to
the first at which a sequence fills a block or ends, and takes them all when that comes. Whatever happens to the engine before (a
request arrives, it is lost) takes those that have begun until then and lets the engine go on from there. Every time is the same to
the last bit as in a course of single steps; a property test holds the two together.
"""

import heapq
import random
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final, TypeAlias

from fairlead.errors import BadInput, FairleadError
from fairlead.profile import EngineProfile
from fairlead_sim.blocks import BlockPool
from fairlead_sim.engine import EngineCore, Step
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.served import Flight, Front, Served
from fairlead_sim.trace_prompts import Prompts
from fairlead_sim.traces import TraceRequest

__all__ = ["CUT", "HELD", "Course", "Front", "Served"]

Act: TypeAlias = Callable[[float], None]
_STEPPING: Final = 0
_TELLING: Final = 1
_ARRIVING: Final = 2
_FAR: Final = 64
"""So many steps are foreseen at once: most stretches are shorter, because somebody arrives."""
HELD: Final = ""
"""What a front chooses that keeps the request and sends it later (``Course.send``)."""
CUT: Final = "its engine was lost in the middle of the answer"


class _Engine:
    """One simulated engine. ``ends`` are those of all its steps; of the last, ``foreseen`` have not been taken yet. What was put
    into the heap of an older ``version`` does not happen."""

    __slots__ = ("core", "ends", "foreseen", "index", "name", "stepping", "version")

    def __init__(self, name: str, index: int, core: EngineCore) -> None:
        self.name = name
        self.index = index
        self.core = core
        self.ends: array[float] = array("d")
        self.foreseen = 0
        self.stepping = False
        self.version = 0


class Course:
    """``names`` are those of engines with ``profile``, or with their own in ``profiles``; with ``events`` the front hears what they
    store and remove. The front hears of first tokens and ends ``hearing_seconds`` after they happened, as a gateway does. ``prompts``
    may be shared by courses. ``watch`` sees each request at its first token, and at its end where that is an error.
    ``reserve_tokens`` of output must fit beside a prompt that an engine admits (None: all of them; 0: it admits by the prompt, and
    preempts). ``pooled``: one memory for all of them."""

    def __init__(
        self,
        front: Front,
        names: Sequence[str],
        profile: EngineProfile,
        *,
        block_tokens: int,
        events: bool = False,
        hearing_seconds: float = 0.0,
        prompts: Prompts | None = None,
        watch: Callable[[Flight, float], None] | None = None,
        reserve_tokens: int | None = None,
        pooled: bool = False,
        profiles: Mapping[str, EngineProfile] | None = None,
    ) -> None:
        self._reserve_tokens = reserve_tokens
        blocks = profile.kv_tokens // block_tokens * len(names)
        self._pool = BlockPool(blocks, block_tokens, events=False) if pooled else None
        self._watch = watch
        self._front = front
        self._profile = profile
        self._profiles = dict(profiles or {})
        self._block_tokens = block_tokens
        self._events = events
        self._hearing_seconds = hearing_seconds
        self._prompts = prompts or Prompts(block_tokens)
        self._engines: dict[str, _Engine] = {}
        self._draining: set[str] = set()
        self._numbers = count()
        for name in names:
            self._add_engine(name)
        self._due: list[tuple[float, int, int, int, Act]] = []
        self._order = count()
        self._flights: dict[str, Flight] = {}
        self._open = 0
        self._ended: dict[str, Act] = {}

    @property
    def cores(self) -> Mapping[str, EngineCore]:
        """The engines that are there by name, for a front that knows everything."""
        return {name: engine.core for name, engine in self._engines.items()}

    def later(self, at: float, act: Act) -> None:
        """``act(at)`` is called then, unless every request has ended before."""
        heapq.heappush(self._due, (at, _TELLING, next(self._order), 0, act))

    def serve(self, requests: Sequence[TraceRequest]) -> list[Served]:
        """Open loop: requests arrive when the trace says, whatever the engines do. In the order given."""
        _named_apart(requests)
        self._open = len(requests)
        self._go_on(sorted(requests, key=_arrival))
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
            self._open += 1
            arrive: Act = partial(self._arrive, request)
            heapq.heappush(self._due, (at, _ARRIVING, next(self._order), 0, arrive))

        for _ in range(min(at_once, len(sessions))):
            turn((), 0, 0.0)
        self._go_on([])
        return [self._flights[request.id].served() for session in sessions for request in session]

    # --- what a front or a script does ------------------------------------------------------------------------------------

    def send(self, request_id: str, instance: str, now: float) -> None:
        """Send a request that was held. The front is told at once where the engine is not there or does not take it."""
        flight = self._flights[request_id]
        flight.instance = instance
        self._put(flight, now)

    def refuse(self, request_id: str, why: str, now: float) -> None:
        """A request that was held is served no more."""
        self._end(self._flights[request_id], now, why)

    def again(self, request_id: str, now: float) -> None:
        """A request without a first token arrives anew, at a front that has forgotten it; an answer under way is cut."""
        flight = self._flights[request_id]
        engine = None if flight.instance is None else self._engines.get(flight.instance)
        if engine is not None and flight.sequence is not None:
            self._settle(engine, now)
            engine.core.abort(request_id)
        self._lost(flight, now)

    def lose(self, name: str, now: float) -> None:
        """An engine is gone with everything in it: what has no first token yet arrives anew, the other answers are cut."""
        engine = self._engines.pop(name)
        self._settle(engine, now)
        engine.version += 1
        self._tell_members(now)
        # Not those that the core still has: who is given the last token by the step under way has left it already.
        for flight in [one for one in self._flights.values() if one.instance == name and not one.ended]:
            self._front.lost(flight.request.id, now)
            self._lost(flight, now)

    def join(self, name: str, now: float) -> None:
        """A new engine with nothing in its cache."""
        self._add_engine(name)
        self._tell_members(now)

    def drain(self, name: str, now: float) -> None:
        """Nobody is to send anything to an engine any more; it ends what it has."""
        self._draining.add(name)
        self._tell_members(now)

    def slow(self, name: str, factor: float, now: float) -> None:
        """From its next step on an engine takes so many times as long as its profile says; what it holds stays."""
        engine = self._engines[name]
        self._settle(engine, now)
        engine.core.profile = self._profile_of(name).faster(1.0 / factor)

    def flight(self, request_id: str) -> Flight:
        """A request that has arrived."""
        return self._flights[request_id]

    def flights(self) -> Iterator[Flight]:
        """All requests so far, for those that look whether everything is as it must be."""
        return iter(self._flights.values())

    # --- what happens ---------------------------------------------------------------------------------------------------

    def _tell_members(self, now: float) -> None:
        self._front.members([name for name in self._engines if name not in self._draining], now)

    def _add_engine(self, name: str) -> None:
        profile = self._profile_of(name)
        core = EngineCore(profile, block_tokens=self._block_tokens, events=self._events, pool=self._pool)
        self._engines[name] = _Engine(name, next(self._numbers), core)

    def _profile_of(self, name: str) -> EngineProfile:
        return self._profiles.get(name, self._profile)

    def _go_on(self, requests: Sequence[TraceRequest]) -> None:
        self._front.begin(self)
        due, arrived, most = self._due, 0, len(requests)
        while self._open:
            if arrived < most:
                request = requests[arrived]
                at = request.arrival
                if not due or due[0][0] > at or (due[0][0] == at and due[0][1] == _ARRIVING):
                    arrived += 1
                    self._arrive(request, at)
                    continue
            now, _, _, _, act = heapq.heappop(due)
            act(now)

    def _arrive(self, request: TraceRequest, now: float) -> None:
        flight = self._flights.get(request.id)
        if flight is None:
            flight = self._flights[request.id] = Flight(request)
        chosen, why = self._front.arrive(request, now)
        flight.instance = chosen
        if chosen is None:
            self._end(flight, now, why)
        elif chosen != HELD:
            self._put(flight, now)

    def _put(self, flight: Flight, now: float) -> None:
        request, instance = flight.request, flight.instance
        engine = None if instance is None else self._engines.get(instance)
        if engine is None:
            self._front.refused(request.id, now)
            self._end(flight, now, f"{instance} is not there")
            return
        sequence = EngineSequence(
            id=request.id,
            arrival=now,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
            keys=self._prompts.keys(request),
            reserve_tokens=self._reserve_tokens,
        )
        if engine.foreseen:
            self._settle(engine, now)
        try:
            engine.core.add(sequence)
        except FairleadError as error:
            self._front.refused(request.id, now)
            self._end(flight, now, error.message)
            return
        flight.sequence = sequence
        flight.ends = engine.ends
        if not engine.stepping:
            self._begin_step(engine, now)

    def _begin_step(self, engine: _Engine, now: float) -> None:
        core = engine.core
        steps = core.steady()
        if steps:
            steps = min(steps, _FAR)
            engine.foreseen = steps
            self._step_ends(engine, core.foresee(now, steps, engine.ends), partial(self._end_stretch, engine))
            return
        step = core.step(now)
        engine.stepping = step is not None
        if step is not None:
            end = now + step.seconds
            engine.ends.append(end)
            self._step_ends(engine, end, partial(self._end_step, engine, step))

    def _step_ends(self, engine: _Engine, at: float, act: Callable[[int, float], None]) -> None:
        engine.version += 1
        ended: Act = partial(act, engine.version)
        heapq.heappush(self._due, (at, _STEPPING, engine.index, engine.version, ended))

    def _end_stretch(self, engine: _Engine, version: int, now: float) -> None:
        if version != engine.version:
            return
        if engine.foreseen:
            engine.core.advance(engine.foreseen)
            engine.foreseen = 0
        self._begin_step(engine, now)

    def _settle(self, engine: _Engine, now: float) -> None:
        """Take the steps that have begun; the engine goes on when the last of them ends."""
        if not engine.foreseen:
            return
        ends = engine.ends
        first = len(ends) - engine.foreseen
        begun = min(bisect_right(ends, now, first) + 1, len(ends))
        engine.core.advance(begun - first)
        engine.foreseen = 0
        del ends[begun:]
        self._step_ends(engine, ends[-1], partial(self._end_stretch, engine))

    def _end_step(self, engine: _Engine, step: Step, version: int, now: float) -> None:
        if version != engine.version:
            return
        flights, front = self._flights, self._front
        index = len(engine.ends) - 1
        if self._events and step.events:
            front.told(engine.name, step.events, now)
        for sequence in step.preempted:
            flights[sequence.id].pause(index)
        for sequence in step.joined:
            flight = flights[sequence.id]
            if flight.on(sequence):
                flight.begin(index)
        for sequence in step.first:
            flight = flights[sequence.id]
            if flight.on(sequence):
                flight.first = now
                if self._watch is not None:
                    self._watch(flight, now)
                self._hear(partial(front.first_token, sequence.id), now)
        for sequence, _ in step.finished:
            flight = flights[sequence.id]
            if not flight.on(sequence):
                continue
            flight.pause(index + 1)
            self._hear(partial(front.finished, sequence), now)
            self._end(flight, now, None)
        self._begin_step(engine, now)

    def _lost(self, flight: Flight, now: float) -> None:
        """Its engine is gone, or the gateway between."""
        if flight.first is None:
            flight.sequence = None
            flight.retries += 1
            self._arrive(flight.request, now)
        else:
            flight.pause(bisect_right(flight.ends, now))
            self._end(flight, now, CUT)

    def _end(self, flight: Flight, now: float, error: str | None) -> None:
        flight.error = error
        flight.ended = True
        if error is None:
            flight.finish = now
        elif self._watch is not None:
            self._watch(flight, now)
        self._open -= 1
        after = self._ended.pop(flight.request.id, None)
        if after is not None:
            after(now)

    def _hear(self, tell: Act, now: float) -> None:
        if self._hearing_seconds:
            self.later(now + self._hearing_seconds, tell)
        else:
            tell(now)


def _arrival(request: TraceRequest) -> float:
    return request.arrival


def _named_apart(requests: Sequence[TraceRequest]) -> None:
    if len({request.id for request in requests}) != len(requests):
        raise BadInput("two requests have one id", field="id")
