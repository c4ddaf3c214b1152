"""The workers together: started, told, asked, restarted when they die, drained at the end.

Every worker has a number from 1 and, while it lives, a row of the memory that siblings share. One that dies is started again after
a pause that doubles while it goes on dying. One that was told to go (SIGTERM) drains as soon as another serves in its place, and
takes as long as its requests take. What it had counted stays counted.
"""

import asyncio
import logging
import mmap
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.fleet import Fleet
from fairlead.limits import Limits
from fairlead.units import duration
from fairlead_gateway import channel_messages as say
from fairlead_gateway.channel import encoded
from fairlead_gateway.early import ROWS_EACH, Early, Spawned, rows_of, spawn
from fairlead_gateway.hand import Events, Hand
from fairlead_gateway.learning.rows import Rows
from fairlead_gateway.others_row import OthersRow
from fairlead_gateway.routing import shared
from fairlead_gateway.slots import Slots
from fairlead_gateway.telemetry.parts import ModelPart, sum_of

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")
_SHOWN_SECONDS = 60.0
_DRAIN_POLL_SECONDS = 0.02
_SOUND_SECONDS = 10.0  # a worker that lived this long was no part of a series of deaths


@dataclass(frozen=True, slots=True)
class Death:
    """One end that nobody asked for."""

    at: float
    number: int
    cause: str


