"""The reader of a fleet: reads the KV events of its engines, and passes the changes to a sink.

It runs in indexers (``indexer/service.py``, with Redis behind the sink) and inside each gateway.
It is single-threaded and does not wait. An event is applied and offered in the iteration of the
loop that reads it, large batches in slices. ``reader/fair_scheduler.py`` bounds the reads of one
engine. Only HTTP queries for an engine's endpoints are tasks.

    fleet ──▶ attach, detach ──▶ BlockStore ◀── EventApplication ◀── EngineSubscription ◀── ZMQ
                                     └──changes──▶ ChangeSink

Several indexers share the work by a lease per model (``index/writer.py``): an indexer reads only
the engines of the models that it writes. A new leader continues from its predecessor's blocks and
stream positions in Redis. A replay from there proves that the process is the same and brings the
missed batches. So a restarted indexer loses nothing and leaves no ghosts.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from fairlead.errors import BadInput, Unavailable
from fairlead.fleet.endpoint_resolver import EndpointResolver
from fairlead.fleet.model import Fleet, Instance
from fairlead.fleet.model import InstanceState as FleetState
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.storage_tiers import is_shared_store, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.events.types import ProcessRestarted, StreamPosition
from fairlead_kvstore.index.format import InstanceStatus
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex
from fairlead_kvstore.reader.endpoints import EventEndpoints, endpoints_from_answer, endpoints_from_fleet
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH, EngineQuery
from fairlead_kvstore.reader.engine_subscription import KV_RESTART_SECONDS, EngineSubscription
from fairlead_kvstore.reader.event_application import AppliedEvents
from fairlead_kvstore.reader.namespace_slots import NamespaceSlots
from fairlead_kvstore.reader.reader_context import OneShotTimer, ReaderContext, ReaderRuntime

KV_EXPIRE_SECONDS: Final = 5.0
"""Limit: interval at which expired blocks of shared stores are dropped."""
MAX_KV_QUERY_PAUSE_SECONDS: Final = 60.0
"""Limit: longest pause between queries for an engine's KV events; it may have none at all."""

_LOG: Final = logging.getLogger("fairlead.indexer")
_MAX_CONCURRENT_QUERIES: Final = 16

COUNTERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "batches": "applied batches of events",
        "bytes": "bytes of messages from engines",
        "duplicates": "batches that were read before",
        "gaps": "gaps in the numbers of batches",
        "replays": "requested replays",
        "replays_failed": "replays that did not arrive completely",
        "lost": "losses of batches, each of which drops an instance's blocks",
        "restarts": "engine processes that replaced another",
        "connects": "connections to engines' events",
        "disconnects": "connections that broke",
        "defects": "messages that revealed a defect of the indexer",
        "orphans": "blocks that arrived before their parent",
        "linked": "orphan blocks whose parent arrived later",
        "dropped": "blocks dropped for lack of memory",
        "unknown_events": "events of an unknown kind",
        "refused_events": "inconsistent stored events",
    }
)
"""The counters that are shown, and what they count."""


@dataclass(slots=True)
class EngineMember:
    """One instance that is read. Times are monotonic seconds.

    subscription: None until the endpoint of its events is known.
    position: the stream position of an indexer that has read it, until the subscription takes it.
    """

    model_key: str
    instance: Instance
    subscription: EngineSubscription | None = None
    position: StreamPosition | None = None
    discovery: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = "the endpoint of its events is not known yet"
    is_gone: bool = False

    def status(self, blocks: InstanceBlocks) -> InstanceStatus:
        """Returns the status, together with that of its blocks."""
        subscription, evicted = self.subscription, blocks.evicted_age_seconds
        status = InstanceStatus(
            url=self.instance.url,
            block_size=blocks.block_size,
            trouble=self.problem,
            blocks=len(blocks),
            orphans=blocks.orphan_count,
            evicted_age_seconds=None if evicted is None else round(evicted, 1),
        )
        if subscription is None:
            return status
        lag = subscription.lag_seconds
        return msgspec.structs.replace(
            status,
            events=subscription.endpoints.events,
            replay=subscription.endpoints.replay,
            connected=subscription.is_connected,
            replaying=subscription.is_replaying,
            trouble="" if subscription.is_connected else self.problem or subscription.problem,
            following=subscription.next_number,
            lag_seconds=None if lag is None else round(lag, 3),
        )


