"""Failures of a real Redis: unreachable, empty, full, restored, damaged. What is loaded equals
the block store, without ghosts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_kvstore.index.format import InstanceHeader, decode_value, encode_value
from fairlead_kvstore.index.recovery import recover_index
from fairlead_kvstore.index.writer import INDEX_OVERFLOW_SECONDS
from fairlead_testing.kvstore.index_harness import (
    EVENTS_KEY,
    INDEX_KEY,
    LEASE_KEY,
    LIMITS,
    MODEL,
    IndexHarness,
    harness_with_redis,
    index_content,
    store_content,
)
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.redis.valkey import Valkey

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]


@pytest.mark.parametrize("how", ["killed", "flushed"])
async def test_empty_redis_gets_everything_again(server: Valkey, how: str) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        await world.settle()
        world.assert_index_matches()
        before = world.reader.index(MODEL)
        assert before is not None
        held = index_content(before)
        if how == "killed":
            server.kill()
            await world.wait_redis_lost()
            world.clock.advance(5.0)
            await world.reader.step()
            assert world.reader.index(MODEL) is before
            assert index_content(before) == held, "it serves on"
            assert world.reader.problem(MODEL) == "Redis is away"
            await world.write(4)
            server.start()
            await world.link.wait_connected()
        else:
            await redis.flushall()
            await world.reader.step()
            assert world.reader.problem(MODEL) == "Redis has no index"
            await world.write(4)
        await world.settle()
        world.assert_index_matches()
        assert world.indexer.begun == 1, "its own truth is what counts"


async def test_long_redis_outage_is_bounded_and_recovered(server: Valkey) -> None:
    limits = replace(LIMITS, index_pending_blocks=50)
    async with harness_with_redis(server.url, limits) as (world, _):
        await world.write(10)
        await world.settle()
        server.kill()
        await world.wait_redis_lost()
        for _ in range(50):
            await world.write(2)
            assert world.writer._models[MODEL].waiting_blocks <= 50
        server.start()
        await world.link.wait_connected()
        await world.settle()
        world.assert_index_matches()


class Busy:
    """A link during whose replies engines publish: more changes arrive whenever the writer
    waits.
    """

    def __init__(self, world: IndexHarness) -> None:
        self.world = world
        self.run = world.link.run
        self.busy = True
        self.prompts = 2
        self.most = 0
        world.link.run = self.answer  # type: ignore[method-assign]

    async def answer(self, commands: Sequence[Any]) -> list[Any] | None:
        replies = await self.run(commands)
        if self.busy:
            self.world.serve_prompts(self.prompts)
            self.world.indexer.read()
        self.most = max(self.most, self.world.writer._models[MODEL].waiting_blocks)
        return replies


async def test_steps_end_and_other_work_runs_under_constant_load(server: Valkey) -> None:
    limits = replace(LIMITS, index_kept_batches=8, index_entry_blocks=16, index_stream_entries=64)
    async with harness_with_redis(server.url, limits) as (world, _):
        await world.write(10)
        busy = Busy(world)
        book = world.writer._models[MODEL]
        for _ in range(40):
            world.clock.advance(1.0)
            await world.writer.step()
            await world.link.run([("PING",)])
        assert max(item.batches for item in book.items.values()) < 60, "every instance was written down now and then"
        assert book.sequence - book.oldest_needed() <= 40 < book.sequence, "so that the stream can be cut"
        assert book.epochs == 1
        busy.busy = False
        await world.settle()
        world.assert_index_matches()


async def test_slow_redis_costs_changes_and_later_a_new_epoch_but_no_other_model(server: Valkey) -> None:
    limits = replace(LIMITS, index_pending_blocks=120, index_entry_blocks=16)
    async with harness_with_redis(server.url, limits) as (world, _):
        world.writer.set_models([MODEL, "default/other"])
        await world.write(10)
        await world.settle()
        book, other = (world.writer._models[key] for key in (MODEL, "default/other"))
        epochs, busy = (book.epochs, other.epochs), Busy(world)
        for _ in range(30):
            world.serve_prompts(30)
            world.indexer.read()
            world.clock.advance(0.1)
            await world.writer.step()
        assert busy.most <= 120, "what waits is bounded"
        assert world.writer.problems() == {MODEL: "Redis is too slow for its changes"}
        assert world.writer.overflows() == {MODEL: 1, "default/other": 0}
        assert (book.epochs, other.epochs) == epochs, "no new epoch begins at once"
        assert world.writer.is_leader(MODEL)
        busy.busy = False
        world.clock.advance(INDEX_OVERFLOW_SECONDS)
        await world.settle()
        world.assert_index_matches()
        assert (world.writer.problems(), book.epochs) == ({}, epochs[0] + 1)
        assert other.epochs == epochs[1]


async def test_changes_that_overflow_while_an_entry_is_written_are_no_defect(server: Valkey) -> None:
    async with harness_with_redis(server.url, replace(LIMITS, index_pending_blocks=120)) as (world, _):
        await world.write(10)
        await world.settle()
        busy = Busy(world)
        busy.prompts = 60
        await world.write(1)
        assert world.writer.problems() == {MODEL: "Redis is too slow for its changes"}
        assert world.writer.is_leader(MODEL)
        busy.busy = False
        world.clock.advance(INDEX_OVERFLOW_SECONDS)
        await world.settle()
        world.assert_index_matches()
        assert (world.writer.problems(), world.indexer.ended) == ({}, 0)


async def test_full_redis_is_reported_and_recovered(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        await world.settle()
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1")
        await world.write(5)
        assert "Redis refuses: command not allowed when used memory" in world.writer.problems()[MODEL]
        for _ in range(4):
            world.clock.advance(60.0)
            await world.write(5)
        assert not world.writer.is_leader(MODEL), "a leader that cannot write lets go"
        await redis.delete(LEASE_KEY)
        await redis.config_set("maxmemory", "0")
        world.clock.advance(120.0)
        await world.settle()
        world.assert_index_matches()
        assert world.indexer.begun == 1


async def test_redis_restored_to_an_earlier_state_begins_a_new_epoch(server: Valkey) -> None:
    """As after the promotion of a delayed replica: everything is there, with the lease, except the
    last writes.
    """
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        await world.settle()
        await world.write(3)
        await world.reader.step()
        backup = {name: await redis.dump(name) for name in (LEASE_KEY, INDEX_KEY, EVENTS_KEY)}
        before = await redis.hget(INDEX_KEY, "at")
        for _ in range(3):
            await world.write(3)
            await world.reader.step()
        await redis.flushall()
        for name, data in backup.items():
            await redis.restore(name, 60_000, data)
        world.clock.advance(1.0)
        await world.write(3)
        assert await redis.hget(INDEX_KEY, "at") == before, "nothing is written behind a hole"
        await world.settle()
        world.assert_index_matches()
        assert (await redis.hget(INDEX_KEY, "at")).partition(b":")[0] != before.partition(b":")[0]


async def test_two_holders_in_one_millisecond_begin_different_epochs(
    server: Valkey,
) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(1)
        await world.reader.step()
        first = await redis.hget(INDEX_KEY, "at")
        await redis.flushall()
        world.indexer, world.writer = world.add_indexer("two")
        await world.write(1)
        assert (await redis.hget(INDEX_KEY, "at")).partition(b":")[0] != first.partition(b":")[0]
        await world.settle()
        world.assert_index_matches()


POISON = [
    ("at", b"\xff"),
    ("at", b"999999999999999999999:1"),
    ("at", b"5:99"),
    ("meta", b"\x01garbage"),
    ("meta", b"\x02from a later release"),
]


@pytest.mark.parametrize(("field", "value"), POISON)
async def test_damaged_field_is_not_credited_and_the_leader_rewrites_it(
    server: Valkey, field: str, value: bytes
) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        await world.settle()
        await redis.hset(INDEX_KEY, field, value)
        late = IndexReader(world.link, world.clock)
        late.set_models([MODEL])
        await late.step()
        assert late.index(MODEL) is None
        assert late.problem(MODEL)
        await world.write(3)
        await world.settle()
        world.clock.advance(60.0)
        await world.settle()
        world.assert_index_matches()


@pytest.mark.parametrize("key", [LEASE_KEY, INDEX_KEY, EVENTS_KEY])
async def test_key_evicted_by_a_full_redis_is_rewritten_without_ghosts(server: Valkey, key: str) -> None:
    """As with ``allkeys-lru``, the setting of the chart's Redis: one key is evicted, the others
    stay.
    """
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(10)
        await world.settle()
        await redis.delete(key)
        for _ in range(6):
            await world.write(3)
            await world.reader.step()
            mirror, truth = world.reader.index(MODEL), store_content(world.indexer.store)
            assert mirror is not None
            stale = bool(world.reader.problem(MODEL))
            assert stale or all(held <= truth[name] for name, held in index_content(mirror).items())
        await world.settle()
        world.assert_index_matches()


async def test_unreadable_part_or_header_is_not_credited_and_retried(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(20)
        await world.settle()
        truth = store_content(world.indexer.store)
        good = await redis.hgetall(INDEX_KEY)
        for field in good:
            if field in (b"at", b"meta"):
                continue
            for bad in (b"", b"\x01", b"\x02" + good[field][1:], good[field][:-3], good[field][:30] + b"\xc1"):
                await redis.hset(INDEX_KEY, field, bad)
                late = IndexReader(world.link, world.clock)
                late.set_models([MODEL])
                await late.step()
                mirror = late.index(MODEL)
                assert mirror is not None, late.problem(MODEL)
                for name, held in index_content(mirror).items():
                    assert held <= truth[name], "no ghosts"
                    known = mirror.completeness(name)
                    assert known is not None
                    assert held == truth[name] or "cannot be read" in known[1]
                await redis.hset(INDEX_KEY, field, good[field])
                world.clock.advance(61.0)
                await late.step()
                mirror = late.index(MODEL)
                assert mirror is not None
                assert index_content(mirror) == truth


async def test_header_that_names_one_field_many_times_is_not_followed(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(20)
        await world.settle()
        field = min(name for name in await redis.hkeys(INDEX_KEY) if name.startswith(b"i:"))
        header = decode_value(await redis.hget(INDEX_KEY, field), InstanceHeader)
        (part,) = [name for key, name in header.parts.items() if ".m" in key]
        header.parts = {f"0.m{number}": part for number in range(100_000)}
        await redis.hset(INDEX_KEY, field, encode_value(header))
        late = IndexReader(world.link, world.clock)
        late.set_models([MODEL])
        await late.step()
        assert "unreadable" in late.problem(MODEL)
        recovered = await recover_index(world.link, MODEL, 0.0)
        assert recovered is not None
        assert recovered.unreadable == {field[2:].decode(): "two parts have the same field"}


@pytest.mark.parametrize("wall", [float("nan"), float("inf"), -1e12, 9e10])
async def test_snapshot_with_an_impossible_time_stops_neither_reader_nor_takeover(server: Valkey, wall: float) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(20)
        await world.settle()
        field = min(name for name in await redis.hkeys(INDEX_KEY) if name.startswith(b"i:"))
        header = decode_value(await redis.hget(INDEX_KEY, field), InstanceHeader)
        header.slice.wall = wall
        await redis.hset(INDEX_KEY, field, encode_value(header))
        late = IndexReader(world.link, world.clock)
        late.set_models([MODEL])
        await late.step()
        assert ("unreadable" in late.problem(MODEL)) == (wall != 9e10)
        await redis.delete(LEASE_KEY)
        world.indexer, world.writer = world.add_indexer("two")
        await world.settle()
        assert world.writer.problems() == {}
        world.assert_index_matches()


async def test_field_whose_instance_is_no_text_stops_neither_reader_nor_writer(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        await world.settle()
        await redis.hset(INDEX_KEY, b"i:\xff", b"\x01garbage")
        late = IndexReader(world.link, world.clock)
        late.set_models([MODEL])
        await late.step()
        mirror = late.index(MODEL)
        assert mirror is not None
        assert index_content(mirror) == store_content(world.indexer.store)
        recovered = await recover_index(world.link, MODEL, 0.0)
        assert recovered is not None
        assert recovered.instances.keys() == store_content(world.indexer.store).keys()


@pytest.mark.parametrize("moved", [True, False])
async def test_unreadable_entry_ends_a_load_until_the_next_epoch(server: Valkey, moved: bool) -> None:
    async with harness_with_redis(server.url) as (world, redis):
        await world.write(5)
        await world.settle()
        epoch, _, sequence = (await redis.hget(INDEX_KEY, "at")).partition(b":")
        before = world.reader.index(MODEL)
        for number in (1, 2):
            after = b"%s:%d" % (epoch, int(sequence) + number)
            await redis.xadd(EVENTS_KEY, {b"d": b"\x01\xc1"}, id=after.replace(b":", b"-"))
            if moved:
                await redis.hset(INDEX_KEY, "at", after)
        await world.reader.step()
        assert "cannot be read" in world.reader.problem(MODEL)
        assert world.reader.index(MODEL) is before
        await world.write(3)
        await world.settle()
        world.assert_index_matches()


async def test_invalid_model_name_is_refused(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    async with harness_with_redis(server.url) as (world, _):
        with pytest.raises(BadInput, match="not a model key"):
            world.reader.set_models(["no-namespace"])
        world.writer.set_models(["no-namespace", MODEL])
        assert list(world.writer.overflows()) == [MODEL]
        assert "'no-namespace' is not a model key" in caplog.text
