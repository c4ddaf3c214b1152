"""Decisions and boards reach a real Redis in batches; without one they wait, bounded and counted."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.clock import SystemClock
from fairlead.decision import Decision, Input, Rejected
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.testing.waiting import until, until_async
from fairlead_kvstore import keys
from fairlead_kvstore.board import BATCH, Board
from fairlead_kvstore.record import PublishedBoard, PublishedDecision, decode, encode, published_decision

KEY = "chat/llama-70b"
FAST = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_deadline_seconds=2.0)


@dataclass(frozen=True)
class Record:
    request_id: str
    model_key: str = KEY
    wall: float = 1_800_000_000.0
    decision: Decision = field(
        default_factory=lambda: Decision(
            "a/1/0",
            "affinity",
            "a home",
            (Rejected("b/2/0", "costs more"),),
            {"a/1/0/backlog_seconds": Input(0.5, 0.1), "b/2/0/backlog_seconds": Input(None)},
            0.25,
        )
    )
    attempt: int = 1
    prompt_tokens: float = 1_234.0


@dataclass(frozen=True)
class Load:
    inflight: int = 2
    waiting: int = 1
    backlog_seconds: float = 0.5
    inflight_tokens: float = 900.0


def _check(
    server: Any,
    work: Callable[[Board, Redis], Coroutine[Any, Any, None]],
    *,
    limits: Limits = FAST,
    loads: Callable[[], Mapping[str, Mapping[str, Load]]] | None = None,
) -> None:
    async def run() -> None:
        reader = Redis.from_url(server.url)
        board = Board(server.url, "gw-0", SystemClock(), loads=loads, limits=limits)
        board.start()
        try:
            await work(board, reader)
        finally:
            await board.stop()
            await reader.aclose()

    asyncio.run(run())


async def _stream(reader: Redis, key: str = KEY) -> list[PublishedDecision]:
    entries = await reader.xrange(keys.decisions(key))
    found = [decode(values[b"d"], PublishedDecision) for _, values in entries]
    return [item for item in found if item is not None]


def test_an_offered_decision_is_in_the_stream_whole(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        board.offer(Record("r1"))
        await until(lambda: board.published == 1)
        (told,) = await _stream(reader)
        assert (told.gateway, told.request, told.model, told.chosen) == ("gw-0", "r1", KEY, "a/1/0")
        assert (told.rule, told.reason, told.cost_seconds, told.prompt_tokens) == ("affinity", "a home", 0.25, 1_234.0)
        assert told.rejected == (("b/2/0", "costs more"),)
        assert told.inputs == {"a/1/0/backlog_seconds": (0.5, 0.1), "b/2/0/backlog_seconds": (None, None)}

    _check(server, work)


def test_decisions_arrive_in_order_over_many_batches(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        count = 3 * BATCH + 7
        for n in range(count):
            board.offer(Record(f"r{n}", model_key=KEY if n % 2 else "default/tiny"))
        await until(lambda: board.published == count)
        told = await _stream(reader)
        assert [item.request for item in told] == [f"r{n}" for n in range(count) if n % 2]

    _check(server, work)


def test_the_stream_is_bounded_by_count(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        for n in range(1_000):
            board.offer(Record(f"r{n}"))
        await until(lambda: board.published == 1_000)
        assert await reader.xlen(keys.decisions(KEY)) <= 100 + 200  # "~" keeps up to a node more

    _check(server, work, limits=replace(FAST, published_decisions=100))


def test_old_decisions_are_trimmed_and_an_unused_stream_expires(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        stream = keys.decisions(KEY)
        for n in range(500):
            await reader.xadd(stream, {b"d": b"old"}, id=f"{1_000 + n}-0")
        board.offer(Record("r1"))
        await until(lambda: board.published == 1)
        board.offer(Record("r2"))
        await until(lambda: board.published == 2)
        assert await reader.xlen(stream) <= 2 + 100
        assert 0 < await reader.ttl(stream) <= 900

    _check(server, work)


def test_a_dead_redis_costs_nothing_but_the_oldest_decisions_and_they_follow_when_it_is_back(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        await until(lambda: board.link.state.connected)
        assert board.problem() is None
        server.kill()
        await until(lambda: not board.link.state.connected)
        for n in range(50):
            board.offer(Record(f"r{n}"))
        assert board.waiting == 20
        assert board.dropped == 30
        assert "30 dropped" in board.status()
        problem = board.problem()
        assert problem is not None
        assert "not shared" in problem
        server.start()
        await until(lambda: board.published == 20)
        assert [item.request for item in await _stream(reader)] == [f"r{n}" for n in range(30, 50)]
        assert board.problem() is None

    _check(server, work, limits=replace(FAST, published_decisions_waiting=20))


def test_a_redis_that_refuses_writes_is_a_problem_that_is_said(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        await reader.set(keys.decisions(KEY), "not a stream")
        board.offer(Record("r1"))
        await until(lambda: board.refused == 1)
        assert "WRONGTYPE" in board.status()
        assert "refuses" in (board.problem() or "")
        await reader.delete(keys.decisions(KEY))
        board.offer(Record("r2"))
        await until(lambda: board.published == 1)
        assert board.problem() is None

    _check(server, work)


def test_a_record_that_cannot_be_written_is_refused_alone(server: Any) -> None:
    async def work(board: Board, reader: Redis) -> None:
        board.offer(Record("r1", model_key="no-slash"))
        board.offer(Record("\ud800"))
        board.offer(Record("r3"))
        await until(lambda: board.published == 1)
        assert board.refused == 2

    _check(server, work)


def test_a_board_shows_what_is_in_flight_and_goes_with_the_load(server: Any) -> None:
    loads: dict[str, dict[str, Load]] = {KEY: {"a/1/0": Load(), "b/2/0": Load(inflight=0)}}

    async def work(board: Board, reader: Redis) -> None:
        name = keys.board(KEY, "gw-0")

        async def there() -> bool:
            return bool(await reader.exists(name))

        async def gone() -> bool:
            return not await reader.exists(name)

        await until_async(there)
        told = decode(await reader.get(name), PublishedBoard)
        assert told is not None
        assert told.loads == {"a/1/0": (2, 1, 0.5, 900.0)}
        assert told.wall > 0
        assert 0 < await reader.pttl(name) <= FAST.board_expire_seconds * 1000
        loads[KEY] = {}
        await until_async(gone)

    _check(server, work, loads=lambda: loads)


def test_a_board_stays_while_its_gateway_lives_and_expires_by_itself(server: Any) -> None:
    limits = replace(FAST, board_expire_seconds=0.6)

    async def work(board: Board, reader: Redis) -> None:
        name = keys.board(KEY, "gw-0")

        async def walls() -> float:
            data = await reader.get(name)
            told = decode(data, PublishedBoard) if data else None
            return told.wall if told else 0.0

        async def newer() -> bool:
            return await walls() > first

        await until_async(lambda: _true(reader.exists(name)))
        first = await walls()
        await until_async(newer)  # refreshed although nothing changed
        board._task.cancel()  # type: ignore[union-attr]  # the gateway dies without a word
        await until_async(lambda: _true(reader.exists(name), wanted=False))

    _check(server, work, limits=limits, loads=lambda: {KEY: {"a/1/0": Load()}})


async def _true(asked: Any, *, wanted: bool = True) -> bool:
    return bool(await asked) is wanted


def test_stopping_tells_what_waits_and_takes_the_board_down(server: Any) -> None:
    async def run() -> None:
        reader = Redis.from_url(server.url)
        board = Board(server.url, "gw-0", SystemClock(), loads=lambda: {KEY: {"a/1/0": Load()}}, limits=FAST)
        board.start()
        await until(lambda: board.link.state.connected)
        board.offer(Record("last"))
        await board.stop()
        assert [item.request for item in await _stream(reader)] == ["last"]
        assert not await reader.exists(keys.board(KEY, "gw-0"))
        await reader.aclose()

    asyncio.run(run())


def test_stopping_without_redis_returns(server: Any) -> None:
    server.kill()

    async def run() -> None:
        board = Board(server.url, "gw-0", SystemClock(), limits=FAST)
        board.start()
        board.offer(Record("r1"))
        async with asyncio.timeout(60):
            await board.stop()
        assert board.published == 0

    asyncio.run(run())


def test_a_gateway_id_that_cannot_be_a_name_is_refused_at_once() -> None:
    with pytest.raises(BadInput):
        Board("redis://127.0.0.1", "", SystemClock())


def test_of_many_rejected_instances_only_the_first_few_are_told() -> None:
    many = tuple(Rejected(f"p-{n}/1/0", "busier") for n in range(4_000))
    inputs = {f"p-{n}/1/0/inflight": Input(float(n)) for n in range(4_000)} | {"mean/backlog_seconds": Input(0.1)}
    told = published_decision(Record("r", decision=Decision("p-9999/1/0", "least-request", "x", many, inputs)), "gw")
    assert len(told.rejected) == 16
    assert set(told.inputs) == {f"p-{n}/1/0/inflight" for n in range(16)} | {"mean/backlog_seconds"}
    assert len(encode(told)) < 4_000


def test_another_schema_or_damage_is_skipped_and_unknown_fields_are_ignored() -> None:
    told = encode(published_decision(Record("r"), "gw"))
    assert decode(b"\x02" + told[1:], PublishedDecision) is None
    assert decode(told[:-1], PublishedDecision) is None
    assert decode(b"", PublishedDecision) is None
    assert decode(told, PublishedBoard) is not None  # fields of a later release