class ChangeSink(Protocol):
    """A consumer of the changes of models, in order: the writer to Redis, or a gateway.

    It never blocks and never fails. Changes are offered in the iteration of the event loop in which
    the block store changed. A writer that takes a snapshot of the store therefore knows that the
    waiting changes are part of it.
    """

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Takes the changes of ``batches`` batches of one model (``namespace/name``). Returns at
        once and never raises.
        """


class FleetReader:
    """The reader of a fleet. Create it on the loop that runs it, and call ``close`` at the end.

    leased: reads a model only from ``start_model`` to ``stop_model``; otherwise reads all models.
    """

    def __init__(
        self,
        store: BlockStore,
        sink: ChangeSink,
        query: EngineQuery,
        runtime: ReaderRuntime,
        *,
        leased: bool = False,
    ) -> None:
        limits, loop = runtime.limits, runtime.loop
        self.store = store
        self._sink = sink
        self._clock = runtime.clock
        self._query = query
        self._limits = limits
        self._fleet = Fleet()
        self._endpoints = EndpointResolver()
        self._models: set[str] | None = set() if leased else None
        self._checkpoints: Mapping[str, InstanceCheckpoint] = {}
        self._members: dict[str, EngineMember] = {}
        self._query_slots = NamespaceSlots(_MAX_CONCURRENT_QUERIES)
        self._closed = False
        self._context = ReaderContext(runtime, store, self._on_applied)
        self._expiry_timer, self._eviction_timer = OneShotTimer(loop), OneShotTimer(loop)
        self._expire_shared_blocks()

    # --- fleet ----------------------------------------------------------------------------------------------------------

    def update_fleet(self, fleet: Fleet) -> None:
        """Attaches new instances of the fleet, updates changed ones and detaches departed ones."""
        self._fleet = fleet
        self._endpoints.update_fleet(fleet)
        self._reconcile()

    def members(self) -> list[tuple[EngineMember, InstanceBlocks]]:
        return [(member, self.store.instance(name)) for name, member in self._members.items()]

    # --- owner of the writer --------------------------------------------------------------------------------------------

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """Begins to read a model's engines, from the state that an earlier indexer left."""
        for name, why in recovered.unreadable.items():
            _LOG.warning(
                "%s: the snapshot of %s cannot be used; its blocks are learned again: %s", model_key, name, why
            )
        if self._models is not None:
            self._models.add(model_key)
        self._checkpoints = recovered.instances
        try:
            self._reconcile()
        finally:
            self._checkpoints = {}
        shared, now = shared_store_id(model_key), self._clock.now()
        found = recovered.instances.get(shared)
        if found is not None and found.table is not None and self.instances(model_key):
            self.store.restore_table(shared, found.slice, found.table, self._clock.wall() - now, now)

    def stop_model(self, model_key: str) -> None:
        """Stops reading a model's engines, because another indexer does."""
        if self._models is not None:
            self._models.discard(model_key)
        self._reconcile()

    def instances(self, model_key: str) -> Sequence[str]:
        """Returns the instances of the model that are read, and its shared store if it has one."""
        shared = shared_store_id(model_key)
        names = [name for name, member in self._members.items() if member.model_key == model_key]
        return [*names, shared] if shared in self.store else names

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """Returns the state of an instance for the next indexer. Raises KeyError if it is
        not read.
        """
        snapshot, rows = self.store.take_snapshot(instance, self._clock.wall() - self._clock.now())
        if is_shared_store(instance):
            return InstanceCheckpoint(snapshot, rows, StreamPosition(0, []))
        member = self._members[instance]
        position = member.position if member.subscription is None else member.subscription.position
        is_partial = member.subscription is not None and member.subscription.is_busy
        return InstanceCheckpoint(snapshot, rows, position, is_partial=is_partial)

    def instance_statuses(self, model_key: str | None = None) -> dict[str, InstanceStatus]:
        members = [pair for pair in self.members() if model_key in (None, pair[0].model_key)]
        return {member.instance.id: member.status(blocks) for member, blocks in members}

    async def close(self) -> None:
        """Stops reading; the block store keeps its blocks."""
        if self._closed:
            return
        self._closed = True
        self._expiry_timer.clear()
        self._eviction_timer.clear()
        for member in self._members.values():
            await cancel_and_wait(member.discovery)
            if member.subscription is not None:
                member.subscription.close()

    # --- instances ------------------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        if self._closed:
            return
        wanted: dict[str, tuple[str, Instance]] = {}
        for key, instances in self._fleet.instances.items():
            if self._models is None or key in self._models:
                for instance in instances:
                    if not instance.leaves_cluster:  # an API that others run publishes no events
                        # If two models list an instance, it belongs to the first.
                        wanted.setdefault(instance.id, (key, instance))
        for name, member in list(self._members.items()):
            if name not in wanted:
                self._detach(member, "it left the fleet")
            elif wanted[name][0] != member.model_key:
                self._detach(member, "it serves another model")
        for name, (key, instance) in wanted.items():
            known = self._members.get(name)
            if known is None:
                self._attach(key, instance)
            elif known.instance != instance:
                self._update_instance(known, instance)

    def _attach(self, model_key: str, instance: Instance) -> None:
        member = self._members[instance.id] = EngineMember(model_key, instance)
        now = self._clock.now()
        changes = self.store.attach(instance.id, model_key, now)
        recovered = self._checkpoints.get(instance.id)
        if recovered is not None and recovered.position is not None and recovered.table is not None:
            wall = self._clock.wall() - now
            changes += self.store.restore_table(instance.id, recovered.slice, recovered.table, wall, now)
            member.position = recovered.position
            self._eviction_timer.set(0.0, self._evict_some)
        self._offer(model_key, changes)
        endpoints = endpoints_from_fleet(instance)
        if endpoints is not None:
            self._subscribe(member, endpoints)
        else:
            self._start_discovery(member)
            self._report_sleep(member)

    def _report_sleep(self, member: EngineMember) -> None:
        """Passes on whether an engine sleeps, which cleared its cache."""
        is_asleep = member.instance.state is FleetState.SLEEPING
        if member.subscription is not None:
            member.subscription.on_reports([EngineSleep(is_asleep)])
        elif is_asleep:
            self._drop_restored_blocks(member, "its cache was cleared when it fell asleep")

    def _evict_some(self) -> None:
        """Evicts some of the restored blocks that are above the bounds, and later the next ones."""
        if self.store.evict_some(self._clock.now()):
            self.offer_evictions()
            self._eviction_timer.set(0.0, self._evict_some)

    def _detach(self, member: EngineMember, reason: str) -> None:
        del self._members[member.instance.id]
        member.is_gone = True
        if member.discovery is not None:
            member.discovery.cancel()
        if member.subscription is not None:
            member.subscription.close()
        self._offer(member.model_key, self.store.detach(member.instance.id, reason))

    def _update_instance(self, member: EngineMember, instance: Instance) -> None:
        before, member.instance = member.instance, instance
        if (before.state is FleetState.SLEEPING) != (instance.state is FleetState.SLEEPING):
            self._report_sleep(member)
        endpoints = endpoints_from_fleet(instance)
        if endpoints is None:
            if (instance.url, before.kv_events) != (before.url, None):
                if member.discovery is None:
                    self._start_discovery(member)
                member.wake.set()
            return
        if member.discovery is not None:
            member.discovery.cancel()
            member.discovery = None
        if endpoints != endpoints_from_fleet(before):
            self._subscribe(member, endpoints)

    def _subscribe(self, member: EngineMember, endpoints: EventEndpoints) -> None:
        """Subscribes to a member's events, or moves its subscription to other endpoints."""
        if member.subscription is not None:
            if endpoints != member.subscription.endpoints:
                member.subscription.replace_engine("the endpoint of its events changed", endpoints)
        else:
            member.subscription = EngineSubscription(
                member.instance.id, member.model_key, endpoints, self._context, position=member.position
            )
            member.position = None
            member.subscription.start()
            self._report_sleep(member)
        member.problem = ""

    # --- queries to engines --------------------------------------------------------------------------------------------

    async def _query_endpoints(self, member: EngineMember) -> EventEndpoints:
        """Returns an engine's endpoints by its answer. Raises Unavailable and BadInput."""
        query = partial(self._query, member.instance, EVENT_SOURCES_PATH)
        answer = await self._query_slots.run(member.instance.namespace, query)
        address = await self._permitted_address(member.instance)
        return endpoints_from_answer(answer, member.instance, address)  # the instance may be another by now

    def _start_discovery(self, member: EngineMember) -> None:
        work = partial(self._discover_endpoints, member)
        member.discovery = asyncio.ensure_future(run_despite_defects(work, _LOG, "queries to an engine"))

    async def _discover_endpoints(self, member: EngineMember) -> None:
        """Queries the engine for its endpoints, and again whenever it is disconnected.

        Recovered blocks are dropped if no endpoint is found within ``kv_restart_seconds``.

        Why: a restarted engine may have other endpoints. One that names other ones each time is
        queried after pauses.
        """
        limits, began = self._limits, self._clock.now()
        pause = limits.kv_query_pause_seconds
        while not member.is_gone:
            has_moved = False
            if member.subscription is None or not member.subscription.is_connected:
                try:
                    endpoints = await self._query_endpoints(member)
                    has_moved = member.subscription is not None and member.subscription.endpoints != endpoints
                    self._subscribe(member, endpoints)
                    pause = limits.kv_query_pause_seconds
                except (Unavailable, BadInput) as error:
                    member.problem = error.message
                    pause = min(MAX_KV_QUERY_PAUSE_SECONDS, pause * 2.0)
            if member.position is not None and self._clock.now() - began >= KV_RESTART_SECONDS:
                self._drop_restored_blocks(member, "the endpoint of its events is unknown")
            member.wake.clear()
            if has_moved:
                await asyncio.sleep(pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await member.wake.wait()

    async def _permitted_address(self, instance: Instance) -> str | None:
        """Returns the address of an endpoint that a Kubernetes object names; None for any other
        engine. Raises Unavailable if it is refused.

        Why: ZMQ resolves names by itself, at each connection.
        """
        if not instance.checks_address:
            return None
        parts = urlsplit(instance.url)
        try:
            return await self._endpoints.resolve(parts.hostname or "", parts.port or 80)
        except OSError as error:
            raise Unavailable(f"KV events cannot be read: {error}") from error

    def _drop_restored_blocks(self, member: EngineMember, reason: str) -> None:
        """Drops what a member without a subscription has from a snapshot, which may be outdated."""
        member.position = None
        restart = ProcessRestarted(reason)
        self._offer(member.model_key, self.store.apply_at_once(member.instance.id, restart, self._clock.now()))

    # --- changes --------------------------------------------------------------------------------------------------------

    def _on_applied(self, instance: str, found: AppliedEvents) -> None:
        member = self._members[instance]
        if found.changes:
            self._sink.offer(member.model_key, found.changes, found.batches)
        self.offer_evictions()
        subscription = member.subscription
        if member.discovery is not None and subscription is not None and not subscription.is_connected:
            member.wake.set()

    def _offer(self, model_key: str, changes: Sequence[Change]) -> None:
        if changes:
            self._sink.offer(model_key, changes)
        self.offer_evictions()

    def offer_evictions(self) -> None:
        for model_key, changes in self.store.take_evictions().items():
            self._sink.offer(model_key, changes)

    def _expire_shared_blocks(self) -> None:
        has_more = self.store.expire(self._clock.now())
        self._expiry_timer.set(0.0 if has_more else KV_EXPIRE_SECONDS, self._expire_shared_blocks)
        self.offer_evictions()
