"""Over-run and under-use of limiters: as defined, and as Fairlead's own code keeps them."""

import pytest

from fairlead_bench.quota.accuracy import (
    STRICT,
    AdmittedRequests,
    TenantLimits,
    TrafficCase,
    accuracy,
    can_serve,
    play,
    tenant_requests,
)

_REQUESTS = TrafficCase("requests", TenantLimits(requests=60), 120)
_TOKENS = TrafficCase("tokens", TenantLimits(tokens=30_000), 150, max_tokens=1_000)


def test_overrun_and_underuse_of_windows_do_not_cancel_out() -> None:
    times = [(60.0 * minute + second, 0.5) for minute, count in ((0, 4), (1, 15), (2, 5)) for second in range(count)]
    found = AdmittedRequests([(at, at + seconds, 10) for at, seconds in times], starts=(0.0, 60.0, 120.0))
    one = accuracy(found, TenantLimits(requests=10), windows=2)
    assert (one.overrun, one.underuse, one.total) == pytest.approx((0.25, 0.25, 1.0))


def test_time_without_a_window_is_not_used() -> None:
    admitted = [(at, at + 1.0, 10) for at in (0.0, 60.0, 61.0, 150.0, 151.0)]
    found = AdmittedRequests(admitted, starts=(0.0, 60.0, 150.0))
    assert accuracy(found, TenantLimits(requests=2), windows=3).underuse == pytest.approx(1 / 3)


def test_the_attribution_that_is_better_for_a_product_counts() -> None:
    found = AdmittedRequests([(59.0, 61.0, 10), (119.0, 121.0, 10)], starts=(0.0, 60.0, 120.0))
    assert accuracy(found, TenantLimits(tokens=10), windows=1).underuse == 0.0


def test_the_traffic_of_a_case_is_the_same_for_every_product() -> None:
    assert tenant_requests(_TOKENS, 60.0, 3, 7) == tenant_requests(_TOKENS, 60.0, 3, 7)
    assert tenant_requests(_TOKENS, 60.0, 3, 7) != tenant_requests(_TOKENS, 60.0, 3, 8)


def test_fairlead_keeps_a_limit_of_requests_exactly_in_simulated_time() -> None:
    one = accuracy(play("fairlead estimated", _REQUESTS, 2, 1), _REQUESTS.limits, 2)
    assert (one.overrun, one.underuse) == (0.0, 0.0)


def test_fairlead_never_exceeds_a_strict_limit_of_tokens_in_simulated_time() -> None:
    assert accuracy(play(STRICT, _TOKENS, 2, 1), _TOKENS.limits, 2).overrun == 0.0
    assert not can_serve(STRICT, TrafficCase("tokens", TenantLimits(tokens=30_000), 150))


def test_a_budget_has_one_window() -> None:
    found = AdmittedRequests([(0.0, 61.0, 10)], nano_usd=150, starts=(0.0, 60.0))
    one = accuracy(found, TenantLimits(budget=200), windows=8)
    assert (one.overrun, one.underuse, one.total) == (0.0, 0.25, 0.75)


def test_fairlead_never_exceeds_a_strict_budget_in_simulated_time() -> None:
    case = TrafficCase("budget", TenantLimits(budget=20_000_000), 150, max_tokens=1_000)
    assert accuracy(play(STRICT, case, 2, 1), case.limits, 2).overrun == 0.0
