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

from fairlead.errors import BadInput, FairleadError, Unavailable
from fairlead.fleet.model import Fleet, FleetSource, Instance, InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_kvstore.blockstore.changes import Change, HintsAdded, HintsExpired
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import SnapshotError
from fairlead_kvstore.index.instance_status import InstanceStatus
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex
from fairlead_kvstore.index.sink import ChangeSink
from fairlead_kvstore.indexer.counters import ModelCounters
from fairlead_kvstore.indexer.engine_member import EngineMember, EngineStatus
from fairlead_kvstore.reader.endpoints import (
    EventEndpoints,
    endpoints_from_answer,
    endpoints_from_fleet,
    instance_address,
)
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH, MODELS_PATH, EngineQuery, adapter_sources
from fairlead_kvstore.reader.engine_subscription import EngineSubscription, ReaderContext
from fairlead_kvstore.reader.event_application import AppliedEvents
from fairlead_kvstore.reader.fair_scheduler import FairScheduler
from fairlead_kvstore.reader.replay_client import ReplaySlots
from fairlead_kvstore.reader.timers import OneShotTimer, ReaderLoop
from fairlead_kvstore.reader.zmq_listener import ZmqListener
from fairlead_kvstore.reader.zmq_socket import ZmqSockets

_LOG: Final = logging.getLogger("fairlead.indexer")
_LIMITS: Final = Limits()
_MAX_CONCURRENT_QUERIES: Final = 16


