"""The indexer: engines in, changes out. Instances come and go with the fleet, their events go through the truth into a sink.

It is the same in a process of its own (``__main__``, with Redis behind the sink) and inside a gateway's helper (with a mirror). It
has one thread and no waiting in it: what an engine sends is followed and offered in the turn of the loop in which it is read, and
how much of one engine is read before the next has its turn is bounded (``reader/turns.py``). Only questions over HTTP are tasks:
where an engine publishes, and where its adapters came from.

    fleet ──▶ attach, detach ──▶ Truth ◀── follow ◀── Line, one an instance ◀── ZMQ
                                   └──changes──▶ Sink

Several indexers share the work by a lease for each model (``index/writer.py``): whoever does not write a model does not read its
engines either. The one that begins goes on from what the one before has left in Redis: blocks, and where each stream was. A replay
from there proves that it is the same process and brings what was missed meanwhile, so a restarted indexer loses nothing and
believes nothing that is gone.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fairlead.clock import Clock
from fairlead.errors import BadInput, FairleadError, Unavailable
from fairlead.fleet import Fleet, FleetSource, Instance, InstanceState
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead_kvstore.errors import KeptError
from fairlead_kvstore.follow import Followed
from fairlead_kvstore.index.left import KeptInstance, Left
from fairlead_kvstore.index.notes import Note
from fairlead_kvstore.index.sink import Sink
from fairlead_kvstore.member import Member, Seen
from fairlead_kvstore.reader.asking import MODELS, SOURCES, Ask, places
from fairlead_kvstore.reader.endpoints import Endpoints, address, known, told
from fairlead_kvstore.reader.line import Kit, Line
from fairlead_kvstore.reader.listening import Listening
from fairlead_kvstore.reader.replay import Places
from fairlead_kvstore.reader.sockets import Sockets
from fairlead_kvstore.reader.timers import Alarm, Loop
from fairlead_kvstore.reader.turns import Turns
from fairlead_kvstore.totals import Totals
from fairlead_kvstore.truth.changes import Change, Expired, Hinted
from fairlead_kvstore.truth.truth import Truth

_LOG: Final = logging.getLogger("fairlead.indexer")
_LIMITS: Final = Limits()
_ASKED_AT_ONCE: Final = 16


class Indexer:
    """Make it on the loop that it runs on; ``close`` ends it. ``listen``: addresses at which engines dial us.

    ``leased``: a model is read from ``begin`` to ``end`` only, else all are. ``behind``: whether the sink cannot follow for now, so
    that nothing is to be read. ``chance`` draws evenly from 0 to 1. Raises BadInput for an address that cannot be bound.
    """

    def __init__(
        self,
        truth: Truth,
        sink: Sink,
        clock: Clock,
        *,
        ask: Ask,
        loop: Loop,
        chance: Callable[[], float],
        listen: Sequence[str] = (),
        leased: bool = False,
        behind: Callable[[], bool] = lambda: False,
        limits: Limits = _LIMITS,
    ) -> None:
        self.truth = truth
        self.past = Totals()
        self._sink = sink
        self._clock = clock
        self._ask = ask
        self._limits = limits
        self._fleet = Fleet()
        self._models: set[str] | None = set() if leased else None
        self._kept: Mapping[str, KeptInstance] = {}
        self._members: dict[str, Member] = {}
        self._dialing: dict[tuple[str, int | None], Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._closed = False
        sockets = Sockets(limits)
        turns = Turns(loop, clock, limits, behind=behind)
        self._kit = Kit(truth, self._deliver, sockets, turns, Places(limits.kv_replays), loop, clock, chance, limits)
        self.listening: list[Listening] = []
        try:
            for endpoint in listen:
                find = self._dials
                self.listening.append(Listening(endpoint, find, sockets=sockets, turns=turns, loop=loop, limits=limits))
        except BaseException:
            self._end_sockets()
            raise
        self._expiring, self._naming = Alarm(loop), Alarm(loop)
        self._expire()
        self._name()

    # --- what there is --------------------------------------------------------------------------------------------------

    async def run(self, source: FleetSource) -> None:
        """Follow a fleet for ever. Raises what the source raises."""
        async with contextlib.aclosing(_stream(source)) as fleets:
            async for fleet in fleets:
                self.fleet(fleet)

    def fleet(self, fleet: Fleet) -> None:
        """What there is now: instances that are new are read, those that are gone are forgotten."""
        self._fleet = fleet
        self._arrange()

    def cleared_by_us(self, instance: str) -> bool:
        """An engine answered a call of Fairlead's that clears its cache (reset, sleep at level 1 or more, pause with clear).

        Call it when the answer is there, since the engine itself tells of it with its next batch only. False: it is not read here.
        """
        member = self._members.get(instance)
        if member is None:
            return False
        self._offer(member.model_key, self.truth.cleared_by_us(instance, self._clock.now()))
        return True

    def restarted(self, instance: str, reason: str) -> bool:
        """It is known from elsewhere that the engine's process is another one (a supervisor started it). False: not read here."""
        member = self._members.get(instance)
        if member is None:
            return False
        if member.line is not None:
            member.line.replaced(reason)
        return True

    def seen(self) -> Iterator[Seen]:
        """Every instance that is read, with what is known of it; for status and metrics."""
        for member in self._members.values():
            yield member.seen(self.truth.state(member.instance.id))

    def strangers(self) -> Mapping[str, int]:
        """Messages of engines that dial us and cannot be told whose they are, by reason."""
        found: Counter[str] = Counter()
        for one in self.listening:
            found.update(one.strangers)
        return found

    # --- what its writer asks -------------------------------------------------------------------------------------------

    def begin(self, model_key: str, found: Left) -> None:
        """Read this model's engines from now on, from where an earlier indexer was."""
        for name, why in found.unreadable.items():
            _LOG.warning("%s: what was kept of %s cannot be used, it is learned anew: %s", model_key, name, why)
        if self._models is not None:
            self._models.add(model_key)
        self._kept = found.instances
        try:
            self._arrange()
        finally:
            self._kept = {}
        if any(member.model_key == model_key for member in self._members.values()):
            self.truth.hinted(model_key, found.hints)

    def end(self, model_key: str) -> None:
        """Another indexer reads this model."""
        if self._models is not None:
            self._models.discard(model_key)
        self._arrange()

    def instances(self, model_key: str) -> Sequence[str]:
        """All of the model that are read."""
        return [name for name, member in self._members.items() if member.model_key == model_key]

    def keep(self, instance: str) -> KeptInstance:
        """What the next indexer needs of an instance, as of now. Raises KeyError."""
        member = self._members[instance]
        kept, rows = self.truth.keep(instance, self._clock.wall() - self._clock.now())
        position = member.position if member.line is None else member.line.position
        return KeptInstance(kept, rows, position)

    def hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """What a shared store of the model probably holds, and until when."""
        return self.truth.hints(model_key)

    def notes(self, model_key: str) -> dict[str, Note]:
        """What is written beside the index for whoever looks at it."""
        some = [member for member in self._members.values() if member.model_key == model_key]
        return {one.instance.id: one.note(self.truth.state(one.instance.id)) for one in some}

    async def close(self) -> None:
        """Stop reading. What the truth knows stays."""
        if self._closed:
            return
        self._closed = True
        self._expiring.clear()
        self._naming.clear()
        for task in tuple(self._tasks):
            await ended(task)
        for member in self._members.values():
            if member.line is not None:
                member.line.close()
        self._end_sockets()

    def _end_sockets(self) -> None:
        for one in self.listening:
            one.close()
        self._kit.sockets.close()

    # --- instances come and go ------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        if self._closed:
            return
        wanted: dict[str, tuple[str, Instance]] = {}
        for key, instances in self._fleet.instances.items():
            if self._models is None or key in self._models:
                for one in instances:
                    wanted.setdefault(one.id, (key, one))
        for name, member in list(self._members.items()):
            if name not in wanted:
                self._detach(member, "it left the fleet")
            elif wanted[name][0] != member.model_key:
                self._detach(member, "it serves another model now")
        for name, (key, one) in wanted.items():
            there = self._members.get(name)
            if there is None:
                self._attach(key, one)
            elif there.instance != one:
                self._changed(there, one)

    def _attach(self, model_key: str, instance: Instance) -> None:
        member = self._members[instance.id] = Member(model_key, instance)
        now = self._clock.now()
        changes = self.truth.attach(instance.id, model_key, now)
        kept = self._kept.get(instance.id)
        if kept is not None and kept.position is not None:
            try:
                changes += self.truth.restore(instance.id, kept.slice, kept.rows, self._clock.wall() - now, now)
                member.position = kept.position
            except KeptError as error:
                _LOG.warning("%s: what was kept cannot be used, it is learned anew: %s", instance.id, error.message)
        self._offer(model_key, changes)
        where = known(instance)
        if where is not None:
            self._follow(member, where)
        else:
            member.looking = self._task(self._look(member))

    def _detach(self, member: Member, reason: str) -> None:
        self.past.add(member.seen(self.truth.state(member.instance.id)))
        del self._members[member.instance.id]
        member.gone = True
        if member.looking is not None:
            member.looking.cancel()
        if member.line is not None:
            member.line.close()
            self._no_dialer(member.line)
        self._offer(member.model_key, self.truth.detach(member.instance.id, reason))

    def _changed(self, member: Member, instance: Instance) -> None:
        before, member.instance = member.instance, instance
        if before.state is InstanceState.SLEEPING and instance.state is not InstanceState.SLEEPING:
            self.cleared_by_us(instance.id)  # its cache went when it fell asleep, and it has not stepped since
        where = known(instance)
        if where is None:
            if (instance.url, before.kv_events) != (before.url, None):
                if member.looking is None:
                    member.looking = self._task(self._look(member))
                member.wake.set()
            return
        if member.looking is not None:
            member.looking.cancel()
            member.looking = None
        if where != known(before):
            self._follow(member, where)

    def _follow(self, member: Member, where: Endpoints) -> None:
        """Read this member there from now on."""
        if member.line is not None:
            if where != member.line.endpoints:
                self._no_dialer(member.line)
                member.line.replaced("its events have another address", where)
        else:
            member.line = Line(member.instance.id, where, self._kit, position=member.position)
            member.position = None
            member.line.start()
        member.trouble = ""
        if where.events is None:
            self._dialing[address(member.instance), member.instance.dp_rank] = member.line
            if not self.listening:
                member.trouble = "it dials an indexer to publish its events, and this one listens nowhere"

    def _no_dialer(self, line: Line) -> None:
        for key in [key for key, one in self._dialing.items() if one is line]:
            del self._dialing[key]
        for one in self.listening:
            one.forget(line)

    def _dials(self, place: str, rank: int | None) -> Line | None:
        return self._dialing.get((place, rank))

    # --- what engines are asked -----------------------------------------------------------------------------------------

    async def _look(self, member: Member) -> None:
        """Find out where an engine publishes, and again whenever it is not there: an engine that was restarted may be elsewhere."""
        limits, began = self._limits, self._clock.now()
        pause = limits.kv_ask_pause_seconds
        while not member.gone:
            if member.line is None or not (member.line.connected or member.line.endpoints.events is None):
                try:
                    async with self._asking:
                        answer = await self._ask(member.instance, SOURCES)
                    self._follow(member, told(answer, member.instance))
                    pause = limits.kv_ask_pause_seconds
                except (Unavailable, BadInput) as error:
                    member.trouble = error.message
                    pause = min(limits.kv_ask_pause_most_seconds, pause * 2.0)
            if member.position is not None and self._clock.now() - began >= limits.kv_away_seconds:
                member.position = None  # what was kept of it may be long gone
                reason = "nobody knows where its events are"
                self._offer(member.model_key, self.truth.restarted(member.instance.id, reason, self._clock.now()))
            member.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await member.wake.wait()

    def _name(self) -> None:
        """Ask engines with adapters where these were loaded from: often while that is not known, else now and then."""
        limits, now = self._limits, self._clock.now()
        self._naming.set(limits.kv_names_pause_seconds, self._name)
        for name, member in self._members.items():
            if member.naming or member.line is None or member.line.replaying:
                continue
            unplaced = frozenset(self.truth.unplaced(name))
            if unplaced - member.unplaced:  # one that was not asked about yet
                member.names_due = min(member.names_due, member.names_asked + limits.kv_names_pause_seconds)
                member.names_pause = limits.kv_names_pause_seconds
            member.adapters, member.unplaced = member.adapters or bool(unplaced), unplaced
            if member.adapters and now >= member.names_due:
                member.naming = True
                self._task(self._names(member, now))

    async def _names(self, member: Member, now: float) -> None:
        """Ask one. Names that it says nothing of are asked about ever more seldom."""
        limits, name = self._limits, member.instance.id
        pause = member.names_pause if member.unplaced else limits.kv_names_seconds
        member.names_asked, member.names_due = now, now + pause
        member.names_pause = min(limits.kv_names_seconds, member.names_pause * 2.0)
        try:
            async with self._asking:
                found = places(await self._ask(member.instance, MODELS))
        except FairleadError as error:
            _LOG.debug("%s: %s", name, error.message)
            return
        finally:
            member.naming = False
        if member.gone or member.line is None or member.line.replaying:
            return  # what is replayed is older than the answer: ask again
        changes: list[Change] = []
        for adapter, place in found.items():
            changes += self.truth.adapter(name, adapter, place, self._clock.now())
        self._offer(member.model_key, changes)

    # --- what it means --------------------------------------------------------------------------------------------------

    def _deliver(self, line: Line, found: Followed) -> None:
        member = self._members[line.instance]
        if found.changes:
            self._sink.offer(member.model_key, found.changes, max(1, found.batches))
        if not line.connected and member.looking is not None:
            member.wake.set()

    def _offer(self, model_key: str, changes: Sequence[Change]) -> None:
        if changes:
            self._sink.offer(model_key, changes)

    def _expire(self) -> None:
        self._expiring.set(self._limits.kv_expire_seconds, self._expire)
        by_model: dict[str, list[Change]] = {}
        for change in self.truth.expire(self._clock.now()):
            if isinstance(change, Expired | Hinted):
                by_model.setdefault(change.model_key, []).append(change)
        for model_key, changes in by_model.items():
            self._offer(model_key, changes)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("an engine could not be asked", exc_info=error)


async def _stream(source: FleetSource) -> Any:
    async for fleet in source.watch():
        yield fleet
