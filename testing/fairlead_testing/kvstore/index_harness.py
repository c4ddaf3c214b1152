"""An indexer without sockets, for tests and measurements.

Engines pass it their frames directly. ``IndexHarness`` adds three engines and a reader around one
Redis.
"""

import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, Final

from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, ManualClock
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, is_shared_store, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import StreamOutcome, StreamPosition
from fairlead_kvstore.fleet_reader import ChangeSink
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import secret_fingerprint
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.block_store import instance_state
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.waiting import wait_until

MODEL: Final = "default/tiny"
LEASE_KEY, INDEX_KEY, EVENTS_KEY = redis_keys.index_keys(MODEL)
LIMITS: Final = replace(
    Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_timeout_seconds=5.0, index_lease_seconds=60.0
)
FINGERPRINT: Final = secret_fingerprint(b"")
NAMES: Final = ("a/1/0", "b/1/0", "c/1/0")


class InMemoryIndexer:
    """The engines of one model, by instance.

    The leader reads them. Their changes go to ``sink``, which is set afterwards.
    """

    def __init__(self, model_key: str, engines: dict[str, PrefixCacheEngine], clock: Clock, limits: Limits) -> None:
        self.model_key = model_key
        self.engines = engines
        self.store = BlockStore(limits=limits)
        self.sequencers: dict[str, EventSequencer] = {}
        self.recovered: RecoveredIndex | None = None
        self.sink: ChangeSink | None = None
        self.begun = 0
        self.ended = 0
        self._clock = clock
        self._limits = limits
        self._read: dict[str, int] = {}

    # --- owner of the writer --------------------------------------------------------------------------------------------

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """Attaches all engines, restores the checkpoint, and reads."""
        self.begun += 1
        self.recovered = recovered
        for instance in self.engines:
            self.attach(instance, recovered.instances.get(instance))
        shared, now = shared_store_id(model_key), self._clock.now()
        kept = recovered.instances.get(shared)
        if kept is not None and kept.table is not None and self.engines:
            self.store.restore_table(shared, kept.slice, kept.table, self._ahead(), now)

    def stop_model(self, model_key: str) -> None:
        self.ended += 1
        self.store, self.sequencers = BlockStore(limits=self._limits), {}

    def instances(self, model_key: str) -> Sequence[str]:
        shared = shared_store_id(model_key)
        return [*self.sequencers, *([shared] if shared in self.store else [])]

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """Returns the present checkpoint of an instance."""
        kept, rows = self.store.take_snapshot(instance, self._ahead())
        position = StreamPosition(0, []) if is_shared_store(instance) else self.sequencers[instance].position
        return InstanceCheckpoint(kept, rows, position)

    # --- steps of tests --------------------------------------------------------------------------------------------------

    def attach(self, instance: str, kept: InstanceCheckpoint | None = None) -> None:
        """Starts to read this engine."""
        now = self._clock.now()
        self.offer(self.store.attach(instance, self.model_key, now))
        position = None
        if kept is not None and kept.position is not None and kept.table is not None:
            self.offer(self.store.restore_table(instance, kept.slice, kept.table, self._ahead(), now))
            position = kept.position
        stream = self.sequencers[instance] = EventSequencer(replayable=True, limits=self._limits, position=position)
        self._read[instance] = self.engines[instance].number
        self.handle(instance, stream.on_connected())

    def detach(self, instance: str) -> None:
        del self.sequencers[instance]
        self.offer(self.store.detach(instance, "gone"))

    def reconnect(self, instance: str) -> None:
        """Breaks the connection and opens it again; unread frames are lost."""
        if instance in self.sequencers:
            self._read[instance] = self.engines[instance].number
            self.handle(instance, self.sequencers[instance].on_disconnected())
            self.handle(instance, self.sequencers[instance].on_connected())

    def read(self) -> None:
        """Reads all frames that the engines have published since."""
        for instance, stream in list(self.sequencers.items()):
            engine = self.engines[instance]
            engine.publish()
            for frame in engine.replay(self._read[instance]):
                self.handle(instance, stream.on_live_frame(frame))
            self._read[instance] = engine.number

    def handle(self, instance: str, outcomes: Iterable[StreamOutcome]) -> None:
        """Applies a frame, and answers replay requests."""
        found = apply_outcomes(self.store, instance, outcomes, self._clock.now(), self._limits)
        self.offer(found.changes)
        if found.replay_from is not None:
            for frame in [*self.engines[instance].replay(found.replay_from), None]:
                self.handle(instance, self.sequencers[instance].on_replayed_frame(frame))

    def offer(self, changes: list[Change]) -> None:
        if self.sink is not None:
            self.sink.offer(self.model_key, changes)

    def _ahead(self) -> float:
        return self._clock.wall() - self._clock.now()


