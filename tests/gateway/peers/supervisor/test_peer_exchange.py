"""The exchange through a real Redis. Tests drive the rounds; time is a fake clock."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_gateway.peers.peer_messages import DATA_FIELD, GATEWAY_FIELD, PeerBatch, PeerLoad, SentPrompt
from fairlead_gateway.peers.supervisor.peer_exchange import (
    DISPATCH_ENTRIES,
    DISPATCH_PEERS_BYTES,
    DISPATCH_RETENTION_SECONDS,
    PAGE_ENTRIES,
    PEERS_LOAD_ROWS,
    DispatchBudget,
    ExchangeHooks,
    PeerExchange,
)
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.redis.valkey_cluster import ValkeyGroup
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

KEY = "ns/a"
READY = ("e-0", "e-1")
ONE: PeerLoad = (1, 1, 0.5, 10.0, 0)
LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, redis_timeout_seconds=20.0)


@dataclass(slots=True)
class Side:
    """One gateway's exchange, and the data that it received."""

    link: RedisLink
    exchange: PeerExchange
    loads: dict[str, dict[str, PeerLoad]]
    models: list[str]
    sent: list[tuple[str, SentPrompt]] = field(default_factory=list)
    service: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    shown: Mapping[str, PeerLoad] = field(default_factory=dict)

    def show(self, loads: Mapping[str, PeerLoad]) -> None:
        self.shown = loads

    def hear(self, model: str, items: Sequence[SentPrompt]) -> None:
        self.sent += [(model, item) for item in items]

    async def caught_up(self) -> None:
        """Reads until it has caught up."""
        while True:
            await self.exchange.read_once()
            if self.exchange.is_caught_up:
                return


def side(
    url: str, name: str, clock: ManualClock, *, models: Sequence[str] = (KEY,), max_entries: int = DISPATCH_ENTRIES
) -> Side:
    link = RedisLink(url, SystemClock(), limits=LIMITS)
    sides: list[Side] = []
    hooks = ExchangeHooks(
        lambda: {model: [READY] for model in sides[0].models},
        lambda: sides[0].loads,
        lambda model, items: sides[0].hear(model, items),
        lambda loads: sides[0].show(loads),
        lambda model, service: sides[0].service.append((model, dict(service))),
    )
    exchange = PeerExchange(link, name, clock, hooks, secret_fingerprint=b"s", max_entries=max_entries)
    sides.append(Side(link, exchange, {}, list(models)))
    return sides[0]


@asynccontextmanager
async def connected_sides(
    url: str, *, names: str = "ab", models: Sequence[str] = (KEY,)
) -> AsyncIterator[tuple[Any, ...]]:
    clock = ManualClock()
    sides = [side(url, name, clock, models=models) for name in names]
    for gateway in sides:
        gateway.link.start()
    try:
        async with asyncio.timeout(60):
            for gateway in sides:
                await gateway.link.wait_connected()
                await gateway.caught_up()
        yield clock, *sides
    finally:
        for gateway in sides:
            await gateway.link.stop()


