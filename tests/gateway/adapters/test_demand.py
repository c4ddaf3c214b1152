"""Demand of adapters: rates that fade, and load times that are learned."""

import pytest

from fairlead_gateway.adapters.placement import FIRST_LOAD_SECONDS, HALF_LIFE_SECONDS, AdapterDemand


def test_steady_requests_are_counted_as_they_are() -> None:
    demand = AdapterDemand()
    for number in range(1, 2_001):
        demand.on_request("sql" if number % 4 else "legal", number * 0.5)
    assert demand.rate("sql", 1_000.0) == pytest.approx(1.5, rel=0.05)
    assert demand.share("sql", 1_000.0) == pytest.approx(0.75, rel=0.05)
    assert demand.rate("other", 1_000.0) == demand.share("other", 1_000.0) == 0.0


def test_rate_halves_without_requests_and_share_stays() -> None:
    demand = AdapterDemand()
    for name in ("sql", "sql", "legal"):
        demand.on_request(name, 10.0)
    rate, share = demand.rate("sql", 10.0), demand.share("sql", 10.0)
    later = 10.0 + HALF_LIFE_SECONDS
    assert demand.rate("sql", later) == pytest.approx(rate / 2)
    assert demand.share("sql", later) == pytest.approx(share)


def test_load_times_are_learned_and_stand_for_those_of_others() -> None:
    demand = AdapterDemand()
    assert demand.load_seconds("sql") == FIRST_LOAD_SECONDS
    demand.on_loaded("sql", 0.4)
    assert demand.load_seconds("sql") == demand.load_seconds("legal") == 0.4
    for _ in range(30):
        demand.on_loaded("sql", 2.0)
    assert demand.load_seconds("sql") == pytest.approx(2.0, abs=0.01)


def test_adapters_that_left_are_forgotten() -> None:
    demand = AdapterDemand()
    demand.on_request("sql", 1.0)
    demand.on_loaded("sql", 9.0)
    demand.on_loaded("legal", 1.0)
    demand.retain(frozenset({"legal"}))
    assert demand.rate("sql", 1.0) == 0.0
    assert demand.load_seconds("sql") < 9.0
