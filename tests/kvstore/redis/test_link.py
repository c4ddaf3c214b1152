"""The link to Redis: it reports its state, reconnects by itself, and never fails its caller."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.http.links import slow_link
from fairlead_testing.redis.valkey import Valkey, connected_link
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

FAST = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_timeout_seconds=0.5)


async def test_replies_are_in_order(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        assert await link.run([("SET", "a", b"1"), ("INCR", "a"), ("GET", "a")]) == [True, 2, b"2"]
        assert link.state.connected


async def test_refused_command_does_not_affect_others(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        replies = await link.run([("SET", "a", "x"), ("INCR", "a"), ("GET", "a")])
        assert replies is not None
        assert isinstance(replies[1], Exception)
        assert replies[2] == b"x"
        assert link.state.connected


async def test_memory_of_redis_is_read_and_a_refusal_loses_no_connection(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        assert await link.max_memory() == 0
        await link.run([("CONFIG", "SET", "maxmemory", "64mb")])
        assert await link.max_memory() == 64 * 1024 * 1024
        await link.run([("ACL", "SETUSER", "default", "-info")])
        refusal = await link.max_memory()
        assert isinstance(refusal, ResponseError)
        assert "no permissions" in str(refusal)
        assert link.state.connected
        await link.run([("ACL", "SETUSER", "default", "+info")])
        server.kill()
        assert await link.max_memory() is None
        assert not link.state.connected
        await asyncio.wait_for(link.wait_lost(), 5)


async def test_killed_redis_is_detected_without_traffic_and_reconnected(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        server.kill()
        await wait_until(lambda: not link.state.connected)
        assert "away for" in link.describe()
        assert await link.run([("PING",)]) is None
        server.start()
        await wait_until(lambda: link.state.connected)
        assert await link.run([("PING",)]) is not None


async def test_hanging_redis_costs_no_more_than_the_deadline(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        server.freeze()
        assert await link.run([("PING",)]) is None
        assert not link.state.connected
        before = time.monotonic()
        assert await link.run([("PING",)]) is None  # away: answered at once, without asking
        assert time.monotonic() - before < FAST.redis_timeout_seconds
        server.thaw()
        await wait_until(lambda: link.state.connected)


async def test_late_reply_is_never_taken_for_the_next_one(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        server.freeze()
        assert await link.run([("SET", "late", "1"), ("GET", "late")]) is None
        server.thaw()
        await wait_until(lambda: link.state.connected)
        assert await link.run([("ECHO", "mine")]) == [b"mine"]


async def test_redis_that_was_never_reached_is_away(server: Any) -> None:
    server.kill()
    link = RedisLink(server.url, SystemClock(), limits=FAST)
    link.start()
    await wait_until(lambda: "not connected yet" not in link.describe())
    assert not link.state.connected
    assert await link.run([("PING",)]) is None
    await link.stop()


async def test_time_of_an_outage_begins_with_the_loss() -> None:
    clock = ManualClock()
    link = RedisLink("redis://127.0.0.1:1", clock, limits=FAST)
    link._on_connected()
    link._on_lost("closed")
    clock.advance(45.0)
    link._on_lost("no answer in time")
    assert link.describe() == "away for 45s: 127.0.0.1:1: no answer in time"
    await link.stop()


async def test_wrong_password_is_reported_without_showing_it(server: Any) -> None:
    link = RedisLink("redis://user:s3cret@127.0.0.1:1/0", SystemClock(), limits=FAST)
    assert "s3cret" not in link.describe()
    assert link.description == "127.0.0.1:1"
    await link.stop()
    keeper = Redis.from_url(server.url)
    await keeper.config_set("requirepass", "right")
    await keeper.aclose()
    other = RedisLink(f"{server.url}?password=s3cret", SystemClock(), limits=FAST)
    other.start()
    await wait_until(lambda: "not connected yet" not in other.describe())
    assert not other.state.connected
    assert "password" in other.describe()
    assert "s3cret" not in other.describe()
    await other.stop()


def test_url_of_another_scheme_is_refused() -> None:
    with pytest.raises(BadInput, match="redis://"):
        RedisLink("http://127.0.0.1", ManualClock())


async def test_link_stops_even_while_it_connects(server: Any) -> None:
    limits = replace(FAST, redis_ping_seconds=0.001)
    for _ in range(30):
        link = RedisLink(server.url, SystemClock(), limits=limits)
        link.start()
        async with asyncio.timeout(60):
            await link.wait_connected()
            await asyncio.sleep(0.001)  # the ping falls due in this very turn
            await link.stop()


async def test_distant_redis_answers_concurrent_callers(server: Valkey) -> None:
    """Each caller needs a connection of its own, which begins with exchanges of its own."""
    async with slow_link(server.path, 0.2) as port:
        link = RedisLink(f"redis://127.0.0.1:{port}/0", SystemClock(), name="far")
        link.start()
        try:
            async with asyncio.timeout(60):
                await link.wait_connected()
                since = link.state.since
                several = await asyncio.gather(*[link.run([("ECHO", str(number))]) for number in range(8)])
            assert several == [[b"%d" % number] for number in range(8)]
            assert link.state.connected
            assert link.state.since == since  # it was not lost in between
        finally:
            await link.stop()


async def test_error_without_a_text_is_named_by_its_type(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_off(self: Redis, *words: Any, **options: Any) -> None:
        raise ConnectionResetError

    async with connected_link(server.url, FAST) as link:
        with monkeypatch.context() as broken:
            broken.setattr("redis.asyncio.client.Pipeline.execute", break_off)
            assert await link.run([("GET", "a")]) is None
        assert "ConnectionResetError" in link.state.reason


async def test_reply_of_any_size_takes_a_bounded_memory(server: Any) -> None:
    async with connected_link(
        server.url, replace(FAST, redis_reply_bytes=1_000_000, redis_timeout_seconds=30.0)
    ) as link:
        assert await link.run([("SET", "small", b"x" * 900_000)]) == [True]
        assert await link.run([("EVAL", "return redis.call('SET', 'large', string.rep('x', 5000000))", 0)]) is not None
        assert await link.run([("GET", "small"), ("GET", "small")]) is not None
        assert await link.run([("GET", "large")]) is None
        assert "more than 1000000 bytes" in link.state.reason
        await link.wait_connected()
        assert await link.run([("GET", "small")]) is not None


async def test_demoted_server_is_left_for_the_one_to_which_its_address_leads(tmp_path: Path) -> None:
    nodes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        nodes.append(Valkey(tmp_path / name))
        nodes[-1].start()
    address = tmp_path / "service.sock"
    address.symlink_to(nodes[0].path)

    async def run() -> None:
        link = RedisLink(f"unix://{address}", SystemClock(), limits=FAST, name="test")
        link.start()
        try:
            async with asyncio.timeout(60):
                await link.wait_connected()
            assert await link.run([("SET", "a", "1"), ("REPLICAOF", "127.0.0.1", "1")]) == [True, b"OK"]
            address.unlink()
            address.symlink_to(nodes[1].path)
            replies = await link.run([("SET", "a", "2")])
            assert replies is not None
            assert isinstance(replies[0], ResponseError), "the caller learns that it was refused"
            await wait_until(lambda: link.state.connected)
            assert await link.run([("SET", "a", "3")]) == [True], "the connection to the demoted one was left"
        finally:
            await link.stop()

    try:
        await run()
    finally:
        for node in nodes:
            node.kill()


async def test_server_that_stays_read_only_is_read_all_the_same(server: Any) -> None:
    async with connected_link(server.url, FAST) as link:
        await link.run([("SET", "a", "1"), ("REPLICAOF", "127.0.0.1", "1"), ("SET", "a", "2")])
        await wait_until(lambda: link.state.connected)
        for _ in range(20):
            replies = await link.run([("SET", "a", "2"), ("GET", "a")])
            assert replies is not None, "it is not left again at once"
            assert replies[1] == b"1"
