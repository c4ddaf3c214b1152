"""The script does what the store in Python does, on a real server."""

import random
import time
from collections.abc import Iterator

import msgspec
import pytest
from redis import Redis

from fairlead_gateway.limits.exchange import (
    Base,
    Exchange,
    ExchangeReply,
    LimitReport,
    Need,
    Row,
    previous_start,
    window_span,
)
from fairlead_gateway.limits.redis_script import SCRIPT
from fairlead_gateway.limits.store import QuotaStore
from fairlead_testing.redis.valkey import Valkey

_LIMITS = (("requests|Minute|*|*", "Minute", 40), ("tokens|Month|*|m", "Month", 10**12), ("concurrency|-|*|*", "", 12))
_HOLDERS = [f"gw/{number}" for number in range(5)]
_STEPS = 60


@pytest.fixture
def redis(server: Valkey) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(server.path)) as client:
        yield client


def _row(draw: random.Random, window: str, now: int) -> Row:
    start, _ = window_span(window, now)
    if window and draw.random() < 0.2:
        start = previous_start(window, start)
    granted = draw.randrange(60)
    expires = draw.choice([0, now - 20_000, now - 70_000, now + draw.randrange(9_000)])
    spent = draw.randrange(40) if window else 0
    name = draw.choice([*_HOLDERS, f"old/{draw.randrange(60)}"])
    return Row(name, start, granted, draw.randrange(granted + 1), spent, draw.randrange(5), expires)


def _exchange(draw: random.Random, now: int, epochs: list[str]) -> Exchange:
    reports = []
    for limit, window, amount in draw.sample(_LIMITS, draw.randrange(1, 4)):
        own = [_row(draw, window, now) for _ in range(draw.randrange(3))]
        needs = [
            Need(draw.choice(_HOLDERS), draw.randrange(1, 9), draw.randrange(30)) for _ in range(draw.randrange(3))
        ]
        count = draw.choice([0, 0, 1, 25])
        seen = [_row(draw, window, now) for _ in range(count)]
        start, _ = window_span(window, now)
        bases = (
            [(start, Base(now - draw.randrange(90_000), draw.randrange(9)))] if window and draw.random() < 0.1 else []
        )
        reports.append(LimitReport(limit, window, draw.choice([amount, amount // 2]), own, needs, seen, bases))
    return Exchange(
        draw.random() < 0.5, 5_000, 30_000, draw.choice(epochs), draw.random() < 0.2, draw.random() < 0.7, reports
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_script_and_the_store_agree(redis: Redis, seed: int) -> None:
    draw = random.Random(seed)
    store = QuotaStore("run-a")
    now = int(time.time() * 1000)
    epochs = ["", ""]
    script = redis.register_script(SCRIPT)
    for _ in range(_STEPS):
        now += draw.choice([1, 300, 4_000, 20_000])
        event = draw.random()
        if event < 0.03:
            redis.flushall()
            store.tenants.clear()
        elif event < 0.06:
            store.run = draw.choice(["run-a", "run-b"])
        exchange = _exchange(draw, now, epochs)
        packed = msgspec.msgpack.encode(exchange)
        reply = script(keys=["fl1:{acme}:lim"], args=[packed, store.run, str(now)])
        expected = store.apply("acme", exchange, now)
        assert msgspec.msgpack.decode(reply, type=ExchangeReply) == expected
        epochs = ["", expected.epoch, expected.epoch, expected.epoch, epochs[-1]]


def test_the_script_reads_the_time_and_the_run_of_its_server(redis: Redis) -> None:
    exchange = Exchange(False, 5_000, 30_000, "", False, False, [LimitReport("requests", "Minute", 10)])
    packed = msgspec.msgpack.encode(exchange)
    reply = msgspec.msgpack.decode(redis.eval(SCRIPT, 1, "fl1:{acme}:lim", packed, "", ""), type=ExchangeReply)
    seconds, microseconds = redis.time()
    assert 0 <= seconds * 1000 + microseconds // 1000 - reply.now < 10_000
    assert reply.epoch.endswith(redis.info("server")["run_id"][:8])


def test_keys_expire_after_the_next_window(redis: Redis) -> None:
    exchange = Exchange(False, 5_000, 30_000, "", False, False, [LimitReport("requests", "Minute", 10)])
    reply = msgspec.msgpack.decode(
        redis.eval(SCRIPT, 1, "fl1:{acme}:lim", msgspec.msgpack.encode(exchange), "", ""), type=ExchangeReply
    )
    start = reply.limits[0].start
    assert redis.pexpiretime(f"fl1:{{acme}}:lim|requests|{start}") == start + 180_000
    assert redis.ttl("fl1:{acme}:lim") > 0


_FOREIGN = [
    b"",
    b"x",
    b"nan",
    b"inf",
    b"-1e300",
    b"1e16",
    b"-9e15",
    b"\x01",
    b"\x01\xc1",
    b"\x01\x91\x01",
    b"\x01\x80",
    b"\xff" * 300,
]
_FOREIGN += [b"\x01" + msgspec.msgpack.encode(row) for row in ([1, 2, 3, 4, "x"], [float("nan")] * 5, [1e300] * 2)]


@pytest.mark.parametrize("seed", range(6))
def test_what_others_have_written_counts_as_absent(redis: Redis, seed: int) -> None:
    draw = random.Random(seed)
    reports = [LimitReport(name, window, amount, [], [Need("gw/0", 1, 2)]) for name, window, amount in _LIMITS]
    packed = msgspec.msgpack.encode(Exchange(True, 0, 30_000, "", False, True, reports))
    redis.flushall()
    redis.eval(SCRIPT, 1, "fl1:{acme}:lim", packed, "", "")
    for key in redis.keys("fl1:*"):
        if draw.random() < 0.3:
            redis.set(key, draw.choice(_FOREIGN))
        else:
            names = [b"run", b"epoch", b"since", b"lost", b"hgw/0", b"hx", b"b", b"d", b"a", b"w", b"?"]
            redis.hset(key, mapping={name: draw.choice(_FOREIGN) for name in draw.sample(names, 5)})
    for _ in range(2):
        reply = msgspec.msgpack.decode(redis.eval(SCRIPT, 1, "fl1:{acme}:lim", packed, "", ""), type=ExchangeReply)
    assert [one.grants[0].holder for one in reply.limits] == ["gw/0"] * 3
