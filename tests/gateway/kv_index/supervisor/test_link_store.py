"""The link store in a real Redis: it reads earlier links, with bounds and checks."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.kv_index.links import (
    LinkTable,
    PromptLinks,
    estimate_links,
)
from fairlead_gateway.kv_index.supervisor.link_store import (
    PAGE_ENTRIES,
    PREFIX_MAP_RETENTION_SECONDS,
    PREFIX_MAP_STORES_PENDING,
    LinkStore,
    decode_links,
    encode_links,
)
from fairlead_gateway.peers.peer_messages import DATA_FIELD, GATEWAY_FIELD, secret_fingerprint
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

KEY = "ns/a"
SECRET = b"a secret of the test"
PRINT = b"12345678"
LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, redis_timeout_seconds=20.0)
NUMBER = st.integers(1, 2**64 - 1)


def lesson_of(name: int, blocks: int = 4) -> PromptLinks:
    """Returns the links of a prompt with two token blocks per byte block.

    A longer prompt of the same name continues the shorter one.
    """
    hashes = [name * 1_000 + number for number in range(1, blocks + 1)]
    return PromptLinks(
        hashes, [2**40 + name * 1_000 + number for number in range(2 * blocks)], range(2, 2 * blocks + 1, 2), 16
    )


@dataclass(slots=True)
class Side:
    """One gateway's store, and the links that it adopted."""

    link: RedisLink
    kept: LinkStore = field(init=False)
    taken: list[PromptLinks] = field(default_factory=list)

    async def poll(self) -> None:
        await self.kept.read()
        await self.kept.write()

    def heads(self) -> list[int]:
        return [lesson.hashes[-1] for lesson in self.taken]


def side(url: str, name: str, *, secret: bytes = SECRET, **options: Any) -> Side:
    peer = Side(RedisLink(url, SystemClock(), limits=LIMITS))
    peer.kept = LinkStore(peer.link, name, lambda _, lesson: peer.taken.append(lesson), secret=secret, **options)
    peer.kept.set_models([KEY])
    return peer


@asynccontextmanager
async def connected_sides(server: Valkey, *sides: Side) -> AsyncIterator[tuple[Any, ...]]:
    async with AsyncExitStack() as stack, Redis(unix_socket_path=server.url.removeprefix("unix://")) as redis:
        for peer in sides:
            peer.link.start()
            stack.push_async_callback(peer.link.stop)
        async with asyncio.timeout(60):
            for peer in sides:
                await peer.link.wait_connected()
            yield redis, *sides


