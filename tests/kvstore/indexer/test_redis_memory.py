"""The bound of an indexer by the memory of Redis."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.blockstore.storage_tiers import shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.payloads import EventBatch, StoredEvent
from fairlead_kvstore.index.writer_state import INDEX_STREAM_BYTES
from fairlead_kvstore.indexer.redis_memory import RedisMemoryBound
from fairlead_testing.kvstore.block_store import MODEL, SingleInstanceStore, apply_batch, stored_event
from fairlead_testing.kvstore.index_harness import harness_with_redis
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.redis.valkey import Valkey

pytestmark = pytest.mark.sockets

MIB = 1024 * 1024
LIMITS = Limits()


class Link:
    """A Redis with the reply that a test sets."""

    def __init__(self, reply: int | ResponseError | None) -> None:
        self.reply = reply

    async def max_memory(self) -> int | ResponseError | None:
        return self.reply


class Process:
    """The indexer and writer of one process, as far as the bound uses them."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.store = BlockStore(limits=limits)
        self.max_stream_bytes = INDEX_STREAM_BYTES
        self.offers: list[int] = []

    def offer_evictions(self) -> None:
        self.offers.append(sum(len(changes) for changes in self.store.take_evictions().values()))


def bound(link: Link, process: Process, *, led: int = 1, limits: Limits = LIMITS) -> RedisMemoryBound:
    redis: Any = link
    fake: Any = process
    return RedisMemoryBound(redis, fake, fake, ManualClock(100.0), lambda: led, limits)


def fill(store: BlockStore, instance: str, count: int) -> None:
    for first in range(0, count, 1_000):
        handles = list(range(first + 1, first + 1_001))
        event = StoredEvent([*handles], first or None, handles, 1, medium="GPU")
        apply_batch(store, instance, EventBatch(0.0, [event]), 1.0)


async def test_blocks_and_streams_are_bounded_by_the_memory_of_redis() -> None:
    process = Process()
    await bound(Link(256 * MIB), process, led=4).read_once()
    assert process.store.max_blocks == 2 * MIB
    assert process.max_stream_bytes == 8 * MIB


async def test_redis_without_maxmemory_leaves_the_limits_alone() -> None:
    process = Process()
    memory = bound(Link(0), process)
    await memory.read_once()
    assert (process.store.max_blocks, process.max_stream_bytes) == (LIMITS.kv_blocks, INDEX_STREAM_BYTES)
    assert (memory.max_memory, memory.warnings()) == (0, [])


async def test_tiny_maxmemory_leaves_some_blocks() -> None:
    process = Process()
    await bound(Link(1), process).read_once()
    assert process.store.max_blocks == 65_536


def test_refusal_of_redis_to_tell_its_memory_is_shown() -> None:
    process = Process()
    link = Link(256 * MIB)
    memory = bound(link, process)
    asyncio.run(memory.read_once())
    link.reply = ResponseError("NOPERM this user has no permissions to run the 'info' command")
    asyncio.run(memory.read_once())
    assert process.store.max_blocks == LIMITS.kv_blocks
    assert memory.max_memory is None
    assert "no permissions" in memory.warnings()[0]


def test_bound_stays_while_redis_is_away() -> None:
    process = Process()
    link = Link(256 * MIB)
    memory = bound(link, process)
    asyncio.run(memory.read_once())
    link.reply = None
    asyncio.run(memory.read_once())
    assert (process.store.max_blocks, memory.max_memory) == (2 * MIB, 256 * MIB)


async def test_lowered_bound_evicts_in_steps_that_the_writer_can_follow() -> None:
    process = Process()
    process.store.attach("i", MODEL, 0.0)
    fill(process.store, "i", 90_000)
    memory = bound(Link(128 * 70_000), process)
    assert memory.warnings() == []
    await memory.read_once()
    assert process.store.block_count <= 70_000
    assert len(process.offers) > 1
    assert all(process.offers)
    assert "give Redis more memory" in memory.warnings()[0]


def test_blocks_of_a_shared_store_count_in_the_bound() -> None:
    index = SingleInstanceStore()
    index.store.set_max_blocks(4, 0.0)
    index.apply(stored_event(0, 5, medium="STORAGE", locality="REMOTE"))
    assert (index.store.block_count, len(list(index.store.content(shared_store_id(MODEL))))) == (4, 4)


async def test_blocks_of_one_model_push_no_other_index_out_of_redis(server: Valkey) -> None:
    async with harness_with_redis(server.url, replace(LIMITS, index_lease_seconds=60.0)) as (harness, redis):
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.config_set("maxmemory", shortened(16, 8) * MIB)
        await redis.set("index of another model", bytes(MIB))
        process: Any = Process()
        process.store = harness.indexer.store
        await RedisMemoryBound(
            harness.link, process, harness.writer, harness.clock, lambda: 1, harness.limits
        ).read_once()
        await harness.writer.step()
        instance = next(iter(harness.engines))
        for _ in range(shortened(3, 2)):
            fill(harness.indexer.store, instance, shortened(400_000, 160_000))
            harness.writer._models[MODEL].require_new_epoch()
            harness.clock.advance(1.0)
            await harness.writer.step()
        assert await redis.exists("index of another model")
        assert harness.writer.is_leader(MODEL)
        assert (await redis.info("stats"))["evicted_keys"] == 0
