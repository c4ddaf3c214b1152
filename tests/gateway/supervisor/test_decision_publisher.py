"""The decision stream: batches into a real Redis; without one, a bounded and counted queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
from redis.asyncio import Redis

from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.ipc.decision_json import PublishedDecision, stream_entry
from fairlead_gateway.supervisor.decision_publisher import (
    BATCH_RECORDS,
    DecisionPublisher,
)
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.codec import decode
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.waiting import wait_until

KEY = "chat/llama-70b"
FAST = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_timeout_seconds=20.0)


def record(request_id: str, decision: Decision | None = None) -> DecisionRecord:
    choice = decision or Decision(
        "a/1/0",
        "affinity",
        DecisionText(
            "a home",
            (RejectedCandidate("b/2/0", "costs more"),),
            {"a/1/0/backlog_seconds": DecisionInput(0.5, 0.1), "b/2/0/backlog_seconds": DecisionInput(None)},
        ),
        0.25,
    )
    return DecisionRecord(request_id, 1_800_000_000.0, KEY, choice, 1, 1_234.0)


def entry(request_id: str) -> bytes:
    return stream_entry(record(request_id), "gw-0")


@asynccontextmanager
async def running_stream(server: Any, **bounds: int) -> AsyncIterator[tuple[DecisionPublisher, Redis]]:
    reader = Redis.from_url(server.url)
    link = RedisLink(server.url, SystemClock(), limits=FAST)
    stream = DecisionPublisher(link, SystemClock(), **bounds)
    link.start()
    stream.start()
    try:
        yield stream, reader
    finally:
        await stream.stop()
        await link.stop()
        await reader.aclose()


async def _stream(reader: Redis, key: str = KEY) -> list[PublishedDecision]:
    entries = await reader.xrange(redis_keys.decisions(key))
    decoded = [decode(values[b"d"], PublishedDecision) for _, values in entries]
    return [item for item in decoded if item is not None]


async def test_an_offered_decision_is_in_the_stream_whole(server: Any) -> None:
    async with running_stream(server) as (log, reader):
        log.offer(KEY, entry("r1"))
        await wait_until(lambda: log.published == 1)
        (sent,) = await _stream(reader)
        assert (sent.gateway, sent.request, sent.model, sent.chosen) == ("gw-0", "r1", KEY, "a/1/0")
        assert (sent.rule, sent.reason, sent.cost_seconds, sent.prompt_tokens) == ("affinity", "a home", 0.25, 1_234.0)
        assert sent.rejected == (("b/2/0", "costs more"),)
        assert sent.inputs == {"a/1/0/backlog_seconds": (0.5, 0.1), "b/2/0/backlog_seconds": (None, None)}


async def test_decisions_arrive_in_order_over_many_batches(server: Any) -> None:
    async with running_stream(server) as (log, reader):
        count = 3 * BATCH_RECORDS + 7
        for n in range(count):
            log.offer(KEY if n % 2 else "default/tiny", entry(f"r{n}"))
        await wait_until(lambda: log.published == count)
        published = await _stream(reader)
        assert [item.request for item in published] == [f"r{n}" for n in range(count) if n % 2]


async def test_the_stream_is_bounded_by_count(server: Any) -> None:
    async with running_stream(server, max_entries=100) as (log, reader):
        for n in range(1_000):
            log.offer(KEY, entry(f"r{n}"))
        await wait_until(lambda: log.published == 1_000)
        assert await reader.xlen(redis_keys.decisions(KEY)) <= 100 + 200  # "~" keeps up to a node more


async def test_old_decisions_are_trimmed_and_an_unused_stream_expires(server: Any) -> None:
    async with running_stream(server) as (log, reader):
        stream = redis_keys.decisions(KEY)
        for n in range(500):
            await reader.xadd(stream, {b"d": b"old"}, id=f"{1_000 + n}-0")
        log.offer(KEY, entry("r1"))
        await wait_until(lambda: log.published == 1)
        log.offer(KEY, entry("r2"))
        await wait_until(lambda: log.published == 2)
        assert await reader.xlen(stream) <= 2 + 100
        assert 0 < await reader.ttl(stream) <= 900


async def test_without_redis_only_the_oldest_decisions_are_lost(server: Any) -> None:
    async with running_stream(server, max_pending=20) as (log, reader):
        await wait_until(lambda: log.link.state.connected)
        assert log.warning() is None
        server.kill()
        await wait_until(lambda: not log.link.state.connected)
        for n in range(50):
            log.offer(KEY, entry(f"r{n}"))
        assert log.pending == 20
        assert log.dropped == 30
        assert "30 dropped" in log.status()
        problem = log.warning()
        assert problem is not None
        assert "not shared" in problem
        server.start()
        await wait_until(lambda: log.published == 20)
        assert [item.request for item in await _stream(reader)] == [f"r{n}" for n in range(30, 50)]
        assert log.warning() is None


async def test_a_redis_that_refuses_writes_is_a_warning(server: Any) -> None:
    async with running_stream(server) as (log, reader):
        await reader.set(redis_keys.decisions(KEY), "not a stream")
        log.offer(KEY, entry("r1"))
        await wait_until(lambda: log.refused == 1)
        assert "WRONGTYPE" in log.status()
        assert "refuses" in (log.warning() or "")
        await reader.delete(redis_keys.decisions(KEY))
        log.offer(KEY, entry("r2"))
        await wait_until(lambda: log.published == 1)
        assert log.warning() is None


async def test_a_record_that_cannot_be_written_is_refused_alone(server: Any) -> None:
    async with running_stream(server) as (log, _):
        log.offer("no-slash", entry("r1"))
        log.offer(KEY, entry("r3"))
        await wait_until(lambda: log.published == 1)
        assert log.refused == 1


async def test_stopping_tells_what_waits(server: Any) -> None:
    reader = Redis.from_url(server.url)
    link = RedisLink(server.url, SystemClock(), limits=FAST)
    link.start()
    stream = DecisionPublisher(link, SystemClock())
    await link.wait_connected()
    stream.offer(KEY, entry("last"))
    await stream.stop()
    assert [item.request for item in await _stream(reader)] == ["last"]
    await link.stop()
    await reader.aclose()


async def test_stopping_without_redis_returns(server: Any) -> None:
    server.kill()
    link = RedisLink(server.url, SystemClock(), limits=FAST)
    link.start()
    stream = DecisionPublisher(link, SystemClock())
    stream.start()
    stream.offer(KEY, entry("r1"))
    async with asyncio.timeout(60):
        await stream.stop()
    assert stream.published == 0
    await link.stop()


def test_only_the_first_rejected_instances_are_published() -> None:
    many = tuple(RejectedCandidate(f"p-{n}/1/0", "busier") for n in range(4_000))
    inputs = {f"p-{n}/1/0/inflight": DecisionInput(float(n)) for n in range(4_000)} | {
        "mean/backlog_seconds": DecisionInput(0.1)
    }
    decision = Decision("p-9999/1/0", "least-request", DecisionText("x", many, inputs))
    data = stream_entry(record("r", decision), "gw")
    published = decode(data, PublishedDecision)
    assert len(published.rejected) == 16
    assert set(published.inputs) == {f"p-{n}/1/0/inflight" for n in range(16)} | {"mean/backlog_seconds"}
    assert len(data) < 4_000


def test_another_schema_or_damage_is_skipped_and_unknown_fields_are_ignored() -> None:
    data = entry("r")
    assert decode(b"\x02" + data[1:], PublishedDecision) is None
    assert decode(data[:-1], PublishedDecision) is None
    assert decode(b"", PublishedDecision) is None
    later = b"\x01" + msgspec.msgpack.encode(msgspec.msgpack.decode(data[1:]) | {"of a later release": 1})
    assert decode(later, PublishedDecision) == decode(data, PublishedDecision)
