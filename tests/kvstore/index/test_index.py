"""An indexer, a real Redis and a mirror elsewhere: whatever happens between them, the mirror ends up with the truth and no ghost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.clock import ManualClock
from fairlead.limits import Limits
from fairlead.testing.valkey import Valkey
from fairlead.testing.waiting import until
from fairlead_kvstore import keys
from fairlead_kvstore.index.book import HINTS_NAME
from fairlead_kvstore.index.feed import Feed
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.index.testing import TinyIndexer
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.truth.changes import Change, Marked, Stored
from fairlead_kvstore.truth.tiers import Tier
from fairlead_kvstore.truth.truth import Truth

pytestmark = pytest.mark.timeout(300)
MODEL = "default/tiny"
OWN, IDX, EV = keys.index_keys(MODEL)
LIMITS = replace(
    Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_deadline_seconds=5.0, index_lease_seconds=60.0
)
NAMES = ("a/1/0", "b/1/0", "c/1/0")


def content(truth: Truth) -> dict[str, set[tuple[int, Tier]]]:
    return {name: set(truth.content(name)) for name in NAMES if name in truth}


def mirrored(mirror: IndexMirror) -> dict[str, set[tuple[int, Tier]]]:
    found: dict[str, set[tuple[int, Tier]]] = {name: set() for name in mirror.instances()}
    for own in list(mirror._masks):
        for name, tiers in mirror.holders(own).items():
            found[name] |= {(own, tier) for tier in tiers}
    return found


class World:
    """Engines, an indexer and a feed around one Redis; all of them move only when told to."""

    def __init__(self, url: str, limits: Limits = LIMITS) -> None:
        self.url, self.limits = url, limits
        self.clock = ManualClock(1_000.0)
        self.draw = Random(7)
        self.engines = {
            name: Engine(capacity=60, seed=number, maps=bool(number % 2)) for number, name in enumerate(NAMES)
        }
        self.link = RedisLink(url, self.clock, limits=limits)
        self.changes: list[Change] = []
        self.reloads: list[IndexMirror] = []
        self.feed = Feed(
            self.link,
            self.clock,
            limits=limits,
            on_changes=lambda _, found: self.changes.extend(found),
            on_reload=lambda _, mirror: self.reloads.append(mirror),
        )
        self.feed.follow([MODEL])
        self.indexer, self.writer = self.another("one")

    def another(self, holder: str) -> tuple[TinyIndexer, IndexWriter]:
        indexer = TinyIndexer(MODEL, self.engines, self.clock, self.limits)
        writer = IndexWriter(self.link, indexer, self.clock, holder=holder, limits=self.limits)
        indexer.sink = writer
        writer.serve([MODEL])
        return indexer, writer

    def prompt(self, count: int = 1) -> None:
        """Prompts that share heads, at random engines."""
        for _ in range(count):
            name = self.draw.choice(list(self.engines))
            head, tail, length = self.draw.randrange(4), self.draw.randrange(6), self.draw.randrange(4, 60)
            tokens = [
                head * 1_000 + index if index < 20 else tail * 10_000 + head * 1_000 + index for index in range(length)
            ]
            self.engines[name].prompt(tokens)
            self.engines[name].publish()

    async def write(self, count: int = 1) -> None:
        self.prompt(count)
        self.indexer.read()
        await self.writer.step()

    async def settle(self) -> None:
        """Time passes, and everybody does what there is to do."""
        for _ in range(8):
            self.clock.advance(25.0)
            await self.link.wait_connected()
            self.indexer.read()
            await self.writer.step()
            await self.feed.step()

    def agrees(self) -> None:
        mirror = self.feed.mirror(MODEL)
        assert mirror is not None, self.feed.words(MODEL)
        assert mirrored(mirror) == content(self.indexer.truth)
        for name in content(self.indexer.truth):
            state, known = self.indexer.truth.state(name), mirror.standing(name)
            assert known is not None
            assert (known.complete, known.reason) == (state.complete, state.reason)
            assert known.since == pytest.approx(state.since, abs=0.01)
        assert self.feed.stale_since(MODEL) is None, self.feed.words(MODEL)

    async def lost(self) -> None:
        """The link has noticed that Redis is gone."""
        await until(lambda: not self.link.state.connected)


@asynccontextmanager
async def world_of(url: str, limits: Limits) -> AsyncIterator[World]:
    world = World(url, limits)
    world.link.start()
    await world.link.wait_connected()
    try:
        yield world
    finally:
        await world.link.stop()


def played(server: Valkey, work: Callable[[World, Any], Awaitable[None]], limits: Limits = LIMITS) -> None:
    async def run() -> None:
        async with world_of(server.url, limits) as world, Redis.from_url(server.url) as redis:
            await work(world, redis)

    asyncio.run(run())


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

    played(server, work)


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

    played(server, work, limits)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work, limits)


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

    played(server, work)


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

    played(server, work)


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
            await world.write(4)
            server.start()
            await world.link.wait_connected()
        else:
            await redis.flushall()
            await world.feed.step()
            world.clock.advance(1.0)
            await world.feed.step()
            assert "Redis holds no index" in world.feed.words(MODEL)
            await world.write(4)
        await world.settle()
        world.agrees()
        assert world.indexer.begun == 1, "its own truth is what counts"

    played(server, work)


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

    played(server, work, limits)


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

    played(server, work, limits)


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

    played(server, work, limits)


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

    played(server, work, limits)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work)


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

    played(server, work)


def test_a_bad_name_is_said_at_once(server: Valkey) -> None:
    async def work(world: World, redis: Any) -> None:
        for call in (world.writer.serve, world.feed.follow):
            with pytest.raises(Exception, match="no model key"):
                call(["no-namespace"])

    played(server, work)