async def test_a_gateway_that_starts_later_knows_earlier_links(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a"), side(server.url, "b")) as (_, first, second):
        for name in range(1, 2 * PAGE_ENTRIES):
            first.kept.offer(KEY, lesson_of(name))
        await first.poll()
        await second.poll()
        assert second.heads() == [name * 1_000 + 4 for name in range(1, 2 * PAGE_ENTRIES)]
        table, other = (
            LinkTable(max_links=10_000, max_token_hashes=100_000),
            LinkTable(max_links=10_000, max_token_hashes=100_000),
        )
        for lesson in second.taken:
            table.learn(lesson)
        for name in range(1, 2 * PAGE_ENTRIES):
            other.learn(lesson_of(name))
        for name in range(1, 2 * PAGE_ENTRIES):
            hashes = lesson_of(name).hashes
            assert [(link.depth, link.token_hash) for link in map(table.get, hashes) if link] == [
                (link.depth, link.token_hash) for link in map(other.get, hashes) if link
            ]
        await first.poll()
        assert first.taken == [], "nobody hears itself"
        assert second.kept.received == {KEY: len(second.taken)}


async def test_a_conversation_is_one_entry_whichever_gateway_learns_it(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a"), side(server.url, "b")) as (redis, first, second):
        for blocks in range(2, 12):
            (first if blocks % 2 else second).kept.offer(KEY, lesson_of(1, blocks))
            await first.poll()
            await second.poll()
        assert await redis.xlen(redis_keys.prompt_links(KEY)) == 1
        late = side(server.url, "c")
        late.link.start()
        await late.link.wait_connected()
        await late.poll()
        await late.link.stop()
        assert [len(lesson.hashes) for lesson in late.taken] == [11]


async def test_flood_of_links_leaves_most_of_the_process_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    page = [
        (
            b"1-%d" % number,
            {GATEWAY_FIELD: b"x", DATA_FIELD: encode_links(lesson_of(number), secret=secret_fingerprint(SECRET))},
        )
        for number in range(1, PAGE_ENTRIES + 1)
    ]
    seconds = [0.0]
    pauses: list[float] = []
    pages: list[object] = []

    class EndlessLink:
        async def run(self, commands: object) -> list[object]:
            pages.append(commands)
            return [page]

    def learn(model: str, lesson: PromptLinks) -> None:
        seconds[0] += 0.25

    async def pause(delay: float) -> None:
        pauses.append(delay)

    link: Any = EndlessLink()
    store = LinkStore(link, "own", learn, secret=SECRET, now=lambda: seconds[0])
    store.set_models([KEY])
    monkeypatch.setattr(asyncio, "sleep", pause)
    await store.read()
    assert pauses == [1.0] * len(pages) * PAGE_ENTRIES
    assert len(pages) == 64, "an endless stream does not keep this gateway from writing"


async def test_wrong_links_are_deleted_for_later_gateways(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a"), side(server.url, "b")) as (redis, first, second):
        first.kept.offer(KEY, lesson_of(1))
        await first.poll()
        first.kept.offer(KEY, lesson_of(2))
        first.kept.delete_model(KEY)
        await first.poll()
        assert await redis.exists(redis_keys.prompt_links(KEY)) == 0
        first.kept.offer(KEY, lesson_of(3))
        await first.poll()
        await second.poll()
        assert second.heads() == [3_004]


async def test_other_secrets_damage_and_other_kinds_of_keys_are_passed_over(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a"), side(server.url, "b", secret=b"another")) as (
        redis,
        first,
        strange,
    ):
        strange.kept.offer(KEY, lesson_of(1))
        await strange.kept.write()
        for data in (b"", b"\x01", b"\x02abc", b"\x01" + msgspec.msgpack.encode({"hashes": 3}), b"\x01" * 70_000):
            await redis.xadd(redis_keys.prompt_links(KEY), {GATEWAY_FIELD: b"x", DATA_FIELD: data})
        await redis.xadd(redis_keys.prompt_links(KEY), {b"other": b"fields"})
        strange.kept.offer(KEY, lesson_of(2))
        await strange.kept.write()
        await first.poll()
        assert first.taken == []
        assert first.kept.unreadable == 8
        await redis.delete(redis_keys.prompt_links(KEY))
        await redis.set(redis_keys.prompt_links(KEY), "a string")
        first.kept.offer(KEY, lesson_of(3))
        await first.poll()


async def test_what_lies_there_is_bounded_and_expires(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a", bounds=(100, 4_096))) as (redis, peer):
        for name in range(1, 1_000):
            peer.kept.offer(KEY, lesson_of(name))
            if not name % 100:
                await peer.poll()
        peer.kept.offer(KEY, lesson_of(1_001, 400))  # too long
        peer.kept.offer("ns/unknown", lesson_of(1))
        await peer.poll()
        assert await redis.xlen(redis_keys.prompt_links(KEY)) <= 300, "Redis cuts whole nodes of a stream"
        assert 0 < await redis.ttl(redis_keys.prompt_links(KEY)) <= PREFIX_MAP_RETENTION_SECONDS
        entries = await redis.xrange(redis_keys.prompt_links(KEY))
        assert all(len(fields[DATA_FIELD]) < 4_096 for _, fields in entries)
        assert await redis.keys("*unknown*") == []


async def test_a_redis_that_is_away_costs_only_what_was_not_written(server: Valkey) -> None:
    async with connected_sides(server, side(server.url, "a")) as (_, peer):
        peer.kept.offer(KEY, lesson_of(1))
        peer.kept.start()
        server.kill()
        await wait_until(lambda: not peer.link.state.connected)
        for name in range(2 * PREFIX_MAP_STORES_PENDING):
            peer.kept.offer(KEY, lesson_of(name + 1))
        assert len(peer.kept._pending) == PREFIX_MAP_STORES_PENDING
        await peer.kept.stop()


@given(st.lists(NUMBER, min_size=1, max_size=20), st.lists(NUMBER, max_size=40), st.integers(1, 64))
def test_a_lesson_comes_out_as_it_went_in(hashes: list[int], owns: list[int], block_size: int) -> None:
    lesson = PromptLinks(hashes, owns, [number * 7 // block_size for number in range(len(hashes))], block_size)
    data = encode_links(lesson, secret=PRINT)
    links = decode_links(data, secret=PRINT, max_bytes=len(data))
    assert (list(links.hashes), list(links.token_hashes), links.block_size) == (hashes, owns, block_size)
    assert list(links.depths) == [min(depth, len(owns)) for depth in lesson.depths]
    assert decode_links(data, secret=b"another", max_bytes=len(data)) is None
    assert decode_links(data, secret=PRINT, max_bytes=len(data) - 1) is None


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    links = decode_links(b"\x01" + data, secret=PRINT, max_bytes=1_000)
    assert links is None or len(links.hashes) == len(links.depths)


def test_stored_links_hold_no_text_and_no_token() -> None:
    tokens = array("I", range(70_000, 70_064))
    lesson = estimate_links([11, 12], [256, 512], [21, 22, 23, 24], size=600, tokens=len(tokens), block_size=16)
    data = encode_links(lesson, secret=PRINT)
    assert not any(token.to_bytes(4, "little") in data for token in tokens)
    assert len(data) < 8 * 6 + 4 * 2 + 80


def test_a_lesson_that_is_known_in_parts_only_is_none() -> None:
    table = LinkTable(max_links=10, max_token_hashes=100)
    lesson = lesson_of(1)
    table.learn(lesson)
    assert table.links_of([*lesson.hashes, 77], 16) is None
    assert table.links_of([], 16) is None
    links = table.links_of(lesson.hashes, 16)
    assert list(links.depths) == list(lesson.depths)
    with pytest.raises(ValueError, match="shorter"):
        table.learn(PromptLinks([91, 92], [1, 2, 3], [1], 16))
