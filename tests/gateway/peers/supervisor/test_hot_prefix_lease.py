"""The shared table of hot prefixes: one owner, a successor that continues, and a stale table."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_gateway.peers.peer_messages import HotPrefixTable
from fairlead_gateway.peers.supervisor.hot_prefix_lease import (
    HOT_PREFIX_LEASE_SECONDS,
    HotPrefixLeases,
    LeaseHooks,
    TableLease,
)
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.codec import encode
from fairlead_kvstore.redis.link import REDIS_STALE_SECONDS, RedisLink
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

KEY = "ns/a"
LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, redis_timeout_seconds=20.0)
FIRST, SECOND = HotPrefixTable(b"firsttab"), HotPrefixTable(b"secondta")


@dataclass(slots=True)
class Side:
    """One gateway's leases, with the tables that it counted and received."""

    link: RedisLink
    tables: HotPrefixLeases
    mine: HotPrefixTable | None = None
    active: list[str] = field(default_factory=lambda: [KEY])
    adopted: list[HotPrefixTable] = field(default_factory=list)
    received: list[tuple[int, HotPrefixTable | None]] = field(default_factory=list)


def side(url: str, name: str, clock: ManualClock) -> Side:
    link = RedisLink(url, SystemClock(), limits=LIMITS)
    sides: list[Side] = []
    hooks = LeaseHooks(
        active_models=lambda: sides[0].active,
        local_table=lambda model: sides[0].mine,
        on_acquired=lambda model, table: sides[0].adopted.append(table),
        on_table=lambda model, epoch, table: sides[0].received.append((epoch, table)),
    )
    sides.append(Side(link, HotPrefixLeases(link, name, clock, hooks)))
    return sides[0]


@asynccontextmanager
async def connected_sides(url: str) -> AsyncIterator[tuple[ManualClock, Side, Side]]:
    clock = ManualClock()
    sides = [side(url, name, clock) for name in ("one", "two")]
    for gateway in sides:
        gateway.link.start()
    async with asyncio.timeout(60):
        for gateway in sides:
            await gateway.link.wait_connected()
    try:
        yield clock, *sides
    finally:
        for gateway in sides:
            await gateway.link.stop()


