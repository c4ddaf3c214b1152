"""The rows that workers share, and the slots that are given out in them."""

import pytest

from fairlead.fleet import Fleet, Instance
from fairlead_gateway.routing import PrefixChain, RouteRequest, shared
from fairlead_gateway.routing.ledger import Ledger, backlog_of
from fairlead_gateway.routing.shared import SharedRows
from fairlead_gateway.slots import Slots

SLOTS = 8


def cells(rows: int = 3) -> memoryview:
    return memoryview(bytearray(shared.bytes_of(rows, SLOTS))).cast("q")


def rows_of(memory: memoryview, count: int = 3) -> list[SharedRows]:
    found = [SharedRows(memory, SLOTS, row) for row in range(count)]
    for row, one in enumerate(found):
        one.place({"a": 0, "b": 5})
        one.read_rows([other for other in range(count) if other != row])
    return found


def asked(name: str) -> RouteRequest:
    return RouteRequest(name, PrefixChain((), (), 0), 1.0)


def sums(ledger: Ledger, instance: str) -> tuple[int, int, float, float]:
    seen = ledger.seen(ledger.tally(instance))
    return seen.inflight, seen.waiting, seen.backlog_seconds, seen.inflight_tokens


def test_a_ledger_sees_its_siblings_for_decisions_and_itself_alone_for_reports() -> None:
    first, second, third = (Ledger(one) for one in rows_of(cells()))
    first.dispatched(asked("r1"), "a", seconds=0.5, tokens=100.0)
    second.dispatched(asked("r2"), "a", seconds=0.25, tokens=50.0)
    second.dispatched(asked("r3"), "b", seconds=2.0, tokens=10.0)
    assert sums(third, "a") == (2, 2, 0.75, 150.0)
    assert sums(first, "a") == (2, 2, 0.75, 150.0)
    assert first.load("a").inflight == 1
    assert backlog_of(third.seen_all([third.tally("a"), third.tally("b")])) == 2.75
    second.first_token("r2")
    assert sums(third, "a") == (2, 1, 0.5, 150.0)
    second.ended("r2")
    second.ended("r3")
    first.ended("r1")
    assert sums(third, "a") == sums(third, "b") == (0, 0, 0.0, 0.0)
    assert backlog_of(third.seen_all([third.tally("a"), third.tally("b")])) == 0.0


def test_nothing_is_read_of_a_worker_that_is_gone_and_its_row_is_empty_for_the_next() -> None:
    memory = cells()
    first, second, _ = rows_of(memory)
    ledger = Ledger(second)
    ledger.dispatched(asked("r"), "b", seconds=1.0, tokens=7.0)
    assert first.others("b") == (1, 1, 1.0, 7.0)
    first.read_rows([2])
    assert first.others("b") is None
    assert not shared.idle(memory, SLOTS, 3, 5)
    shared.clear(memory, SLOTS, 1)
    assert shared.idle(memory, SLOTS, 3, 5)
    first.read_rows([1, 2])
    assert first.others("b") is None


def test_an_instance_without_a_slot_is_each_workers_own_and_one_that_gets_a_slot_is_shown_at_once() -> None:
    first, second, _ = rows_of(cells())
    ledger, other = Ledger(first), Ledger(second)
    ledger.dispatched(asked("r"), "late", seconds=1.0, tokens=1.0)
    assert sums(other, "late") == (0, 0, 0.0, 0.0)
    for one in (first, second):
        one.place({"a": 0, "b": 5, "late": 7})
    ledger.show_again()
    assert sums(other, "late") == (1, 1, 1.0, 1.0)


def test_without_rows_a_ledger_writes_and_reads_none() -> None:
    ledger = Ledger()
    ledger.dispatched(asked("r"), "a", seconds=1.0, tokens=1.0)
    assert ledger.seen(ledger.tally("a")) is ledger.tally("a")
    assert ledger.busy() == ("a",)


def fleet(*ids: str) -> Fleet:
    return Fleet(1, 1, {}, {"d/m": tuple(Instance(one, "d", "m", "main", "http://127.0.0.1:1") for one in ids)})


def test_a_slot_goes_to_another_only_when_it_is_empty_and_has_been_left_for_a_minute() -> None:
    full = {0}
    slots = Slots(2, lambda slot: slot not in full)
    assert slots.place(fleet("a", "b"), 0.0) == {"a": 0, "b": 1}
    assert slots.place(fleet("b", "c"), 10.0) == {"a": 0, "b": 1}
    assert slots.place(fleet("b", "c"), 75.0) == {"a": 0, "b": 1}
    full.clear()
    assert slots.place(fleet("b", "c"), 76.0) == {"b": 1, "c": 0}
    assert slots.place(fleet("a", "b", "c"), 77.0) == {"b": 1, "c": 0}


def test_an_instance_that_comes_back_keeps_its_slot() -> None:
    slots = Slots(4, lambda slot: True)
    slots.place(fleet("a"), 0.0)
    slots.place(fleet(), 1.0)
    assert slots.place(fleet("a"), 100.0) == {"a": 0}
    slots.place(fleet(), 101.0)
    assert slots.place(fleet(), 130.0) == {"a": 0}
    assert slots.place(fleet(), 161.0) == {}


@pytest.mark.parametrize("backlog", [0.0, 1e-6, 12.345678, 3_600.0])
def test_seconds_survive_as_microseconds(backlog: float) -> None:
    first, second, _ = rows_of(cells())
    first.write("a", 1, 1, backlog, 2.9)
    found = second.others("a")
    assert found is not None
    assert (found[0], found[1], found[3]) == (1, 1, 2.0)
    assert abs(found[2] - backlog) < 1e-6 * 1.01