async def test_what_one_sends_the_others_hear_and_it_does_not_hear_itself(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        first.loads = {KEY: {"e-0": ONE}}
        first.exchange.add_dispatch(KEY, "e-0", bytes(16), 7, 99)
        await first.exchange.flush()
        for each in (first, second):
            await each.exchange.read_once()
        assert second.sent == [(KEY, ("e-0", bytes(16), 7, 99))]
        assert second.shown == {"e-0": ONE}
        assert (first.sent, first.shown) == ([], {})
        assert [each.name for each in second.exchange.known_peers()] == ["a"]
        assert (first.exchange.stats.sent, second.exchange.stats.received) == (1, 1)


async def test_service_of_tenants_arrives_once_and_survives_a_lost_connection(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        first.exchange.outbox.add_service(KEY, {"acme": 2.0, "zeta": 1.0})
        first.exchange.outbox.add_service(KEY, {"acme": 0.5})
        first.exchange.outbox.requeue(first.exchange.outbox.take_due([KEY], {}, 0.0, is_beat=False))
        first.exchange.outbox.add_service(KEY, {"zeta": -0.25})
        for _ in range(2):
            await first.exchange.flush()
            await second.exchange.read_once()
        assert second.service == [(KEY, {"acme": 2.5, "zeta": 0.75})]
        assert first.service == []


async def test_service_from_before_a_gateway_began_does_not_count(server: Valkey) -> None:
    async with connected_sides(server.url, names="a") as (clock, gateway):
        gateway.exchange.outbox.add_service(KEY, {"acme": 2.0})
        await gateway.exchange.flush()
        late = side(server.url, "late", clock)
        late.link.start()
        await late.link.wait_connected()
        await late.caught_up()
        assert late.service == []
        await late.link.stop()


async def test_flood_of_dispatches_is_not_applied_and_the_loads_of_its_sender_are(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        second.exchange.budget = DispatchBudget(rates=(1_280, DISPATCH_PEERS_BYTES), burst_seconds=1.0)
        first.loads = {KEY: {"e-0": ONE}}
        for tail in range(20):
            first.exchange.add_dispatch(KEY, "e-0", b"", tail)
            await first.exchange.flush()
        await second.exchange.read_once()
        assert len(second.sent) == 10
        assert second.exchange.peer_state.reported_loads() == {"e-0": ONE}
        assert (second.exchange.stats.received, second.exchange.budget.dropped) == (10, 10)


async def test_dispatches_over_a_budget_are_not_looked_at(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their instances have any names, and each was counted before the budget."""
    async with connected_sides(server.url) as (_, first, second):
        second.exchange.budget = DispatchBudget(rates=(1_280, DISPATCH_PEERS_BYTES), burst_seconds=1.0)
        apply, applied = second.exchange.peer_state.apply_batch, list[str]()

        def record(model: str, name: str, batch: PeerBatch, now: float, *, is_live: bool) -> tuple[SentPrompt, ...]:
            applied.extend(sent[0] for sent in batch.sent)
            return apply(model, name, batch, now, is_live=is_live)

        monkeypatch.setattr(second.exchange.peer_state, "apply_batch", record)
        for number in range(20):
            first.exchange.add_dispatch(KEY, f"false-{number}", b"", number)
            await first.exchange.flush()
        await second.exchange.read_once()
        assert applied == [f"false-{number}" for number in range(10)]


async def test_flood_of_service_is_thinned_out(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        second.exchange.budget = DispatchBudget(rows=(50, PEERS_LOAD_ROWS), burst_seconds=1.0)
        for number in range(20):
            first.exchange.outbox.add_service(KEY, {f"{number}-{index}": 1e6 for index in range(10)})
            await first.exchange.flush()
        await second.exchange.read_once()
        assert (len(second.service), second.exchange.budget.dropped_service) == (5, 15)
        clock.advance(1.0)
        first.exchange.outbox.add_service(KEY, {"acme": 1.0})
        await first.exchange.flush()
        await second.exchange.read_once()
        assert second.service[5:] == [(KEY, {"acme": 1.0})], "the next report counts"


async def test_flood_of_loads_is_thinned_out_and_those_of_unknown_instances_are_left_out(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        second.exchange.budget = DispatchBudget(rows=(50, PEERS_LOAD_ROWS), burst_seconds=1.0)
        for number in range(1, 51):
            first.loads = {KEY: {"e-0": (number, 0, 0.0, 0.0, 0), **{f"false-{index}": ONE for index in range(9)}}}
            first.exchange.on_loads_changed()
            await first.exchange.flush()
        await second.exchange.read_once()
        assert second.exchange.budget.dropped_loads == 45
        assert second.exchange.peer_state.reported_loads() == {"e-0": (5, 0, 0.0, 0.0, 0)}
        clock.advance(1.0)
        await first.exchange.flush()
        await second.exchange.read_once()
        assert second.shown == {"e-0": (50, 0, 0.0, 0.0, 0)}, "the next report counts"


async def test_a_gateway_that_falls_silent_takes_its_load_along_even_while_redis_is_away(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, second):
        first.loads = {KEY: {"e-0": ONE}}
        await first.exchange.flush()
        await second.exchange.read_once()
        assert second.shown == {"e-0": ONE}
        server.kill()
        await wait_until(lambda: not second.link.state.connected)
        clock.advance(1.4)
        second.exchange.update_loads()
        assert second.shown == {"e-0": ONE}
        clock.advance(0.2)
        second.exchange.update_loads()
        assert second.shown == {}


async def test_one_that_starts_reads_the_past_back_as_hints_only(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, first, _):
        first.loads = {KEY: {"e-0": ONE}}
        for tail in range(2 * PAGE_ENTRIES + 3):
            first.exchange.add_dispatch(KEY, "e-0", b"", tail)
            await first.exchange.flush()
        late = side(server.url, "c", clock)
        late.link.start()
        await late.link.wait_connected()
        await late.exchange.read_once()
        assert not late.exchange.is_caught_up
        assert "being read back" in late.exchange.warnings()[0]
        await late.caught_up()
        assert [item[2] for _, item in late.sent] == list(range(2 * PAGE_ENTRIES + 3))
        assert (late.shown, late.exchange.known_peers(), late.exchange.peer_state.missed_batches) == ({}, [], 0)
        clock.advance(0.5)
        await first.exchange.flush()
        await late.exchange.read_once()
        assert late.shown == {"e-0": ONE}
        await late.link.stop()


async def test_one_that_ends_says_so_and_tells_what_waits(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        first.loads = {KEY: {"e-0": ONE}}
        await first.exchange.flush()
        first.exchange.add_dispatch(KEY, "e-0", b"", 9)
        await first.exchange.stop()
        await second.exchange.read_once()
        assert [item[2] for _, item in second.sent] == [9]
        assert (second.shown, second.exchange.known_peers()) == ({}, [])


async def test_what_waits_while_redis_is_away_follows_when_it_is_back(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        server.kill()
        await wait_until(lambda: not (first.link.state.connected or second.link.state.connected))
        first.exchange.add_dispatch(KEY, "e-0", b"", 1)
        await first.exchange.flush()
        server.start()
        await wait_until(lambda: first.link.state.connected and second.link.state.connected)
        await first.exchange.flush()
        await second.exchange.read_once()
        assert [item[2] for _, item in second.sent] == [1]


async def test_a_replaced_stream_is_read_from_its_start(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        reader = Redis.from_url(server.url)
        await reader.xadd(
            redis_keys.sent_prompts(KEY), {b"x": b"from a server whose clock was ahead"}, id="99999999999999-0"
        )
        await second.exchange.read_once()
        await reader.flushall()
        first.exchange.add_dispatch(KEY, "e-0", b"", 1)
        await first.exchange.flush()
        await second.exchange.read_once()
        assert second.sent == []
        await second.exchange.flush()  # its own entry shows that the stream is a new one
        await second.exchange.read_once()
        assert [item[2] for _, item in second.sent] == [1]
        await reader.aclose()


async def test_undecodable_entries_are_counted_and_a_key_of_a_wrong_type_is_replaced(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        reader = Redis.from_url(server.url)
        name = redis_keys.sent_prompts(KEY)
        for fields in (
            {GATEWAY_FIELD: b"z", DATA_FIELD: b"\x01garbage"},
            {GATEWAY_FIELD: b"z"},
            {GATEWAY_FIELD: b"x" * 600, DATA_FIELD: b""},
        ):
            await reader.xadd(name, dict[Any, Any](fields))
        await reader.xadd(name, {b"something": b"else"})
        first.exchange.add_dispatch(KEY, "e-0", b"", 1)
        await first.exchange.flush()
        await second.exchange.read_once()
        assert [item[2] for _, item in second.sent] == [1]
        assert second.exchange.stats.undecodable == 3
        await reader.set(name, "no stream")
        await second.exchange.read_once()
        first.exchange.add_dispatch(KEY, "e-0", b"", 2)
        await first.exchange.flush()
        assert "WRONGTYPE" in second.exchange.warnings()[0]
        assert "WRONGTYPE" in first.exchange.warnings()[0]
        assert first.exchange.outbox.dropped == 1
        for each in (first, second):
            each.exchange.add_dispatch(KEY, "e-0", b"", 3)
            await each.exchange.flush()
            await each.exchange.read_once()
        assert second.sent[-1] == (KEY, ("e-0", b"", 3, 0))
        assert first.exchange.warnings() == second.exchange.warnings() == []
        await reader.aclose()


async def test_key_of_a_wrong_type_is_deleted_once_and_not_again_with_what_others_wrote(server: Valkey) -> None:
    async with connected_sides(server.url, models=(KEY, "ns/b")) as (_, first, second):
        reader = Redis.from_url(server.url)
        name = redis_keys.sent_prompts(KEY)
        await reader.delete(name)
        await reader.set(name, "no stream")
        first.exchange.add_dispatch(KEY, "e-0", b"", 1)
        await first.exchange.flush()
        second.exchange.add_dispatch(KEY, "e-0", b"", 2)
        await second.exchange.flush()
        assert await reader.xlen(name) == 1
        first.exchange.add_dispatch("ns/b", "e-0", b"", 3)
        await first.exchange.flush()
        assert await reader.xlen(name) == 1
        await reader.aclose()


async def test_reply_from_before_a_stream_was_replaced_does_not_count_as_its_start(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, what peers wrote earlier would count as new: loads, and service twice."""
    async with connected_sides(server.url) as (_, first, second):
        reader = Redis.from_url(server.url)
        await reader.xadd(redis_keys.sent_prompts(KEY), {b"x": b"ahead"}, id="99999999999999-0")
        await second.exchange.read_once()
        await reader.flushall()
        first.exchange.outbox.add_service(KEY, {"acme": 1.0})
        await first.exchange.flush()
        run = second.link.run

        async def reply_after_a_write(commands: Sequence[Command]) -> list[Any] | None:
            monkeypatch.undo()
            replies = await run(commands)
            await second.exchange.flush()
            return replies

        monkeypatch.setattr(second.link, "run", reply_after_a_write)
        for _ in range(2):
            await second.exchange.read_once()
        assert second.exchange.is_caught_up
        assert second.service == []
        await reader.aclose()


async def test_entry_with_the_largest_id_stops_no_exchange(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        writer = Redis.from_url(server.url)
        largest = f"{2**64 - 1}-{2**64 - 1}"
        await writer.xadd(redis_keys.sent_prompts(KEY), {GATEWAY_FIELD: b"z", DATA_FIELD: b""}, id=largest)
        await writer.aclose()
        for _ in range(2):
            for each in (first, second):
                await each.exchange.read_once()
                each.exchange.add_dispatch(KEY, "e-0", b"", 1)
                await each.exchange.flush()
        await second.exchange.read_once()
        assert (KEY, ("e-0", b"", 1, 0)) in second.sent
        assert first.exchange.warnings() == second.exchange.warnings() == []


async def test_a_stream_is_bounded_and_expires_without_writers(server: Valkey) -> None:
    async with connected_sides(server.url) as (clock, _, _):
        reader = Redis.from_url(server.url)
        tight = side(server.url, "t", clock, max_entries=100)
        tight.link.start()
        await tight.link.wait_connected()
        for tail in range(500):
            tight.exchange.add_dispatch(KEY, "e-0", b"", tail)
            await tight.exchange.flush()
        await tight.caught_up()
        clock.advance(11.0)
        await tight.exchange.flush()
        assert await reader.xlen(redis_keys.sent_prompts(KEY)) <= 100 + 200  # "~" keeps up to a node more
        assert 0 < await reader.ttl(redis_keys.sent_prompts(KEY)) <= DISPATCH_RETENTION_SECONDS
        await tight.link.stop()
        await reader.aclose()


async def test_models_come_and_go(server: Valkey) -> None:
    async with connected_sides(server.url) as (_, first, second):
        for each in (first, second):
            each.models = [KEY, "ns/b"]
            await each.caught_up()
        first.loads = {"ns/b": {"e-1": ONE}}
        await first.exchange.flush()
        await second.exchange.read_once()
        assert second.shown == {"e-1": ONE}
        second.models = [KEY]
        await second.exchange.read_once()
        assert second.shown == {}


MANY = [f"ns/m-{number}" for number in range(24)]


async def exchange_all_models(first: Side, second: Side) -> None:
    for number, model in enumerate(MANY):
        first.exchange.add_dispatch(model, "e-0", b"", number)

    async def has_received() -> bool:
        await first.exchange.flush()
        await second.exchange.read_once()
        return sorted((model, item[2]) for model, item in second.sent) == sorted(zip(MANY, range(24), strict=True))

    await wait_until(has_received)


@pytest.mark.timeout(300)
async def test_gateways_hear_one_another_through_a_cluster(ring: ValkeyGroup) -> None:
    async with connected_sides(ring.url, models=MANY) as (_, first, second):
        await exchange_all_models(first, second)


@pytest.mark.timeout(300)
async def test_gateways_hear_one_another_through_the_master_that_sentinels_name(pair: ValkeyGroup) -> None:
    async with connected_sides(pair.url, models=MANY) as (_, first, second):
        await exchange_all_models(first, second)
