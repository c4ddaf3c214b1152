"""Counted misses: how many were later than a target that lies between two edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.core.performance.counted_misses import CountedMisses, CountsAroundTarget, counts_around

_BOUNDS = (1.0, 2.5, 5.0)


def test_at_an_edge_the_counts_beyond_it_are_the_misses() -> None:
    found = counts_around((50.0, 30.0, 15.0, 5.0), _BOUNDS, 2.5)
    assert (found.beyond_lower, found.judged, found.position) == (20.0, 100.0, 0.0)
    assert found.missed == 20.0


def test_between_two_edges_misses_fall_off_by_equal_factors() -> None:
    """From 80 beyond 1 s to 5 beyond 2.5 s: by a factor of 16 in 1.5 s."""
    counts = (20.0, 75.0, 5.0, 0.0)
    quarter, half, most = (counts_around(counts, _BOUNDS, 1.0 + 1.5 * part).missed for part in (0.25, 0.5, 0.75))
    assert quarter == pytest.approx(40.0)
    assert half == pytest.approx(20.0)
    assert most == pytest.approx(10.0)


def test_an_empty_bucket_counts_as_half_a_request() -> None:
    counted = counts_around((0.0, 8.0, 0.0, 0.0), _BOUNDS, 1.75)
    assert counted.missed == pytest.approx((8.0 * 0.5) ** 0.5)
    assert counts_around((8.0, 0.0, 0.0, 0.0), _BOUNDS, 1.75).missed == 0.0


def test_counts_of_less_than_half_a_request_are_spread_evenly() -> None:
    assert CountsAroundTarget(0.4, 0.0, 10.0, 0.5).missed == pytest.approx(0.2)


def test_of_an_objective_past_the_last_edge_an_empty_last_bucket_misses_nothing() -> None:
    assert counts_around((4.0, 0.0), (10.0,), 30.0) == CountsAroundTarget(0.0, 0.0, 4.0, 0.0)
    assert counts_around((4.0, 2.0), (10.0,), 30.0) == CountsAroundTarget(2.0, 2.0, 6.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "target"), [((1.0, 2.0, 3.0, 4.0), None), ((0.0, 0.0, 0.0, 0.0), 2.0), ((1.0, 2.0), 2.0)]
)
def test_without_a_target_or_counts_of_these_buckets_nothing_is_judged(
    counts: tuple[float, ...], target: float | None
) -> None:
    assert counts_around(counts, _BOUNDS, target) == CountsAroundTarget()


@given(st.tuples(*[st.integers(0, 10**6).map(float)] * 4), st.floats(0.01, 20.0), st.floats(1.0, 10.0))
def test_a_later_target_is_missed_by_no_more(counts: tuple[float, ...], target: float, times: float) -> None:
    early, late = (counts_around(counts, _BOUNDS, each).missed for each in (target, target * times))
    assert 0.0 <= late <= early * (1.0 + 1e-9) + 0.5
    assert early <= sum(counts)


def test_sums_decay_by_what_is_kept() -> None:
    old = CountedMisses(100.0, CountsAroundTarget(20.0, 10.0, 100.0, 0.5), abandoned=4.0)
    new = CountedMisses(10.0, CountsAroundTarget(2.0, 1.0, 10.0, 0.5), abandoned=1.0, slow=3.0)
    both = old.plus(0.5, new)
    assert both.requests == 60.0
    assert both.first_tokens == CountsAroundTarget(12.0, 6.0, 60.0, 0.5)
    assert both.late_first_tokens == pytest.approx((12.0 * 6.0) ** 0.5 + 3.0)
    assert both.slow_answers == 3.0
    assert both.missed == pytest.approx(both.late_first_tokens + 3.0)


def test_no_more_requests_miss_than_there_were() -> None:
    late = CountsAroundTarget(10.0, 10.0, 10.0)
    assert CountedMisses(10.0, first_tokens=late, gaps=late, abandoned=5.0).missed == 10.0
