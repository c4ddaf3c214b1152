"""Peers' data that the supervisor passes to its workers: loads and dispatches."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from redis.asyncio import Redis

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock, SystemClock
from fairlead_gateway.peers.messages import Dispatch, PeerUpdates
from fairlead_gateway.peers.peer_messages import PeerLoad, PeerLoadRow
from fairlead_gateway.peers.supervisor.peer_sync import PeerSync
from fairlead_gateway.routing.load import shared_memory
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.telemetry import LoadView
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.redis.valkey import Valkey

KEY = "ns/a"
SLOTS = 4
LIMITS = replace(Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.05, redis_timeout_seconds=20.0)


def test_other_gateways_are_one_more_row_that_is_written_and_emptied() -> None:
    cells = memoryview(bytearray(shared_memory.table_bytes(3, SLOTS))).cast("q")
    row = PeerLoadRow(cells, SLOTS, 2)
    worker = SharedLoadTable(cells, SLOTS, 0)
    worker.set_active_rows([1, row.row])
    for each in (row, worker):
        each.set_slots({"e-0": 0, "e-1": 3})
    row.set_loads({"e-0": (2, 1, 0.5, 100.0, 0), "unknown": (1, 1, 1.0, 1.0, 0)})
    assert worker.sum_other_rows("e-0") == (2, 1, 0.5, 100.0, 0)
    assert worker.sum_other_rows("e-1") is None
    row.set_loads({"e-1": (1, 0, 0.0, 10.0, 0)})
    assert worker.sum_other_rows("e-0") is None
    assert worker.sum_other_rows("e-1") == (1, 0, 0.0, 10.0, 0)
    row.set_loads({})
    assert not any(cells)


def test_an_instance_that_comes_later_finds_its_load_in_its_slot() -> None:
    cells = memoryview(bytearray(shared_memory.table_bytes(1, SLOTS))).cast("q")
    row = PeerLoadRow(cells, SLOTS, 0)
    row.set_loads({"e-9": (3, 3, 0.25, 5.0, 2)})
    assert not any(cells)
    row.set_slots({"e-9": 1})
    assert list(cells[5:10]) == [3, 3, 250_000, 5, 2]
    row.set_loads({})
    assert shared_memory.is_slot_idle(cells, SLOTS, 1, 1)


@dataclass(slots=True)
class FakeWorkers:
    """Workers that keep what they are sent; their fleet has one model with two instances."""

    received: list[PeerUpdates] = field(default_factory=list)

    def applied_fleet(self) -> Fleet:
        instances = tuple(
            Instance(f"e-{number}", "ns", "a", "main", f"http://{number}", state=InstanceState.READY)
            for number in range(2)
        )
        return Fleet(1, 1, {KEY: Model("ns", "a", SloTargets())}, {KEY: instances})

    def loads(self) -> Mapping[str, LoadView]:
        return {}

    def broadcast_peer_updates(self, updates: PeerUpdates) -> None:
        self.received.append(updates)

    def set_peer_loads(self, loads: Mapping[str, PeerLoad]) -> None:
        """Does nothing."""


FORMER_TABLES: dict[str, tuple[str | int, ...]] = {
    "the table of a gateway": ("HSET", "holder", "older/1", "epoch", "1764500000000", "table", "\x01\x80"),
    "a table of another schema": ("HSET", "holder", "older/1", "epoch", "1764500000000", "table", "\x7fxyz"),
    "a table without epoch": ("HSET", "holder", "older/1"),
    "a text": ("SET", "older"),
    "a list": ("RPUSH", "older"),
}
"""Values that a gateway of the release before, or a fault, may leave under the key `hot`."""


@pytest.mark.sockets
@pytest.mark.parametrize("command", FORMER_TABLES.values(), ids=FORMER_TABLES)
async def test_table_of_an_older_gateway_is_neither_read_nor_changed(
    server: Valkey, command: tuple[str | int, ...]
) -> None:
    key, workers = "fl1:{ns/a}:hot", (FakeWorkers(), FakeWorkers())
    links = [RedisLink(server.url, SystemClock(), limits=LIMITS) for _ in workers]
    first, second = (
        PeerSync(link, side, gateway_id=f"g{number}", secret=b"s", clock=ManualClock())
        for number, (link, side) in enumerate(zip(links, workers, strict=True))
    )
    redis = Redis.from_url(server.url)
    await redis.execute_command(command[0], key, *command[1:])
    before = await redis.dump(key)
    for link in links:
        link.start()
    try:
        async with asyncio.timeout(60):
            for link in links:
                await link.wait_connected()
            for sync in (first, second):
                while not sync.exchange.is_caught_up:
                    await sync.exchange.read_once()
            first.on_worker_report([Dispatch(KEY, "e-1", bytes(16), 7)], {}, has_loads=False)
            await first.exchange.flush()
            await second.exchange.read_once()
            assert [update.dispatches for update in workers[1].received] == [[Dispatch(KEY, "e-1", bytes(16), 7)]]
            for sync in (first, second):
                assert sync.counters()["peer_poisoned_total"] == 0
                await sync.stop()
        assert await redis.dump(key) == before
    finally:
        await redis.aclose()
        for link in links:
            await link.stop()