class Crew:
    """``setup`` makes the first message for (number, row, rows of the siblings); ``told`` hears what workers tell for Redis,
    ``indexed`` of what workers tell the index, ``learned`` of what engines are learned from, ``waking`` of models whose requests
    wait for a first engine, ``joined`` that one of them knows nothing of index and engines yet."""

    def __init__(
        self,
        early: Early,
        *,
        setup: Callable[[int, int, list[int], dict[str, int]], say.Setup],
        told: Callable[[say.Told], None],
        indexed: Callable[[Hand, say.Seen | say.Given], None],
        learned: Callable[[Rows], None],
        waking: Callable[[str], None],
        joined: Callable[[], None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._early = early
        self._setup = setup
        self._told = told
        self._indexed = indexed
        self._learned = learned
        self._waking = waking
        self._joined = joined
        self._clock = clock
        self._limits = limits
        self.hands: list[Hand] = []
        self.deaths = 0
        self.stopping = False
        self._started = False
        self._recent: deque[Death] = deque(maxlen=64)
        self._series: dict[int, int] = {}
        self._buried: dict[str, ModelPart] = {}
        self._buried_own: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._free_rows = list(range(early.count * ROWS_EACH - 1, -1, -1))
        self._cells = (
            None
            if early.rows is None
            else memoryview(mmap.mmap(early.rows, shared.bytes_of(rows_of(early.count), limits.shared_slots))).cast("q")
        )
        self._others = (
            OthersRow(self._cells, limits.shared_slots, rows_of(early.count) - 1)
            if self._cells is not None and early.shares
            else None
        )
        self._hot: dict[str, say.Hot] = {}
        self._slots = Slots(limits.shared_slots if self._cells is not None else 0, self._idle)
        self._placed: dict[str, int] = {}
        self._fleet = Fleet()
        self._pending: deque[Fleet] = deque()
        self._shown = Fleet()

    # Start and end -------------------------------------------------------------------------------------------------------

    async def start(self, fleet: Fleet) -> None:
        """Give every worker its work and wait until all serve. Raises Unavailable when one cannot."""
        self._fleet = self._shown = fleet
        self._place(fleet)
        taken, self._early.spawned = self._early.spawned, []
        for number, spawned in enumerate(taken, 1):
            self.hands.append(self._hand(number, spawned))
        first = list(self.hands)
        for hand in first:
            await self._open(hand)
        await self._until(lambda: all(hand.is_ready for hand in first) or any(hand.exited.done() for hand in first))
        for hand in first:
            if hand.exited.done():
                raise Unavailable(hand.failure or f"worker {hand.number} {hand.cause()} before it was ready")
        self._started = True

    async def stop(self, hurry: asyncio.Event) -> None:
        """Drain all workers, and end those that have not gone when the limit is over, or when there is no time left."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        for hand in self.hands:
            if not hand.send(say.Drain()) and not hand.connected:
                hand.kill()  # it has no channel yet, and so nothing to lose
        end = self._clock.now() + self._limits.drain_seconds + 2 * self._limits.worker_answer_seconds
        while not (hurry.is_set() or self._clock.now() >= end or all(hand.mute_since for hand in self.hands)):  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        await self.end()

    async def end(self) -> None:
        """End whatever still runs, at once."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()
        for hand in self.hands:
            hand.kill()
        living = [hand.exited for hand in self.hands if not hand.exited.done()]
        if living:
            await asyncio.wait(living)

    def _hand(self, number: int, spawned: Spawned) -> Hand:
        events = Events(
            self._ready,
            self._applied,
            self._leaving,
            self._heard,
            self._indexed,
            self._learned,
            self._waking,
            self._ended,
        )
        return Hand(number, self._free_rows.pop(), spawned, events, self._clock, self._limits)

    async def _open(self, hand: Hand) -> None:
        await hand.open()
        hand.send(self._setup(hand.number, hand.row, self._rows_beside(hand), self._placed))
        self._tell_siblings()
        self._later(self._limits.worker_start_seconds, lambda: None if hand.is_ready else hand.kill())

    # What becomes of them ------------------------------------------------------------------------------------------------

    def _ready(self, hand: Hand) -> None:
        self._changed.set()
        for other in self.hands:
            if other.is_leaving and other.number == hand.number:
                other.send(say.Drain())
        if hand.owed or hand.version != self._fleet.version:
            self._send_all(hand)
        else:
            for table in self._hot.values():
                hand.owed |= not hand.send(table)
        self._joined()

    def _leaving(self, hand: Hand) -> None:
        self._show_applied()
        if self.stopping or not self._started:
            hand.send(say.Drain())
            return
        _log.info("worker %d leaves and is replaced", hand.number)
        self._replace(hand.number, 0.0)

    def _ended(self, hand: Hand) -> None:
        self.hands.remove(hand)
        self._bury(hand)
        self._changed.set()
        self._show_applied()
        if self.stopping or hand.is_leaving or not self._started:
            return
        if hand.process.returncode == -signal.SIGTERM:  # told to go before it had begun
            self._replace(hand.number, self._limits.worker_restart_seconds)
            return
        now = self._clock.now()
        self.deaths += 1
        self._recent.append(Death(now, hand.number, hand.cause()))
        _log.error("worker %d died: %s", hand.number, hand.cause())
        series = self._series.get(hand.number, 0) if now - hand.started_at < _SOUND_SECONDS else 0
        self._series[hand.number] = series + 1
        limits = self._limits
        self._replace(
            hand.number, min(limits.worker_restart_most_seconds, limits.worker_restart_seconds * 2.0 ** min(series, 16))
        )

    def _bury(self, hand: Hand) -> None:
        """Its requests are over, and its row is free; what it counted counts on."""
        if self._cells is not None:
            shared.clear(self._cells, self._limits.shared_slots, hand.row)
        self._free_rows.append(hand.row)
        self._buried = sum_of([self._buried, _without_windows(hand.counters)])
        self._buried_own = summed([self._buried_own, hand.own])
        self._tell_siblings()

    def _replace(self, number: int, pause_seconds: float) -> None:
        async def again() -> None:
            await asyncio.sleep(pause_seconds)
            while not self._free_rows:  # too many still drain
                await self._until(lambda: bool(self._free_rows))
            try:
                spawned = spawn(number, self._early.rows, self._early.environ, talks=self._early.talk)
            except OSError as error:
                _log.error("worker %d cannot be started: %s", number, error)
                self._replace(number, self._limits.worker_restart_most_seconds)
                return
            hand = self._hand(number, spawned)
            self.hands.append(hand)
            await self._open(hand)

        self._start(again())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(seconds, call)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # The fleet -----------------------------------------------------------------------------------------------------------

    def apply(self, fleet: Fleet) -> None:
        """Give all workers a new snapshot."""
        self._fleet = fleet
        for gone in self._hot.keys() - fleet.models.keys():
            del self._hot[gone]
        self._pending.append(fleet)
        self._place(fleet)
        message = encoded(say.Snapshot(fleet, self._placed))
        for hand in self.hands:
            hand.owed |= not hand.send_encoded(message)
        self._show_applied()

    def fleet(self) -> Fleet:
        """The newest snapshot that every worker that answers has taken over: nobody routes by an older one any more."""
        return self._shown

    def _send_all(self, hand: Hand) -> None:
        """Everything that a worker has to know, once more: something did not reach it."""
        now = self._setup(hand.number, hand.row, self._rows_beside(hand), self._placed)
        messages: list[msgspec.Struct] = [say.Snapshot(self._fleet, self._placed), say.Siblings(now.siblings)]
        messages.append(say.Notes(now.notes))
        if now.keys is not None:
            messages.append(say.Keys(now.keys))
        if now.certificate is not None:
            messages.append(say.Renew())
        messages += self._hot.values()
        hand.owed = not all(hand.send(message) for message in messages)

    def _applied(self, hand: Hand) -> None:
        del hand
        self._show_applied()

    def _show_applied(self) -> None:
        taken = [hand.version for hand in self.hands if hand.is_ready and hand.mute_since is None]
        while self._pending and all(version >= self._pending[0].version for version in taken):
            fleet = self._pending.popleft()
            if not any(hand.problem for hand in self.hands):
                self._shown = fleet

    def _idle(self, slot: int) -> bool:
        rows = rows_of(self._early.count)
        return self._cells is None or shared.idle(self._cells, self._limits.shared_slots, rows, slot)

    def _place(self, fleet: Fleet) -> None:
        self._placed = self._slots.place(fleet, self._clock.now())
        if self._others is not None:
            self._others.place(self._placed)

    # Telling -------------------------------------------------------------------------------------------------------------

    def tell(self, message: msgspec.Struct) -> None:
        """Tell all workers."""
        data = encoded(message)
        for hand in self.hands:
            hand.owed |= not hand.send_encoded(data)

    def _heard(self, hand: Hand, told: say.Told) -> None:
        if (told.sent is not None or told.deaths or told.cleared) and len(self.hands) > 1:
            data = encoded(say.Heard(told.sent, told.deaths, told.cleared))
            room = self._limits.channel_waiting_bytes // 4  # the rest is for what must arrive
            for sibling in self.hands:
                if sibling is not hand and sibling.is_ready and sibling.waiting_bytes < room:
                    sibling.send_encoded(data)
        self._told(told)

    def hear(self, sent: bytes) -> None:
        """Tell all workers what other gateways have sent where; what a worker does not read in time is dropped."""
        data = encoded(say.Heard(sent, []))
        room = self._limits.channel_waiting_bytes // 4
        for hand in self.hands:
            if hand.is_ready and hand.waiting_bytes < room:
                hand.send_encoded(data)

    def show(self, loads: Mapping[str, tuple[int, int, float, float]]) -> None:
        """What other gateways have in flight is this now: in flight, waiting, seconds, tokens."""
        if self._others is not None:
            self._others.show(loads)

    def hot(self, table: say.Hot) -> None:
        """Tell all workers which prefixes are hot."""
        self._hot[table.model] = table
        self.tell(table)

    def _tell_siblings(self) -> None:
        if self._cells is not None:
            for hand in self.hands:
                hand.owed |= not hand.send(say.Siblings(self._rows_beside(hand)))

    def _rows_beside(self, hand: Hand) -> list[int]:
        rows = [other.row for other in self.hands if other is not hand]
        return rows if self._others is None else [*rows, self._others.row]

    # Asking --------------------------------------------------------------------------------------------------------------

    async def ask(self, question: Callable[[int], say.Question], kind: type[T]) -> list[tuple[Hand, list[T]]]:
        """The answers of those that answer, by worker."""
        hands = [hand for hand in self.hands if hand.is_ready]
        for hand in hands:
            if hand.owed:
                self._send_all(hand)
        found = await asyncio.gather(*[hand.ask(question, kind) for hand in hands])
        self._show_applied()
        return [(hand, answer) for hand, answer in zip(hands, found, strict=True) if answer is not None]

    async def count(self, *, windows: bool) -> dict[str, ModelPart]:
        """The counters of all workers, of those that have ended and of those that are mute as last known, added up."""
        now = self._clock.now()
        parts: list[dict[str, ModelPart]] = []
        answers = await self.ask(lambda number: say.AskCounters(number, now, windows), ModelPart)
        for hand, pieces in answers:
            if not hand.said_last:
                hand.counters = {part.key: part for part in pieces}
        answered = {hand for hand, _ in answers}
        parts += [hand.counters if hand in answered else _without_windows(hand.counters) for hand in self.hands]
        present = {item for models in parts for part in models.values() for item in part.instances}
        present.update(one.id for instances in self._fleet.instances.values() for one in instances)
        for part in self._buried.values():
            for gone in part.instances.keys() - present:
                del part.instances[gone]
        processes = [self._buried, *parts]
        found: dict[str, ModelPart] = {}
        for key in dict.fromkeys(key for models in processes for key in models):
            found |= sum_of([{key: models[key]} for models in processes if key in models])
            await asyncio.sleep(0)
        return found

    def own(self) -> dict[str, int]:
        """What belongs to no model, as last known, added up."""
        return summed([self._buried_own, *(hand.own for hand in self.hands)])

    def loads(self) -> dict[str, say.WireLoad]:
        """What is in flight by instance, as the workers last told it."""
        return together(hand.loads for hand in self.hands)

    # For people ----------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return self._early.count

    @property
    def serving(self) -> int:
        """Workers that take connections and answer."""
        return sum(hand.serves and hand.mute_since is None for hand in self.hands)

    def notes(self) -> list[str]:
        """What is wrong with workers, in words."""
        now = self._clock.now()
        found = []
        for hand in sorted(self.hands, key=lambda one: one.number):
            if hand.mute_since is not None:
                found.append(f"worker {hand.number} does not answer since {duration(now - hand.mute_since)}")
            elif hand.is_leaving:
                found.append(f"worker {hand.number} leaves")
            if hand.problem is not None:
                found.append(f"the last fleet was not taken: {hand.problem}")
        found += self._deaths_note(now)
        missing = self._early.count - sum(hand.serves for hand in self.hands)
        if missing > 0 and not self.stopping:
            found.append(f"{missing} of {self._early.count} workers do not serve yet")
        return list(dict.fromkeys(found))

    def _deaths_note(self, now: float) -> Sequence[str]:
        recent = [death for death in self._recent if now - death.at < _SHOWN_SECONDS]
        if not recent:
            return ()
        last = recent[-1]
        times = "a worker died" if len(recent) == 1 else f"workers died {len(recent)} times"
        return (f"{times} in the last minute: worker {last.number} {last.cause}",)


def together(workers: Iterable[Mapping[str, say.WireLoad]]) -> dict[str, say.WireLoad]:
    """The loads of all workers, added up."""
    found: dict[str, say.WireLoad] = {}
    for loads in workers:
        for item, load in loads.items():
            known = found.get(item)
            found[item] = load if known is None else _both(known, load)
    return found


def summed(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of all workers, added up by name."""
    found: dict[str, int] = {}
    for counts in workers:
        for name, count in counts.items():
            found[name] = found.get(name, 0) + count
    return found


def _both(one: say.WireLoad, other: say.WireLoad) -> say.WireLoad:
    return say.WireLoad(
        one.inflight + other.inflight,
        one.waiting + other.waiting,
        one.backlog_seconds + other.backlog_seconds,
        one.inflight_tokens + other.inflight_tokens,
    )


def _without_windows(models: dict[str, ModelPart]) -> dict[str, ModelPart]:
    """The totals alone: a minute that nobody rolled on is no window."""
    for part in models.values():
        part.window = None
        for instance in part.instances.values():
            instance.window = None
    return models