async def test_all_use_the_first_owners_table_and_equal_epochs_are_equal_tables(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        first.mine, second.mine = FIRST, SECOND
        for each in (first, second):
            await each.tables.run_once()
        assert first.received == second.received == [(int(clock.wall() * 1000), FIRST)]
        assert (first.tables.owned_tables, second.tables.owned_tables) == (1, 0)
        first.mine = SECOND
        clock.advance(0.5)
        for each in (first, second, first, second):
            await each.tables.run_once()
        assert first.received == second.received
        epochs = [epoch for epoch, _ in first.received]
        assert epochs[1] == epochs[0] + 1
        assert second.received[-1][1] == SECOND


async def test_a_new_owner_offers_the_last_table_first(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        reader = Redis.from_url(server.url)
        first.mine, second.mine = FIRST, SECOND
        for each in (first, second):
            await each.tables.run_once()
        await reader.delete(redis_keys.hot_prefixes(KEY))  # the owner is dead, and its lease has expired
        await second.tables.run_once()
        assert second.tables.owned_tables == 1
        assert second.adopted == [FIRST]
        assert second.received[1][1] == FIRST
        assert second.received[1][0] > second.received[0][0]
        await second.tables.run_once()
        await first.tables.run_once()
        assert first.tables.owned_tables == 0
        assert first.received[-1] == second.received[-1] == (second.received[1][0] + 1, SECOND)
        await reader.aclose()


async def test_a_key_without_expiry_is_no_lease(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, gateway, _):
        reader = Redis.from_url(server.url)
        await reader.hset(redis_keys.hot_prefixes(KEY), mapping={"holder": "a ghost", "epoch": "7", "table": "x"})  # type: ignore[misc]
        gateway.mine = FIRST
        await gateway.tables.run_once()
        assert gateway.received == [(int(clock.wall() * 1000), FIRST)]
        assert 0 < await reader.pttl(redis_keys.hot_prefixes(KEY)) <= HOT_PREFIX_LEASE_SECONDS * 1000
        await gateway.tables.stop()
        assert not await reader.exists(redis_keys.hot_prefixes(KEY))
        await reader.aclose()


async def test_a_gateway_that_has_not_caught_up_offers_no_table(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        await first.tables.run_once()
        assert (first.received, first.tables.owned_tables) == ([], 0)
        second.mine = SECOND
        await second.tables.run_once()
        await first.tables.run_once()
        assert first.received == second.received


async def test_a_stale_table_is_a_warning_and_is_dropped_after_a_minute(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, gateway, _):
        gateway.mine = FIRST
        await gateway.tables.run_once()
        server.kill()
        await wait_until(lambda: not gateway.link.state.connected)
        await gateway.tables.run_once()
        assert gateway.tables.warnings() == []
        clock.advance(10.0)
        await gateway.tables.run_once()
        assert "is 10s old" in gateway.tables.warnings()[0]
        clock.advance(REDIS_STALE_SECONDS)
        await gateway.tables.run_once()
        assert gateway.received[-1] == (0, None)
        assert gateway.tables.owned_tables == 0
        server.start()
        await wait_until(lambda: gateway.link.state.connected)
        await gateway.tables.run_once()
        assert gateway.received[-1][1] == FIRST
        assert gateway.received[-1][0] > gateway.received[0][0]
        assert gateway.tables.warnings() == []


async def test_a_dropped_table_is_taken_again(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        second.mine = SECOND
        for each in (second, first):
            await each.tables.run_once()
        link = first.link
        await link.stop()
        clock.advance(1.0)
        await first.tables.run_once()
        clock.advance(REDIS_STALE_SECONDS + 1.0)
        await first.tables.run_once()
        assert first.received[1:] == [(0, None)]
        link.start()
        await link.wait_connected()
        for each in (second, first):  # the owner renews its table, or takes it again
            await each.tables.run_once()
        assert first.received[2:] == second.received[-1:]


async def test_a_model_that_rested_wakes_with_the_last_table(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, gateway, _):
        reader = Redis.from_url(server.url)
        gateway.mine = FIRST
        await gateway.tables.run_once()
        gateway.active = []
        clock.advance(3_600.0)
        await gateway.tables.run_once()
        await reader.delete(redis_keys.hot_prefixes(KEY))
        assert (gateway.tables.warnings(), gateway.tables.owned_tables) == ([], 0)
        gateway.active, gateway.mine = [KEY], HotPrefixTable()
        await gateway.tables.run_once()
        assert [table for _, table in gateway.received] == [FIRST, FIRST]
        gateway.tables.retain([])
        assert gateway.tables.lease(KEY) is None
        await reader.aclose()


async def test_what_cannot_be_read_is_no_table(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, gateway, _):
        writer = Redis.from_url(server.url)
        gateway.mine = FIRST
        await writer.hset(redis_keys.hot_prefixes(KEY), mapping={"holder": "x", "epoch": "9", "table": "?"})  # type: ignore[misc]
        await writer.pexpire(redis_keys.hot_prefixes(KEY), int(1000 * HOT_PREFIX_LEASE_SECONDS))
        await gateway.tables.run_once()
        assert (gateway.received, gateway.tables.undecodable) == ([], 1)
        await writer.aclose()


@pytest.mark.parametrize(
    ("epoch", "seconds"), [("many", 1), (str(2**62 - 1), 1), ("-5", 1), ("7", 1_000_000), (None, 1_000_000)]
)
async def test_forged_table_is_replaced(server: Valkey, epoch: str | None, seconds: int) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        writer = Redis.from_url(server.url)
        name = redis_keys.hot_prefixes(KEY)
        if epoch is None:
            await writer.set(name, "a string")
        else:
            await writer.hset(name, mapping={"holder": "x", "epoch": epoch, "table": encode(SECOND)})  # type: ignore[misc]
        await writer.expire(name, seconds)
        await writer.aclose()
        first.mine = FIRST
        for each in (first, second):
            await each.tables.run_once()
        assert first.received == second.received == [(int(clock.wall() * 1000), FIRST)]
        assert first.tables.owned_tables == 1


def test_an_answer_to_an_offer_that_was_not_ours_changes_nothing() -> None:
    term = TableLease()
    assert term.make_offer(None, 5) is None
    assert not term.on_reply(True, 5, None, 0.0)
    assert not term.on_reply(False, 5, None, 0.0)
    assert (term.epoch, term.table) == (0, None)


async def test_model_that_leaves_during_an_exchange_stops_no_other_models_table(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected_sides(server.url) as (_, gateway, _):
        gateway.mine, gateway.active = FIRST, ["ns/leaves", KEY]
        run = gateway.link.run

        async def reply_after_the_fleet_changed(commands: Sequence[Command]) -> list[Any] | None:
            replies = await run(commands)
            gateway.tables.retain([KEY])
            return replies

        monkeypatch.setattr(gateway.link, "run", reply_after_the_fleet_changed)
        await gateway.tables.run_once()
        assert [table for _, table in gateway.received] == [FIRST]
