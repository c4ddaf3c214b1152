"""The index in Redis: leadership, takeovers and failovers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.blockstore.changes import BlocksStored, CompletenessChanged
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.block_store import instance_state
from fairlead_testing.kvstore.index_harness import (
    EVENTS_KEY,
    INDEX_KEY,
    LEASE_KEY,
    LIMITS,
    MODEL,
    NAMES,
    InMemoryIndexer,
    harness_with_redis,
    index_content,
    store_content,
)
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.processes import block_until
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.redis.valkey_cluster import ValkeyGroup
from fairlead_testing.waiting import wait_until as until

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]


async def test_index_equals_the_block_store_after_each_entry(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        for _ in range(60):
            await world.write(world.draw.randrange(3))
            await world.reader.step()
            world.assert_index_matches()
        assert {await redis.pttl(key) > 0 for key in (LEASE_KEY, INDEX_KEY, EVENTS_KEY)} == {True}, (
            "nothing stays for ever"
        )


async def test_parts_and_the_stream_are_loaded(server: Valkey) -> None:
    limits = replace(LIMITS, index_stream_entries=8, index_kept_batches=5)
    async with harness_with_redis(server.url, limits) as (world, redis):
        for _ in range(100):
            await world.write(2)
            assert await redis.xlen(EVENTS_KEY) <= 8 + len(NAMES), (
                "the stream is cut where all instances are written down"
            )
            late = IndexReader(world.link, world.clock)
            late.set_models([MODEL])
            await late.step()
            mirror = late.index(MODEL)
            assert mirror is not None, late.problem(MODEL)
            assert index_content(mirror) == store_content(world.indexer.store)
        assert len(await redis.hkeys(INDEX_KEY)) < 40, "parts that are over are taken away"


async def test_instance_without_a_snapshot_is_loaded_from_the_stream(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _):
        await world.write(20)
        book = world.writer._models[MODEL]
        reported = [
            CompletenessChanged("new/8000/0", True, "", 1.0),
            BlocksStored("new/8000/0", StorageTier.GPU, [11, 12]),
        ]
        world.writer.offer(MODEL, reported)
        await world.writer._write_waiting(book)
        for name in world.indexer.instances(MODEL):
            assert await world.writer._write_item(book, name), "all others are written down before it"
        late = IndexReader(world.link, world.clock)
        late.set_models([MODEL])
        await late.step()
        mirror = late.index(MODEL)
        assert mirror is not None, late.problem(MODEL)
        assert list(mirror.blocks_of("new/8000/0")) == [(11, StorageTier.GPU), (12, StorageTier.GPU)]
        assert mirror.completeness("new/8000/0") is not None


async def test_paused_leader_cannot_write_when_another_leads(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        old_indexer, old_writer = world.indexer, world.writer
        assert old_writer.is_leader(MODEL)
        world.indexer, world.writer = world.add_indexer("two")
        await world.writer.step()
        assert not world.writer.is_leader(MODEL)
        assert world.indexer.begun == 0, "it reads nothing meanwhile"
        await redis.delete(LEASE_KEY)  # the lease runs out while the old leader is paused
        await world.settle()
        assert world.writer.is_leader(MODEL)
        world.assert_index_matches()
        at = await redis.hget(INDEX_KEY, "at")
        world.serve_prompts(3)
        old_indexer.read()
        await old_writer.step()
        assert await redis.hget(INDEX_KEY, "at") == at, "it was told so by its next write"
        await old_writer.step()
        assert (old_indexer.ended, old_writer.is_leader(MODEL)) == (1, False)
        await world.settle()
        world.assert_index_matches()


async def test_expired_lease_is_retaken_without_a_new_epoch(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        await world.settle()
        at = await redis.hget(INDEX_KEY, "at")
        await redis.delete(LEASE_KEY)
        await world.write(5)
        await world.settle()
        world.assert_index_matches()
        assert (await redis.hget(INDEX_KEY, "at")).partition(b":")[0] == at.partition(b":")[0]
        assert world.indexer.begun == 1


async def test_new_indexer_continues_from_the_state_of_a_killed_one(server: Valkey) -> None:
    """Nothing of the old process is reused, and the engines' buffers do not reach back to all
    blocks.
    """
    limits = replace(LIMITS, index_kept_batches=20)
    async with harness_with_redis(server.url, limits) as (world, redis):
        for _ in range(40):
            await world.write(2)
        before = store_content(world.indexer.store)
        for engine in world.engines.values():
            del engine.frames[:-30]
        world.serve_prompts(10)  # published without a leader
        await redis.delete(LEASE_KEY)
        world.indexer, world.writer = world.add_indexer("two")
        await world.settle()
        assert world.indexer.recovered is not None
        assert not world.indexer.recovered.unreadable
        assert sorted(world.indexer.recovered.instances) == sorted(NAMES)
        world.assert_index_matches()
        for name, engine in world.engines.items():
            assert len(store_content(world.indexer.store)[name]) == len(engine._cached), "nothing lost, no ghost"
            assert instance_state(world.indexer.store, name).complete
        assert any(before.values())


async def test_engine_replaced_between_indexers_is_learned_again(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        for _ in range(20):
            await world.write(2)
        await redis.delete(LEASE_KEY)
        world.engines["a/1/0"] = PrefixCacheEngine(capacity=60, seed=99)
        for _ in range(30):
            world.engines["a/1/0"].serve_prompt([1, 2, 3, 4])
            world.engines["a/1/0"].publish()
        del world.engines["c/1/0"]
        world.indexer, world.writer = world.add_indexer("two")
        await world.settle()
        world.assert_index_matches()
        assert len(store_content(world.indexer.store)["a/1/0"]) == 1
        mirror = world.reader.index(MODEL)
        assert mirror is not None
        assert sorted(mirror.instances()) == ["a/1/0", "b/1/0"]
        fields = await redis.hkeys(INDEX_KEY)
        assert b"i:c/1/0" not in fields, "what is left of an instance that is gone is taken away"


async def test_departed_instances_leave_no_fields(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(6)
        await world.settle()
        for number in range(12):
            world.indexer.detach("b/1/0")
            if number % 2:
                await world.writer.step()
            world.indexer.attach("b/1/0")
            await world.write(2)
            await world.reader.step()
        await world.settle()
        world.assert_index_matches()
        world.indexer.detach("b/1/0")
        await world.settle()
        world.assert_index_matches()
        assert b"i:b/1/0" not in await redis.hkeys(INDEX_KEY)


QUICK = replace(Limits(), redis_pause_seconds=0.2, redis_ping_seconds=0.05, redis_timeout_seconds=2.0)
MODELS = [f"default/model-{number}" for number in range(6)]
"""In slots of every master of a cluster."""


def index_blocks(index: LoadedIndex | None) -> set[int]:
    return set() if index is None else {own for name in index.instances() for own, _ in index.blocks_of(name)}


class Live:
    """One engine per model; writers and a reader run by themselves."""

    def __init__(self, link: RedisLink, models: list[str]) -> None:
        self.engines = {key: PrefixCacheEngine(capacity=200, seed=number) for number, key in enumerate(models)}
        self.clock = SystemClock()
        self.indexers = [
            InMemoryIndexer(key, {"a/1/0": engine}, self.clock, QUICK) for key, engine in self.engines.items()
        ]
        self.writers = [
            IndexWriter(link, indexer, self.clock, holder="one", instance_statuses=lambda _: {}, limits=QUICK)
            for indexer in self.indexers
        ]
        self.feed = IndexReader(link, self.clock)
        self.feed.set_models(models)
        self.prompted = 0
        for indexer, writer in zip(self.indexers, self.writers, strict=True):
            indexer.sink = writer
            writer.set_models([indexer.model_key])

    def start(self) -> None:
        for writer in self.writers:
            writer.start()
        self.feed.start()

    async def stop(self) -> None:
        await self.feed.stop()
        for writer in self.writers:
            await writer.stop()

    def prompt(self) -> None:
        self.prompted += 1
        for indexer in self.indexers:
            self.engines[indexer.model_key].serve_prompt(list(range(self.prompted * 1_000, self.prompted * 1_000 + 24)))
            indexer.read()

    def agree(self) -> bool:
        """Asserts that every loaded index equals its block store."""
        return all(
            indexer.store.block_count
            and index_blocks(self.feed.index(indexer.model_key)) == {own for own, _ in indexer.store.content("a/1/0")}
            and not self.feed.problem(indexer.model_key)
            for indexer in self.indexers
            if "a/1/0" in indexer.store
        ) and all("a/1/0" in indexer.store for indexer in self.indexers)


@asynccontextmanager
async def live_indexers(url: str, models: list[str]) -> AsyncIterator[Live]:
    link = RedisLink(url, SystemClock(), limits=QUICK)
    link.start()
    live = Live(link, models)
    try:
        async with asyncio.timeout(60):
            await link.wait_connected()
        live.start()
        await until(lambda: all(indexer.begun for indexer in live.indexers))
        yield live
    finally:
        await live.stop()
        await link.stop()


async def test_writes_lost_in_a_failover_are_written_again(pair: ValkeyGroup) -> None:
    """The replica hangs while entries and an epoch are written, the master dies, and the replica is
    promoted.
    """
    _own, idx, ev = redis_keys.index_keys(MODELS[0])
    async with live_indexers(pair.url, MODELS[:1]) as live:
        master, replica = pair.nodes
        live.prompt()
        await until(live.agree)
        await asyncio.to_thread(
            block_until, lambda: replica.execute("XLEN", ev) == master.execute("XLEN", ev), "it has all"
        )
        before = master.execute("HGET", idx, "at")
        replica.freeze()
        for _ in range(2):  # more than sockets hold: what comes after it never leaves the master
            await asyncio.to_thread(master.execute, "SET", "other", "x" * 16_000_000)
        for _ in range(3):
            live.prompt()
            await until(live.agree)
        assert master.execute("HGET", idx, "at") != before
        master.kill()
        replica.thaw()
        await until(lambda: not live.feed._link.state.connected)
        await until(lambda: bool(live.feed.problem(MODELS[0])))
        await until(live.agree)
        live.prompt()
        await until(live.agree)
        assert replica.execute("ROLE")[0] == "master"
        assert live.indexers[0].begun == 1, "the truth went on"
        assert replica.execute("HGET", idx, "at").partition(":")[0] > before.partition(":")[0], "a new epoch"


async def test_models_spread_over_cluster_masters_and_each_is_complete(ring: ValkeyGroup) -> None:
    async with live_indexers(ring.url, MODELS) as live:
        for _ in range(5):
            live.prompt()
            await until(live.agree)
        held = [await asyncio.to_thread(node.execute, "DBSIZE") for node in ring.nodes[:3]]
        assert sum(held) == 3 * len(MODELS)
        assert all(held), "every master has some"
        first, replica = ring.nodes[0], ring.nodes[3]
        first.kill()
        await until(lambda: replica.execute("ROLE")[0] == "master")
        live.prompt()
        await until(live.agree)
