"""A process that starts while an indexer writes recovers what Redis has, and replays the rest."""

from collections.abc import Sequence
from typing import Any

import pytest

from fairlead_kvstore.index.format import header_field
from fairlead_kvstore.index.recovery import RecoveredIndex, recover_index
from fairlead_kvstore.redis.backends import Command
from fairlead_testing.kvstore.block_store import instance_state
from fairlead_testing.kvstore.index_harness import (
    FINGERPRINT,
    INDEX_KEY,
    MODEL,
    NAMES,
    IndexHarness,
    InMemoryIndexer,
    harness_with_redis,
    store_content,
)
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey

pytestmark = pytest.mark.sockets


async def recover(world: IndexHarness, link: Any = None, fingerprint: int = FINGERPRINT) -> RecoveredIndex | None:
    now = world.clock.now()
    return await recover_index(link or world.link, MODEL, world.clock.wall() - now, fingerprint=fingerprint)


def reader_after(world: IndexHarness, found: RecoveredIndex) -> InMemoryIndexer:
    """Returns a process that has read the engines from the recovered state on."""
    reader = InMemoryIndexer(MODEL, world.engines, world.clock, world.limits)
    reader.start_model(MODEL, found)
    return reader


async def test_recovered_state_and_replays_equal_what_the_indexer_has(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _):
        recovered_blocks = 0
        for _ in range(30):
            await world.write(world.draw.randrange(1, 4))
            found = await recover(world)
            assert found is not None
            assert not found.unreadable
            recovered_blocks += sum(len(one.table or ()) for one in found.instances.values())
            reader = reader_after(world, found)
            assert store_content(reader.store) == store_content(world.indexer.store)
            for name in NAMES:
                assert instance_state(reader.store, name).complete == instance_state(world.indexer.store, name).complete
        assert recovered_blocks > 100


async def test_engine_that_was_replaced_since_leaves_no_ghost(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _):
        await world.write(40)
        world.engines[NAMES[0]] = PrefixCacheEngine(capacity=60, seed=9)
        found = await recover(world)
        assert found is not None
        reader = reader_after(world, found)
        assert store_content(reader.store)[NAMES[0]] == set()
        assert store_content(reader.store)[NAMES[1]] == store_content(world.indexer.store)[NAMES[1]]


class Replacing:
    """A link on which each read of parts comes after the writer has replaced them."""

    def __init__(self, world: IndexHarness, times: int) -> None:
        self.world = world
        self.times = times

    async def run(self, commands: Sequence[Command]) -> list[Any] | None:
        name = commands[0]
        if name[0] == "HMGET" and self.times and bytes(name[2]).startswith(b"c:"):
            self.times -= 1
            await self.world.write(30)
            for instance in NAMES:
                await self.world.writer._write_item(self.world.writer._models[MODEL], instance)
        return await self.world.link.run(commands)


@pytest.mark.parametrize(("times", "unreadable"), [(2, 0), (3, 1)])
async def test_instance_is_read_again_where_its_parts_were_replaced(
    server: Valkey, times: int, unreadable: int
) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(40)
        await redis.hdel(INDEX_KEY, *(header_field(name) for name in NAMES[1:]))
        found = await recover(world, Replacing(world, times))
        assert found is not None
        assert len(found.unreadable) == unreadable
        assert all("missing" in why for why in found.unreadable.values())
        reader = reader_after(world, found)
        reader.read()
        assert store_content(reader.store) == store_content(world.indexer.store)


async def test_index_with_another_secret_or_without_one_is_not_recovered(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        other = await recover(world, fingerprint=FINGERPRINT + 1)
        assert other == RecoveredIndex(has_other_secret=True)
        for damaged in (b"\xff", None):
            await (redis.hset(INDEX_KEY, "n", damaged) if damaged else redis.hdel(INDEX_KEY, "n"))
            assert await recover(world) == RecoveredIndex()
        await redis.delete(INDEX_KEY)
        await redis.set(INDEX_KEY, "a string")
        assert await recover(world) is None
