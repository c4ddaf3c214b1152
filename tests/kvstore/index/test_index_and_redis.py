"""What a real Redis does to the index: away, empty, full, gone back in time, poisoned. The mirror ends up with the truth and no
ghost."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fairlead.testing.valkey import Valkey
from fairlead_kvstore.index.feed import Feed
from fairlead_kvstore.index.testing import EV, IDX, LIMITS, MODEL, OWN, World, content, mirrored, played

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("how", ["killed", "flushed"])
def test_a_redis_that_comes_back_empty_gets_everything_again(server: Valkey, how: str) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        world.agrees()
        before = world.feed.mirror(MODEL)
        assert before is not None
        held = mirrored(before)
        if how == "killed":
            server.kill()
            await world.lost()
            now = world.clock.now()
            world.clock.advance(5.0)
            await world.feed.step()
            assert world.feed.mirror(MODEL) is before
            assert mirrored(before) == held, "it serves on"
            since = world.feed.stale_since(MODEL)
            assert since is not None
            assert since <= now
            assert "Redis is away" in world.feed.words(MODEL)
            assert world.feed.unled() == [], "nobody can tell"
            await world.write(4)
            server.start()
            await world.link.wait_connected()
        else:
            await redis.flushall()
            await world.feed.step()
            world.clock.advance(1.0)
            await world.feed.step()
            assert "Redis holds no index" in world.feed.words(MODEL)
            assert world.feed.unled() == [MODEL]
            await world.write(4)
        await world.settle()
        world.agrees()
        assert world.feed.unled() == []
        assert world.indexer.begun == 1, "its own truth is what counts"

    played(server.url, work)


def test_a_long_absence_of_redis_is_bounded_and_made_good(server: Valkey) -> None:
    limits = replace(LIMITS, index_waiting_blocks=50)

    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        server.kill()
        await world.lost()
        for _ in range(50):
            await world.write(2)
            assert world.writer._books[MODEL].waiting_blocks <= 50
        server.start()
        await world.link.wait_connected()
        await world.settle()
        world.agrees()

    played(server.url, work, limits)


class Busy:
    """Redis, and engines that publish while it works: whenever the writer waits for it, more has come."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run = world.link.run
        self.busy = True
        self.most = 0
        world.link.run = self.answer  # type: ignore[method-assign]

    async def answer(self, commands: Sequence[Any]) -> list[Any] | None:
        found = await self.run(commands)
        if self.busy and not self.world.writer.behind():
            self.world.prompt(2)
            self.world.indexer.read()
        self.most = max(self.most, self.world.writer._books[MODEL].waiting_blocks)
        return found


def test_under_a_load_that_never_ends_every_step_ends_and_what_else_is_due_is_done(server: Valkey) -> None:
    limits = replace(LIMITS, index_kept_batches=8, index_entry_blocks=16, index_stream_entries=64)

    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        busy = Busy(world)
        book = world.writer._books[MODEL]
        for _ in range(40):
            world.clock.advance(1.0)
            await world.writer.step()
            await world.feed.step()
        assert max(item.batches for item in book.items.values()) < 60, "every instance was written down now and then"
        assert book.sequence - book.oldest() <= 40 < book.sequence, "so that the stream can be cut"
        assert book.epochs == 1
        busy.busy = False
        await world.settle()
        world.agrees()

    played(server.url, work, limits)


def test_a_writer_that_cannot_follow_says_so_and_does_not_begin_anew(server: Valkey) -> None:
    limits = replace(LIMITS, index_waiting_blocks=120, index_behind_blocks=40, index_entry_blocks=16)

    async def work(world: World, redis: Any) -> None:
        world.prompt(30)
        busy = Busy(world)
        for _ in range(30):
            world.clock.advance(1.0)
            await world.writer.step()
        book = world.writer._books[MODEL]
        assert busy.most > 40, "more came than could be written at once"
        assert (book.epochs, book.again) == (1, False)
        busy.busy = False
        await world.settle()
        world.agrees()
        assert not world.writer.behind()

    played(server.url, work, limits)


def test_nobody_waits_for_a_redis_that_is_away_or_refuses(server: Valkey) -> None:
    limits = replace(LIMITS, index_behind_blocks=10)

    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        world.prompt(5)
        world.indexer.read()
        assert world.writer.behind()
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1")
        await world.writer.step()
        assert world.writer._books[MODEL].waiting_blocks > 0 or world.writer._books[MODEL].flight is not None
        assert not world.writer.behind(), "it refuses"
        await redis.config_set("maxmemory", "0")
        await world.writer.step()
        world.prompt(5)
        world.indexer.read()
        assert world.writer.behind()
        server.kill()
        await world.lost()
        assert not world.writer.behind(), "it is away"
        server.start()
        await world.link.wait_connected()
        await world.settle()
        world.agrees()

    played(server.url, work, limits)