class Indexer:
    """Make it on the loop that it runs on; ``close`` ends it. ``listen``: addresses at which engines dial us.

    ``leased``: a model is read from ``begin`` to ``end`` only, else all are. ``behind``: whether the sink cannot follow for now, so
    that nothing is to be read. ``chance`` draws evenly from 0 to 1. Raises BadInput for an address that cannot be bound.
    """

    def __init__(
        self,
        store: BlockStore,
        sink: ChangeSink,
        clock: Clock,
        *,
        query: EngineQuery,
        loop: ReaderLoop,
        random: Callable[[], float],
        listen: Sequence[str] = (),
        leased: bool = False,
        is_backlogged: Callable[[], bool] = lambda: False,
        limits: Limits = _LIMITS,
    ) -> None:
        self.store = store
        self.departed = ModelCounters()
        self._sink = sink
        self._clock = clock
        self._query = query
        self._limits = limits
        self._fleet = Fleet()
        self._models: set[str] | None = set() if leased else None
        self._checkpoints: Mapping[str, InstanceCheckpoint] = {}
        self._members: dict[str, EngineMember] = {}
        self._dialers: dict[tuple[str, int | None], EngineSubscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._query_slots = asyncio.Semaphore(_MAX_CONCURRENT_QUERIES)
        self._closed = False
        sockets = ZmqSockets(limits)
        turns = FairScheduler(loop, clock, limits, is_backlogged=is_backlogged)
        self._context = ReaderContext(
            store, self._on_applied, sockets, turns, ReplaySlots(limits.kv_replays), loop, clock, random, limits
        )
        self.listeners: list[ZmqListener] = []
        try:
            for endpoint in listen:
                find = self._find_dialer
                self.listeners.append(
                    ZmqListener(endpoint, find, sockets=sockets, turns=turns, loop=loop, limits=limits)
                )
        except BaseException:
            self._close_sockets()
            raise
        self._expiry_timer, self._adapter_timer = OneShotTimer(loop), OneShotTimer(loop)
        self._expire_hints()
        self._refresh_adapters()

    # --- what there is --------------------------------------------------------------------------------------------------

    async def run(self, source: FleetSource) -> None:
        """Follow a fleet for ever. Raises what the source raises."""
        async with contextlib.aclosing(_fleets(source)) as fleets:
            async for fleet in fleets:
                self.update_fleet(fleet)

    def update_fleet(self, fleet: Fleet) -> None:
        """What there is now: instances that are new are read, those that are gone are forgotten."""
        self._fleet = fleet
        self._reconcile()

    def on_cache_cleared(self, instance: str) -> bool:
        """An engine answered a call of Fairlead's that clears its cache (reset, sleep at level 1 or more, pause with clear).

        Call it when the answer is there, since the engine itself tells of it with its next batch only. False: it is not read here.
        """
        member = self._members.get(instance)
        if member is None:
            return False
        self._offer(member.model_key, self.store.on_cleared_by_fairlead(instance, self._clock.now()))
        return True

    def on_engine_restarted(self, instance: str, reason: str) -> bool:
        """It is known from elsewhere that the engine's process is another one (a supervisor started it). False: not read here."""
        member = self._members.get(instance)
        if member is None:
            return False
        if member.subscription is not None:
            member.subscription.replace_engine(reason)
        return True

    def engine_statuses(self) -> Iterator[EngineStatus]:
        """Every instance that is read, with what is known of it; for status and metrics."""
        for member in self._members.values():
            yield member.status(self.store.state(member.instance.id))

    def unidentified_messages(self) -> Mapping[str, int]:
        """Messages of engines that dial us and cannot be told whose they are, by reason."""
        found: Counter[str] = Counter()
        for one in self.listeners:
            found.update(one.unidentified)
        return found

    # --- what its writer asks -------------------------------------------------------------------------------------------

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """Read this model's engines from now on, from where an earlier indexer was."""
        for name, why in recovered.unreadable.items():
            _LOG.warning("%s: what was kept of %s cannot be used, it is learned anew: %s", model_key, name, why)
        if self._models is not None:
            self._models.add(model_key)
        self._checkpoints = recovered.instances
        try:
            self._reconcile()
        finally:
            self._checkpoints = {}
        if any(member.model_key == model_key for member in self._members.values()):
            self.store.restore_shared_store_hints(model_key, recovered.hints)

    def stop_model(self, model_key: str) -> None:
        """Another indexer reads this model."""
        if self._models is not None:
            self._models.discard(model_key)
        self._reconcile()

    def instances(self, model_key: str) -> Sequence[str]:
        """All of the model that are read."""
        return [name for name, member in self._members.items() if member.model_key == model_key]

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """What the next indexer needs of an instance, as of now. Raises KeyError."""
        member = self._members[instance]
        kept, rows = self.store.take_snapshot(instance, self._clock.wall() - self._clock.now())
        position = member.position if member.subscription is None else member.subscription.position
        return InstanceCheckpoint(kept, rows, position)

    def shared_store_hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """What a shared store of the model probably holds, and until when."""
        return self.store.shared_store_hints(model_key)

    def instance_statuses(self, model_key: str) -> dict[str, InstanceStatus]:
        """What is written beside the index for whoever looks at it."""
        some = [member for member in self._members.values() if member.model_key == model_key]
        return {one.instance.id: one.instance_status(self.store.state(one.instance.id)) for one in some}

    async def close(self) -> None:
        """Stop reading. What the truth knows stays."""
        if self._closed:
            return
        self._closed = True
        self._expiry_timer.clear()
        self._adapter_timer.clear()
        for task in tuple(self._tasks):
            await cancel_and_wait(task)
        for member in self._members.values():
            if member.subscription is not None:
                member.subscription.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for one in self.listeners:
            one.close()
        self._context.sockets.close()

    # --- instances come and go ------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
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
                self._update_instance(there, one)

    def _attach(self, model_key: str, instance: Instance) -> None:
        member = self._members[instance.id] = EngineMember(model_key, instance)
        now = self._clock.now()
        changes = self.store.attach(instance.id, model_key, now)
        kept = self._checkpoints.get(instance.id)
        if kept is not None and kept.position is not None:
            try:
                changes += self.store.restore_snapshot(
                    instance.id, kept.slice, kept.rows, self._clock.wall() - now, now
                )
                member.position = kept.position
            except SnapshotError as error:
                _LOG.warning("%s: what was kept cannot be used, it is learned anew: %s", instance.id, error.message)
        self._offer(model_key, changes)
        where = endpoints_from_fleet(instance)
        if where is not None:
            self._subscribe(member, where)
        else:
            member.discovery = self._start_task(self._discover_endpoints(member))

    def _detach(self, member: EngineMember, reason: str) -> None:
        self.departed.add(member.status(self.store.state(member.instance.id)))
        del self._members[member.instance.id]
        member.is_gone = True
        if member.discovery is not None:
            member.discovery.cancel()
        if member.subscription is not None:
            member.subscription.close()
            self._remove_dialer(member.subscription)
        self._offer(member.model_key, self.store.detach(member.instance.id, reason))

    def _update_instance(self, member: EngineMember, instance: Instance) -> None:
        before, member.instance = member.instance, instance
        if before.state is InstanceState.SLEEPING and instance.state is not InstanceState.SLEEPING:
            self.on_cache_cleared(instance.id)  # its cache went when it fell asleep, and it has not stepped since
        where = endpoints_from_fleet(instance)
        if where is None:
            if (instance.url, before.kv_events) != (before.url, None):
                if member.discovery is None:
                    member.discovery = self._start_task(self._discover_endpoints(member))
                member.wake.set()
            return
        if member.discovery is not None:
            member.discovery.cancel()
            member.discovery = None
        if where != endpoints_from_fleet(before):
            self._subscribe(member, where)

    def _subscribe(self, member: EngineMember, where: EventEndpoints) -> None:
        """Read this member there from now on."""
        if member.subscription is not None:
            if where != member.subscription.endpoints:
                self._remove_dialer(member.subscription)
                member.subscription.replace_engine("its events have another address", where)
        else:
            member.subscription = EngineSubscription(member.instance.id, where, self._context, position=member.position)
            member.position = None
            member.subscription.start()
        member.problem = ""
        if where.events is None:
            self._dialers[instance_address(member.instance), member.instance.dp_rank] = member.subscription
            if not self.listeners:
                member.problem = "it dials an indexer to publish its events, and this one listens nowhere"

    def _remove_dialer(self, line: EngineSubscription) -> None:
        for key in [key for key, one in self._dialers.items() if one is line]:
            del self._dialers[key]
        for one in self.listeners:
            one.remove(line)

    def _find_dialer(self, place: str, rank: int | None) -> EngineSubscription | None:
        return self._dialers.get((place, rank))

    # --- what engines are asked -----------------------------------------------------------------------------------------

    async def _discover_endpoints(self, member: EngineMember) -> None:
        """Find out where an engine publishes, and again whenever it is not there: an engine that was restarted may be elsewhere."""
        limits, began = self._limits, self._clock.now()
        pause = limits.kv_query_pause_seconds
        while not member.is_gone:
            if member.subscription is None or not (
                member.subscription.is_connected or member.subscription.endpoints.events is None
            ):
                try:
                    async with self._query_slots:
                        answer = await self._query(member.instance, EVENT_SOURCES_PATH)
                    self._subscribe(member, endpoints_from_answer(answer, member.instance))
                    pause = limits.kv_query_pause_seconds
                except (Unavailable, BadInput) as error:
                    member.problem = error.message
                    pause = min(limits.max_kv_query_pause_seconds, pause * 2.0)
            if member.position is not None and self._clock.now() - began >= limits.kv_restart_seconds:
                member.position = None  # what was kept of it may be long gone
                reason = "nobody knows where its events are"
                self._offer(member.model_key, self.store.on_restarted(member.instance.id, reason, self._clock.now()))
            member.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await member.wake.wait()

    def _refresh_adapters(self) -> None:
        """Ask engines with adapters where these were loaded from: often while that is not known, else now and then."""
        limits, now = self._limits, self._clock.now()
        self._adapter_timer.set(limits.kv_adapter_pause_seconds, self._refresh_adapters)
        for name, member in self._members.items():
            if member.is_querying_adapters or member.subscription is None or member.subscription.is_replaying:
                continue
            unplaced = frozenset(self.store.unsourced_adapters(name))
            if unplaced - member.unsourced_adapters:  # one that was not asked about yet
                member.adapters_due_at = min(
                    member.adapters_due_at, member.adapters_queried_at + limits.kv_adapter_pause_seconds
                )
                member.adapters_pause_seconds = limits.kv_adapter_pause_seconds
            member.has_adapters, member.unsourced_adapters = member.has_adapters or bool(unplaced), unplaced
            if member.has_adapters and now >= member.adapters_due_at:
                member.is_querying_adapters = True
                self._start_task(self._query_adapters(member, now))

    async def _query_adapters(self, member: EngineMember, now: float) -> None:
        """Ask one. Names that it says nothing of are asked about ever more seldom."""
        limits, name = self._limits, member.instance.id
        pause = member.adapters_pause_seconds if member.unsourced_adapters else limits.kv_adapter_poll_seconds
        member.adapters_queried_at, member.adapters_due_at = now, now + pause
        member.adapters_pause_seconds = min(limits.kv_adapter_poll_seconds, member.adapters_pause_seconds * 2.0)
        try:
            async with self._query_slots:
                found = adapter_sources(await self._query(member.instance, MODELS_PATH))
        except FairleadError as error:
            _LOG.debug("%s: %s", name, error.message)
            return
        finally:
            member.is_querying_adapters = False
        if member.is_gone or member.subscription is None or member.subscription.is_replaying:
            return  # what is replayed is older than the answer: ask again
        changes: list[Change] = []
        for adapter, place in found.items():
            changes += self.store.on_adapter_source(name, adapter, place, self._clock.now())
        self._offer(member.model_key, changes)

    # --- what it means --------------------------------------------------------------------------------------------------

    def _on_applied(self, line: EngineSubscription, found: AppliedEvents) -> None:
        member = self._members[line.instance]
        if found.changes:
            self._sink.offer(member.model_key, found.changes, max(1, found.batches))
        if not line.is_connected and member.discovery is not None:
            member.wake.set()

    def _offer(self, model_key: str, changes: Sequence[Change]) -> None:
        if changes:
            self._sink.offer(model_key, changes)

    def _expire_hints(self) -> None:
        self._expiry_timer.set(self._limits.kv_expire_seconds, self._expire_hints)
        by_model: dict[str, list[Change]] = {}
        for change in self.store.expire(self._clock.now()):
            if isinstance(change, HintsExpired | HintsAdded):
                by_model.setdefault(change.model_key, []).append(change)
        for model_key, changes in by_model.items():
            self._offer(model_key, changes)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("an engine could not be asked", exc_info=error)


async def _fleets(source: FleetSource) -> Any:
    async for fleet in source.watch():
        yield fleet
