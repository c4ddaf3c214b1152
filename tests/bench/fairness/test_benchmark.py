"""The benchmark of fairness carries the goals that are checked in, and isolation holds."""

import pytest

from fairlead.tenants.model import CacheSharing
from fairlead_bench.fairness.benchmark import (
    FLOOD,
    PROFILE,
    STEADY,
    capacity,
    largest_gap,
    rates,
    request_seconds,
    tenant_requests,
    waiting_windows,
)
from fairlead_bench.fairness.cache_timing import aimed_load, timing_attack


@pytest.mark.parametrize(
    ("sharing", "low", "high"), [(CacheSharing.TENANT, 0.45, 0.55), (CacheSharing.CLUSTER, 0.95, 1.0)]
)
def test_attacker_learns_by_time_what_is_cached_only_where_caches_are_shared(
    sharing: CacheSharing, low: float, high: float
) -> None:
    attack = timing_attack(sharing, seed=3)
    assert low <= attack.by_time <= high
    assert low <= attack.by_cached_tokens <= high


def test_prompts_can_be_aimed_at_one_engine_only_with_the_secret() -> None:
    assert aimed_load(knows_secret=False, seed=3) <= 1.3
    assert aimed_load(knows_secret=True, seed=3) >= 4.0


def test_steady_tenants_send_the_same_whatever_the_flood_sends() -> None:
    mixed, alone = (tenant_requests(rates(flood=flood), 5.0, 1) for flood in (2.0, 0.0))
    assert [request for request in mixed if request.tenant != FLOOD] == alone
    assert {request.tenant for request in alone} == set(STEADY)
    assert capacity() == pytest.approx(8 / request_seconds(PROFILE))


def test_gap_is_the_largest_of_any_part_of_a_window_in_which_both_wait() -> None:
    waits = [(0.0, "a", 1), (1.0, "b", 1), (5.0, "a", -1), (6.0, "c", 1), (7.0, "a", 1), (8.0, "b", -1)]
    windows = waiting_windows(waits, ("a", "b"))
    assert windows == [(1.0, 5.0), (7.0, 8.0)]
    served = [(0.5, "a", 100.0), (2.0, "a", 4.0), (3.0, "b", 10.0), (4.0, "b", 1.0), (7.5, "a", 6.0), (9.0, "b", 99.0)]
    assert largest_gap(served, windows, {"a": 1.0, "b": 1.0}) == 11.0
    assert largest_gap(served, windows, {"a": 0.5, "b": 2.0}) == 12.0