def test_a_full_redis_is_said_and_made_good_when_there_is_room(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", "1")
        await world.write(5)
        assert "Redis refuses: command not allowed when used memory" in world.writer.words(MODEL)
        for _ in range(4):
            world.clock.advance(60.0)
            await world.write(5)
        assert not world.writer.leads(MODEL), "a leader that cannot write lets go"
        await redis.delete(OWN)
        world.clock.advance(1.0)
        await world.feed.step()
        assert "nobody writes the index" in world.feed.words(MODEL)
        await redis.config_set("maxmemory", "0")
        world.clock.advance(120.0)
        await world.settle()
        world.agrees()
        assert world.indexer.begun == 1

    played(server.url, work)


def test_a_redis_that_went_back_in_time_with_the_lease_begins_a_new_epoch(server: Valkey) -> None:
    """As a replica that was behind, made master: everything is there, the lease too, but not what was written last."""

    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        await world.write(3)
        await world.feed.step()
        backup = {name: await redis.dump(name) for name in (OWN, IDX, EV)}
        before = await redis.hget(IDX, "at")
        for _ in range(3):
            await world.write(3)
            await world.feed.step()
        loads = world.feed.loads(MODEL)
        await redis.flushall()
        for name, data in backup.items():
            await redis.restore(name, 60_000, data)
        world.clock.advance(1.0)
        await world.feed.step()
        assert "Redis has lost some of what it told" in world.feed.words(MODEL)
        assert world.feed.loads(MODEL) == loads, "what it holds is newer than what is there"
        await world.write(3)
        assert await redis.hget(IDX, "at") == before, "nothing is written behind a hole"
        await world.settle()
        world.agrees()
        assert (await redis.hget(IDX, "at")).partition(b":")[0] != before.partition(b":")[0]

    played(server.url, work)


def test_two_holders_that_begin_in_one_millisecond_after_redis_was_emptied_begin_different_epochs(
    server: Valkey,
) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(1)
        await world.feed.step()
        first = await redis.hget(IDX, "at")
        await redis.flushall()
        world.indexer, world.writer = world.another("two")
        await world.write(1)
        assert (await redis.hget(IDX, "at")).partition(b":")[0] != first.partition(b":")[0]
        await world.settle()
        world.agrees()

    played(server.url, work)


POISON = [
    ("at", b"\xff"),
    ("at", b"999999999999999999999:1"),
    ("at", b"5:99"),
    ("meta", b"\x01garbage"),
    ("meta", b"\x02from a later release"),
]


@pytest.mark.parametrize(("field", "value"), POISON)
def test_a_poisoned_field_is_never_believed_and_mended_by_the_leader(server: Valkey, field: str, value: bytes) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        await redis.hset(IDX, field, value)
        late = Feed(world.link, world.clock, limits=LIMITS)
        late.follow([MODEL])
        await late.step()
        assert late.mirror(MODEL) is None
        assert late.stale_since(MODEL) is not None
        await world.write(3)
        await world.settle()
        world.clock.advance(60.0)
        await world.settle()
        world.agrees()

    played(server.url, work)


@pytest.mark.parametrize("key", [OWN, IDX, EV])
@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_key_that_holds_something_else_is_made_right(server: Valkey, key: str, kind: str) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        await redis.delete(key)
        await (redis.set(key, b"\x00\xffgarbage") if kind == "text" else redis.rpush(key, "x"))
        await world.feed.step()
        await world.write(3)
        await world.settle()
        world.agrees()

    played(server.url, work)


@pytest.mark.parametrize("key", [OWN, IDX, EV])
def test_a_key_that_a_full_redis_evicted_is_written_again_and_meanwhile_nothing_gone_is_credited(
    server: Valkey, key: str
) -> None:
    """What ``allkeys-lru`` does, as the chart's own Redis has it: one key goes, the others stay."""

    async def work(world: World, redis: Any) -> None:
        await world.write(10)
        await world.settle()
        await redis.delete(key)
        for _ in range(6):
            await world.write(3)
            await world.feed.step()
            mirror, truth = world.feed.mirror(MODEL), content(world.indexer.truth)
            assert mirror is not None
            stale = world.feed.stale_since(MODEL) is not None
            assert stale or all(held <= truth[name] for name, held in mirrored(mirror).items())
        await world.settle()
        world.agrees()

    played(server.url, work)


def test_a_part_or_header_that_cannot_be_read_is_not_credited_and_read_again_later(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(20)
        await world.settle()
        truth = content(world.indexer.truth)
        good = await redis.hgetall(IDX)
        for field in good:
            if field in (b"at", b"meta"):
                continue
            for bad in (b"", b"\x01", b"\x02" + good[field][1:], good[field][:-3], good[field][:30] + b"\xc1"):
                await redis.hset(IDX, field, bad)
                late = Feed(world.link, world.clock, limits=LIMITS)
                late.follow([MODEL])
                await late.step()
                mirror = late.mirror(MODEL)
                assert mirror is not None, late.words(MODEL)
                for name, held in mirrored(mirror).items():
                    assert held <= truth[name], "no ghosts"
                    known = mirror.standing(name)
                    assert known is not None
                    assert held == truth[name] or "cannot be read" in known.reason
                await redis.hset(IDX, field, good[field])
                world.clock.advance(61.0)
                await late.step()
                mirror = late.mirror(MODEL)
                assert mirror is not None
                assert mirrored(mirror) == truth

    played(server.url, work)


@pytest.mark.parametrize("moved", [True, False])
def test_an_entry_that_cannot_be_read_stops_a_mirror_until_the_index_is_written_down_again(
    server: Valkey, moved: bool
) -> None:
    async def work(world: World, redis: Any) -> None:
        await world.write(5)
        await world.settle()
        epoch, _, sequence = (await redis.hget(IDX, "at")).partition(b":")
        held = mirrored(world.reloads[-1])
        for number in (1, 2):
            after = b"%s:%d" % (epoch, int(sequence) + number)
            await redis.xadd(EV, {b"d": b"\x01\xc1"}, id=after.replace(b":", b"-"))
            if moved:
                await redis.hset(IDX, "at", after)
        await world.feed.step()
        assert "cannot be read" in world.feed.words(MODEL)
        mirror = world.feed.mirror(MODEL)
        assert mirror is not None
        assert mirrored(mirror) == held
        await world.write(3)
        await world.settle()
        world.agrees()

    played(server.url, work)


def test_a_bad_name_is_said_at_once(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        for call in (world.writer.serve, world.feed.follow):
            with pytest.raises(Exception, match="no model key"):
                call(["no-namespace"])

    played(server.url, work)
