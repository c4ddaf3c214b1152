"""The shared load table of workers, and the slots of its rows."""

import pytest

from fairlead.fleet.model import Fleet, Instance
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.load import shared_memory
from fairlead_gateway.routing.load.inflight import InflightTracker, total_backlog_seconds
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.supervisor.worker_pool import SlotAllocator

SLOTS = 8


def cells(rows: int = 3) -> memoryview:
    return memoryview(bytearray(shared_memory.table_bytes(rows, SLOTS))).cast("q")


def rows_of(memory: memoryview, count: int = 3) -> list[SharedLoadTable]:
    tables = [SharedLoadTable(memory, SLOTS, row) for row in range(count)]
    for row, table in enumerate(tables):
        table.set_slots({"a": 0, "b": 5})
        table.set_active_rows([other for other in range(count) if other != row])
    return tables


def make_request(name: str) -> RouteRequest:
    return RouteRequest(name, PrefixChain((), (), 0), 1.0)


def sums(ledger: InflightTracker, instance: str) -> tuple[int, int, float, float]:
    seen = ledger.total_load(ledger.local_load(instance))
    return seen.inflight, seen.waiting, seen.backlog_seconds, seen.inflight_tokens


def test_a_ledger_sees_its_siblings_for_decisions_and_itself_alone_for_reports() -> None:
    first, second, third = (InflightTracker(table) for table in rows_of(cells()))
    first.add(make_request("r1"), "a", prefill_seconds=0.5, tokens=100.0)
    second.add(make_request("r2"), "a", prefill_seconds=0.25, tokens=50.0)
    second.add(make_request("r3"), "b", prefill_seconds=2.0, tokens=10.0)
    assert sums(third, "a") == (2, 2, 0.75, 150.0)
    assert sums(first, "a") == (2, 2, 0.75, 150.0)
    assert first.instance_load("a").inflight == 1
    assert total_backlog_seconds(third.total_loads([third.local_load("a"), third.local_load("b")])) == 2.75
    second.on_first_token("r2")
    assert sums(third, "a") == (2, 1, 0.5, 150.0)
    second.remove("r2")
    second.remove("r3")
    first.remove("r1")
    assert sums(third, "a") == sums(third, "b") == (0, 0, 0.0, 0.0)
    assert total_backlog_seconds(third.total_loads([third.local_load("a"), third.local_load("b")])) == 0.0


def test_nothing_is_read_of_a_worker_that_is_gone_and_its_row_is_empty_for_the_next() -> None:
    memory = cells()
    first, second, _ = rows_of(memory)
    ledger = InflightTracker(second)
    ledger.add(make_request("r"), "b", prefill_seconds=1.0, tokens=7.0)
    assert first.sum_other_rows("b") == (1, 1, 1.0, 7.0, 0)
    ledger.on_queued("b", 1)
    assert first.sum_other_rows("b") == (1, 1, 1.0, 7.0, 1)
    first.set_active_rows([2])
    assert first.sum_other_rows("b") is None
    assert not shared_memory.is_slot_idle(memory, SLOTS, 3, 5)
    shared_memory.clear_row(memory, SLOTS, 1)
    assert shared_memory.is_slot_idle(memory, SLOTS, 3, 5)
    first.set_active_rows([1, 2])
    assert first.sum_other_rows("b") is None


def test_an_instance_is_shared_as_soon_as_it_has_a_slot() -> None:
    first, second, _ = rows_of(cells())
    ledger, other = InflightTracker(first), InflightTracker(second)
    ledger.add(make_request("r"), "late", prefill_seconds=1.0, tokens=1.0)
    assert sums(other, "late") == (0, 0, 0.0, 0.0)
    for table in (first, second):
        table.set_slots({"a": 0, "b": 5, "late": 7})
    ledger.republish()
    assert sums(other, "late") == (1, 1, 1.0, 1.0)


def test_without_rows_a_ledger_writes_and_reads_none() -> None:
    ledger = InflightTracker()
    ledger.add(make_request("r"), "a", prefill_seconds=1.0, tokens=1.0)
    assert ledger.total_load(ledger.local_load("a")) is ledger.local_load("a")
    assert ledger.busy_instances() == ("a",)


def fleet(*ids: str) -> Fleet:
    return Fleet(1, 1, {}, {"d/m": tuple(Instance(name, "d", "m", "main", "http://127.0.0.1:1") for name in ids)})


def test_a_slot_goes_to_another_only_when_it_is_empty_and_has_been_left_for_a_minute() -> None:
    full = {0}
    slots = SlotAllocator(2, lambda slot: slot not in full)
    assert slots.assign(fleet("a", "b"), 0.0) == {"a": 0, "b": 1}
    assert slots.assign(fleet("b", "c"), 10.0) == {"a": 0, "b": 1}
    assert slots.assign(fleet("b", "c"), 75.0) == {"a": 0, "b": 1}
    full.clear()
    assert slots.assign(fleet("b", "c"), 76.0) == {"b": 1, "c": 0}
    assert slots.assign(fleet("a", "b", "c"), 77.0) == {"b": 1, "c": 0}


def test_an_instance_that_comes_back_keeps_its_slot() -> None:
    slots = SlotAllocator(4, lambda slot: True)
    slots.assign(fleet("a"), 0.0)
    slots.assign(fleet(), 1.0)
    assert slots.assign(fleet("a"), 100.0) == {"a": 0}
    slots.assign(fleet(), 101.0)
    assert slots.assign(fleet(), 130.0) == {"a": 0}
    assert slots.assign(fleet(), 161.0) == {}


@pytest.mark.parametrize("backlog", [0.0, 1e-6, 12.345678, 3_600.0])
def test_seconds_survive_as_microseconds(backlog: float) -> None:
    first, second, _ = rows_of(cells())
    first.write("a", 1, 1, backlog, 2.9)
    totals = second.sum_other_rows("a")
    assert (totals[0], totals[1], totals[3]) == (1, 1, 2.0)
    assert abs(totals[2] - backlog) < 1e-6 * 1.01
