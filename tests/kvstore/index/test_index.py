"""An indexer, a real Redis and a mirror elsewhere: who leads, who comes late, who goes on; the mirror ends up with the truth."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead.testing.valkey import Valkey
from fairlead_kvstore.index.book import HINTS_NAME
from fairlead_kvstore.index.feed import Feed
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.index.testing import EV, IDX, LIMITS, MODEL, NAMES, OWN, World, content, mirrored, played
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.truth.changes import Marked, Stored
from fairlead_kvstore.truth.tiers import Tier

pytestmark = pytest.mark.timeout(300)


def test_a_mirror_follows_the_truth_entry_by_entry(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(5)
        await world.feed.step()
        await world.feed.step()
        world.agrees()
        assert world.feed.loads(MODEL) == 1
        for _ in range(60):
            await world.write(world.draw.randrange(3))
            await world.feed.step()
            world.agrees()
        assert world.feed.loads(MODEL) == 1, "it followed; it was not loaded again"
        assert len(world.reloads) == 1
        assert world.reloads[0] is world.feed.mirror(MODEL)
        copy = IndexMirror()
        copy.apply(world.changes)
        assert world.changes, "whoever listens hears of all of it"
        assert {await redis.pttl(key) > 0 for key in (OWN, IDX, EV)} == {True}, "nothing stays for ever"

    played(server.url, work)


def test_who_comes_late_gets_parts_and_the_stream_since_then(server: Valkey) -> None:
    limits = replace(LIMITS, index_stream_entries=8, index_kept_batches=5)

    async def work(world: World, redis: Any) -> None:
        for _ in range(100):
            await world.write(2)
            assert await redis.xlen(EV) <= 8 + len(NAMES), "the stream is cut where all instances are written down"
            late = Feed(world.link, world.clock, limits=limits)
            late.follow([MODEL])
            await late.step()
            mirror = late.mirror(MODEL)
            assert mirror is not None, late.words(MODEL)
            assert mirrored(mirror) == content(world.indexer.truth)
        assert len(await redis.hkeys(IDX)) < 40, "parts that are over are taken away"

    played(server.url, work, limits)


def test_an_instance_that_is_in_the_stream_alone_is_loaded_too(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(20)
        book = world.writer._books[MODEL]
        told = [Marked("new/8000/0", True, "", 1.0), Stored("new/8000/0", Tier.GPU, 1, [11, 12])]
        world.writer.offer(MODEL, told)
        await world.writer._write_waiting(book)
        for name in (*world.indexer.instances(MODEL), HINTS_NAME):
            assert await world.writer._write_down(book, name), "all others are written down before it"
        late = Feed(world.link, world.clock, limits=world.limits)
        late.follow([MODEL])
        await late.step()
        mirror = late.mirror(MODEL)
        assert mirror is not None, late.words(MODEL)
        assert [mirror.holders(own) for own in (11, 12)] == [{"new/8000/0": (Tier.GPU,)}] * 2
        assert mirror.standing("new/8000/0") is not None

    played(server.url, work)


def test_a_paused_leader_cannot_write_when_another_leads(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(5)
        old_indexer, old_writer = world.indexer, world.writer
        assert old_writer.leads(MODEL)
        world.indexer, world.writer = world.another("two")
        await world.writer.step()
        assert not world.writer.leads(MODEL)
        assert world.writer.words(MODEL) == "one leads"
        assert world.indexer.begun == 0, "it reads nothing meanwhile"
        await redis.delete(OWN)  # the lease runs out while the old leader is paused
        await world.settle()
        assert world.writer.leads(MODEL)
        world.agrees()
        at = await redis.hget(IDX, "at")
        world.prompt(3)
        old_indexer.read()
        await old_writer.step()
        assert await redis.hget(IDX, "at") == at, "it was told so by its next write"
        await old_writer.step()
        assert not old_writer.leads(MODEL)
        assert (old_indexer.ended, old_writer.words(MODEL)) == (1, "two leads")
        await world.settle()
        world.agrees()

    played(server.url, work)


def test_a_lease_that_ran_out_unnoticed_is_taken_again_without_a_new_epoch(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(5)
        await world.settle()
        loads, at = world.feed.loads(MODEL), await redis.hget(IDX, "at")
        await redis.delete(OWN)
        await world.write(5)
        await world.settle()
        world.agrees()
        assert world.feed.loads(MODEL) == loads
        assert (await redis.hget(IDX, "at")).partition(b":")[0] == at.partition(b":")[0]
        assert world.indexer.begun == 1

    played(server.url, work)


def test_a_new_indexer_goes_on_from_what_the_killed_one_left(server: Valkey) -> None:
    """Nothing of the old process is used again; the engines' buffers do not reach back to what they hold."""
    limits = replace(LIMITS, index_kept_batches=20)

    async def work(world: World, redis: Any) -> None:
        for _ in range(40):
            await world.write(2)
        before = content(world.indexer.truth)
        for engine in world.engines.values():
            del engine.frames[:-30]
        world.prompt(10)  # published while nobody leads
        await redis.delete(OWN)
        world.indexer, world.writer = world.another("two")
        await world.settle()
        assert world.indexer.left is not None
        assert not world.indexer.left.unreadable
        assert sorted(world.indexer.left.instances) == sorted(NAMES)
        world.agrees()
        for name, engine in world.engines.items():
            assert len(content(world.indexer.truth)[name]) == len(engine._cached), "nothing lost, no ghost"
            assert world.indexer.truth.state(name).complete
        assert any(before.values())

    played(server.url, work, limits)


def test_an_engine_that_was_replaced_meanwhile_is_learned_anew(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        for _ in range(20):
            await world.write(2)
        await redis.delete(OWN)
        world.engines["a/1/0"] = Engine(capacity=60, seed=99)
        for _ in range(30):
            world.engines["a/1/0"].prompt([1, 2, 3, 4])
            world.engines["a/1/0"].publish()
        del world.engines["c/1/0"]
        world.indexer, world.writer = world.another("two")
        await world.settle()
        world.agrees()
        assert len(content(world.indexer.truth)["a/1/0"]) == 1
        mirror = world.feed.mirror(MODEL)
        assert mirror is not None
        assert sorted(mirror.instances()) == ["a/1/0", "b/1/0"]
        fields = await redis.hkeys(IDX)
        assert b"i:c/1/0" not in fields, "what is left of an instance that is gone is taken away"

    played(server.url, work)


def test_instances_that_come_and_go_leave_nothing_behind(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(6)
        await world.settle()
        for number in range(12):
            world.indexer.detach("b/1/0")
            if number % 2:
                await world.writer.step()
            world.indexer.attach("b/1/0")
            await world.write(2)
            await world.feed.step()
        await world.settle()
        world.agrees()
        world.indexer.detach("b/1/0")
        await world.settle()
        world.agrees()
        assert b"i:b/1/0" not in await redis.hkeys(IDX)

    played(server.url, work)