def store_content(store: BlockStore) -> dict[str, set[tuple[int, StorageTier]]]:
    return {name: set(store.content(name)) for name in NAMES if name in store}


def index_content(index: LoadedIndex) -> dict[str, set[tuple[int, StorageTier]]]:
    return {name: set(index.blocks_of(name)) for name in index.instances()}


class IndexHarness:
    """Engines, an indexer and a reader around one Redis; each moves only on demand."""

    def __init__(self, url: str, limits: Limits = LIMITS) -> None:
        self.url, self.limits = url, limits
        self.clock = ManualClock(1_000.0)
        self.draw = Random(7)
        self.engines = {
            name: PrefixCacheEngine(capacity=60, seed=number, maps=bool(number % 2))
            for number, name in enumerate(NAMES)
        }
        self.link = RedisLink(url, self.clock, limits=limits)
        self.reader = IndexReader(self.link, self.clock)
        self.reader.set_models([MODEL])
        self.indexer, self.writer = self.add_indexer("one")

    def add_indexer(self, holder: str) -> tuple[InMemoryIndexer, IndexWriter]:
        """Returns an indexer without any state."""
        indexer = InMemoryIndexer(MODEL, self.engines, self.clock, self.limits)
        writer = IndexWriter(
            self.link,
            indexer,
            self.clock,
            holder=holder,
            instance_statuses=lambda _: {},
            fingerprint=FINGERPRINT,
            limits=self.limits,
        )
        indexer.sink = writer
        writer.set_models([MODEL])
        return indexer, writer

    def serve_prompts(self, count: int = 1) -> None:
        """Serves prompts with shared prefixes at random engines."""
        for _ in range(count):
            name = self.draw.choice(list(self.engines))
            head, tail, length = self.draw.randrange(4), self.draw.randrange(6), self.draw.randrange(4, 60)
            tokens = [
                head * 1_000 + index if index < 20 else tail * 10_000 + head * 1_000 + index for index in range(length)
            ]
            self.engines[name].serve_prompt(tokens)
            self.engines[name].publish()

    async def write(self, count: int = 1) -> None:
        """Serves so many prompts, reads their events and writes the changes."""
        self.serve_prompts(count)
        self.indexer.read()
        await self.writer.step()

    async def settle(self) -> None:
        """Moves the clock, and lets all parts do their pending work."""
        for _ in range(8):
            self.clock.advance(25.0)
            await self.link.wait_connected()
            self.indexer.read()
            await self.writer.step()
            await self.reader.step()

    def assert_index_matches(self) -> None:
        """Asserts that the loaded index equals the store."""
        index = self.reader.index(MODEL)
        assert index is not None, self.reader.problem(MODEL)
        assert index_content(index) == store_content(self.indexer.store)
        for name in store_content(self.indexer.store):
            state, known = instance_state(self.indexer.store, name), index.completeness(name)
            assert known is not None
            assert known[:2] == (state.complete, state.reason)
            assert math.isclose(known[2], state.since, abs_tol=0.01)
        assert not self.reader.problem(MODEL)

    async def wait_redis_lost(self) -> None:
        await wait_until(lambda: not self.link.state.connected)


@asynccontextmanager
async def index_harness(url: str, limits: Limits) -> AsyncIterator[IndexHarness]:
    """Yields a harness whose link is up."""
    harness = IndexHarness(url, limits)
    harness.link.start()
    await harness.link.wait_connected()
    try:
        yield harness
    finally:
        await harness.link.stop()


@asynccontextmanager
async def harness_with_redis(url: str, limits: Limits = LIMITS) -> AsyncIterator[tuple[IndexHarness, Any]]:
    async with index_harness(url, limits) as harness, Redis.from_url(url) as redis:
        yield harness, redis
