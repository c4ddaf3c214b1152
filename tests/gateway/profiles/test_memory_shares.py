"""Shares of engines' memory that may be planned for, learned from their reports."""

import pytest

from fairlead.fleet.model import Fleet
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.profiles.messages import ProfileUpdate
from fairlead_gateway.profiles.supervisor import (
    FALL,
    MIN_SHARE,
    RISE,
    EngineCapacities,
    ProfilingService,
    next_share,
)
from fairlead_testing.gateway.running_gateway import fleet_of

ENGINE = "e-0/0/0"


def share_of(able: int, planned: int, reports: int) -> list[float]:
    """Returns the shares after reports of an engine that computes `able` requests, where `planned`
    fit into the whole memory.
    """
    share, shares = 1.0, list[float]()
    for _ in range(reports):
        sent = int(planned * share)
        running = min(able, sent)
        usage = 0.95 * running / able
        share = next_share(share, EngineSignals(running=running, waiting=sent - running, kv_usage=usage))
        shares.append(share)
    return shares


def test_share_falls_to_what_the_engine_can_and_stays_there() -> None:
    shares = share_of(able=80, planned=100, reports=200)
    assert min(shares) >= 0.8 - 2 * FALL
    assert max(shares[30:]) <= 0.8 + RISE / 2


def test_share_of_an_engine_that_can_all_of_it_stays_whole() -> None:
    assert share_of(able=100, planned=100, reports=50) == [1.0] * 50


def test_shares_that_gateways_learn_of_one_engine_approach_one_another() -> None:
    shares = [0.6, 1.0]
    for _ in range(200):
        waiting = max(0, int(100 * max(shares)) - 90)
        report = EngineSignals(running=90, waiting=waiting, kv_usage=0.95)
        shares = [next_share(share, report) for share in shares]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
    assert 0.88 < shares[0] < 0.93


def test_requests_that_wait_while_memory_is_free_teach_nothing() -> None:
    assert next_share(0.9, EngineSignals(running=8, waiting=5, kv_usage=0.5)) == 0.9


def test_few_large_requests_leave_more_of_a_short_memory_free() -> None:
    def falls(running: float, usage: float) -> bool:
        return next_share(1.0, EngineSignals(running=running, waiting=1, kv_usage=usage)) < 1.0

    assert falls(1, 0.6)
    assert not falls(8, 0.6)
    assert falls(8, 0.9)
    assert falls(200, 0.9)
    assert not falls(0, 1.0), "what fills it does not run"


@pytest.mark.parametrize("missing", ["running", "waiting", "kv_usage"])
def test_missing_values_teach_nothing(missing: str) -> None:
    values: dict[str, float | None] = {"running": 8, "waiting": 3, "kv_usage": 0.99, missing: None}
    assert next_share(0.9, EngineSignals(**values)) == 0.9


def test_share_stays_in_its_bounds() -> None:
    full, calm = (EngineSignals(running=8, waiting=waiting, kv_usage=0.99) for waiting in (9, 0))
    assert next_share(MIN_SHARE, full) == MIN_SHARE
    assert next_share(1.0, calm) == 1.0


def test_workers_learn_shares_of_instances_of_the_fleet() -> None:
    sent: list[ProfileUpdate] = []
    service = ProfilingService(broadcast=sent.append, clock=ManualClock())
    service.update_fleet(fleet_of(["http://127.0.0.1:1"]))
    full = EngineSignals(running=8, waiting=3, kv_usage=0.99)
    service.on_signals(ENGINE, full, 0.0)
    service.on_signals("left", full, 0.0)
    assert sent == [ProfileUpdate({}, {}, {ENGINE: 1.0 - FALL})]


def test_shares_of_instances_that_leave_are_dropped() -> None:
    capacities, full = EngineCapacities(), EngineSignals(running=8, waiting=3, kv_usage=0.99)
    capacities.update_fleet(fleet_of(["http://127.0.0.1:1"]))
    assert capacities.observe(ENGINE, full, 0.0) == (None, 1.0 - FALL)
    capacities.update_fleet(Fleet())
    assert capacities.memory_shares == {}
