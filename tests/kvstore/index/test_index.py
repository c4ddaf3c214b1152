"""An indexer, a real Redis and a replica: leadership, late subscribers and takeovers; the replica
equals the block store.
"""

from dataclasses import replace

import pytest

from fairlead_kvstore.blockstore.changes import BlocksStored, CompletenessChanged
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.index.writer_state import HINTS_ITEM
from fairlead_testing.kvstore.index_harness import (
    EVENTS_KEY,
    INDEX_KEY,
    LEASE_KEY,
    LIMITS,
    MODEL,
    NAMES,
    harness_with_redis,
    replica_content,
    store_content,
)
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]


async def test_replica_follows_the_block_store_entry_by_entry(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        await world.subscriber.step()
        await world.subscriber.step()
        world.assert_replica_matches()
        assert world.subscriber.load_count(MODEL) == 1
        for _ in range(60):
            await world.write(world.draw.randrange(3))
            await world.subscriber.step()
            world.assert_replica_matches()
        assert world.subscriber.load_count(MODEL) == 1, "it followed; it was not loaded again"
        assert len(world.reloads) == 1
        assert world.reloads[0] is world.subscriber.replica(MODEL)
        copy = IndexReplica()
        copy.apply(world.changes)
        assert world.changes, "whoever listens hears of all of it"
        assert {await redis.pttl(key) > 0 for key in (LEASE_KEY, INDEX_KEY, EVENTS_KEY)} == {True}, (
            "nothing stays for ever"
        )


async def test_late_subscriber_loads_parts_and_the_stream(server: Valkey) -> None:
    limits = replace(LIMITS, index_stream_entries=8, index_kept_batches=5)
    async with harness_with_redis(server.url, limits) as (world, redis):
        for _ in range(100):
            await world.write(2)
            assert await redis.xlen(EVENTS_KEY) <= 8 + len(NAMES), (
                "the stream is cut where all instances are written down"
            )
            late = IndexSubscriber(world.link, world.clock, limits=limits)
            late.set_models([MODEL])
            await late.step()
            mirror = late.replica(MODEL)
            assert mirror is not None, late.describe(MODEL)
            assert replica_content(mirror) == store_content(world.indexer.store)
        assert len(await redis.hkeys(INDEX_KEY)) < 40, "parts that are over are taken away"


async def test_instance_without_a_snapshot_is_loaded_from_the_stream(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _):
        await world.write(20)
        book = world.writer._models[MODEL]
        told = [
            CompletenessChanged("new/8000/0", True, "", 1.0),
            BlocksStored("new/8000/0", StorageTier.GPU, 1, [11, 12]),
        ]
        world.writer.offer(MODEL, told)
        await world.writer._write_waiting(book)
        for name in (*world.indexer.instances(MODEL), HINTS_ITEM):
            assert await world.writer._write_item(book, name), "all others are written down before it"
        late = IndexSubscriber(world.link, world.clock, limits=world.limits)
        late.set_models([MODEL])
        await late.step()
        mirror = late.replica(MODEL)
        assert mirror is not None, late.describe(MODEL)
        assert [mirror.holders(own) for own in (11, 12)] == [{"new/8000/0": (StorageTier.GPU,)}] * 2
        assert mirror.completeness("new/8000/0") is not None


async def test_paused_leader_cannot_write_when_another_leads(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        old_indexer, old_writer = world.indexer, world.writer
        assert old_writer.is_leader(MODEL)
        world.indexer, world.writer = world.add_indexer("two")
        await world.writer.step()
        assert not world.writer.is_leader(MODEL)
        assert world.writer.describe(MODEL) == "one leads"
        assert world.indexer.begun == 0, "it reads nothing meanwhile"
        await redis.delete(LEASE_KEY)  # the lease runs out while the old leader is paused
        await world.settle()
        assert world.writer.is_leader(MODEL)
        world.assert_replica_matches()
        at = await redis.hget(INDEX_KEY, "at")
        world.serve_prompts(3)
        old_indexer.read()
        await old_writer.step()
        assert await redis.hget(INDEX_KEY, "at") == at, "it was told so by its next write"
        await old_writer.step()
        assert not old_writer.is_leader(MODEL)
        assert (old_indexer.ended, old_writer.describe(MODEL)) == (1, "two leads")
        await world.settle()
        world.assert_replica_matches()


async def test_expired_lease_is_retaken_without_a_new_epoch(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        await world.settle()
        loads, at = world.subscriber.load_count(MODEL), await redis.hget(INDEX_KEY, "at")
        await redis.delete(LEASE_KEY)
        await world.write(5)
        await world.settle()
        world.assert_replica_matches()
        assert world.subscriber.load_count(MODEL) == loads
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
        world.assert_replica_matches()
        for name, engine in world.engines.items():
            assert len(store_content(world.indexer.store)[name]) == len(engine._cached), "nothing lost, no ghost"
            assert world.indexer.store.state(name).complete
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
        world.assert_replica_matches()
        assert len(store_content(world.indexer.store)["a/1/0"]) == 1
        mirror = world.subscriber.replica(MODEL)
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
            await world.subscriber.step()
        await world.settle()
        world.assert_replica_matches()
        world.indexer.detach("b/1/0")
        await world.settle()
        world.assert_replica_matches()
        assert b"i:b/1/0" not in await redis.hkeys(INDEX_KEY)
