"""Requests are counted by shape on a logarithmic grid, and old ones fade."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.request_shapes import RequestShapeGrid, log_edges
from fairlead_autoscaler.core import ShapeCount
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram


def test_edges_are_the_same_factor_apart() -> None:
    assert log_edges(1.0, 16.0, 4) == pytest.approx((1.0, 2.0, 4.0, 8.0, 16.0))
    for least, most, buckets in ((0.0, 1.0, 2), (2.0, 1.0, 2), (1.0, 2.0, 0)):
        with pytest.raises(BadInput):
            log_edges(least, most, buckets)


def test_the_grid_has_ten_by_ten_buckets_and_takes_what_lies_outside() -> None:
    grid = RequestShapeGrid()
    assert grid.size == 100
    assert grid.bucket_index(0.0, 0.0) == 0
    assert grid.bucket_index(1e9, 1e9) == 99
    assert all(grid.bucket_index(*grid.bucket_center(index)) == index for index in range(100))


def test_a_bucket_stands_for_the_mean_of_what_fell_into_it() -> None:
    seen = ShapeHistogram.empty(0.0).with_requests(10.0, [ShapeCount(100.0, 20.0, 1.0), ShapeCount(101.0, 22.0, 1.0)])
    index = seen.grid.bucket_index(100.0, 20.0)
    assert seen.shape(index) == pytest.approx((100.5, 21.0))
    assert seen.shape(99) == seen.grid.bucket_center(99)
    assert sum(ShapeHistogram.empty(0.0).rates()) == 0.0


def test_rates_follow_the_traffic_and_forget() -> None:
    seen = ShapeHistogram.empty(0.0, half_life_seconds=60.0)
    for second in range(600):
        seen = seen.with_requests(second + 1.0, [ShapeCount(100.0, 20.0, 3.0)])
    index = seen.grid.bucket_index(100.0, 20.0)
    assert seen.rates()[index] == pytest.approx(3.0, rel=0.01)
    quiet = seen.with_requests(660.0, [])
    assert quiet.rates()[index] == pytest.approx(1.5, rel=0.01)
    assert quiet.shape(index) == pytest.approx((100.0, 20.0))


@given(st.lists(st.builds(ShapeCount, st.floats(), st.floats(), st.floats())), st.lists(st.floats(0, 1e6), min_size=1))
def test_nothing_that_is_counted_breaks_it(requests: list[ShapeCount], times: list[float]) -> None:
    seen = ShapeHistogram.empty(0.0)
    for now in times:
        seen = seen.with_requests(now, requests)
    assert all(math.isfinite(rate) and rate >= 0.0 for rate in seen.rates())
    assert seen.at == max(0.0, *times)
