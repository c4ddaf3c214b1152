"""Counters become rises: resets, garbage, gateways that fall silent and come back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.collector.counter_deltas import (
    CounterTracker,
    advance,
    counter_increases,
    extrapolate,
    start_tracking,
)

A, B = ("arrivals", "m"), ("held", "m")


def test_a_counter_that_went_back_was_reset_and_shows_what_happened_since() -> None:
    assert counter_increases({A: 100.0, B: 5.0}, {A: 7.0, B: 9.0}, starts_at_zero=True) == {A: 7.0, B: 4.0}


def test_a_new_counter_began_at_zero_only_where_its_source_shows_all_it_has() -> None:
    assert counter_increases({}, {A: 3.0}, starts_at_zero=True) == {A: 3.0}
    assert counter_increases({}, {A: 3.0}, starts_at_zero=False) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_an_impossible_value_is_left_out_and_is_no_new_base(value: float) -> None:
    tally, told = advance(start_tracking({A: 10.0}, 0.0), {A: value}, 5.0, starts_at_zero=False)
    assert told == {}
    tally, told = advance(tally, {A: 14.0}, 10.0, starts_at_zero=False)
    assert told == {}
    _, told = advance(tally, {A: 15.0}, 15.0, starts_at_zero=False)
    assert told == {A: 1.0}


def test_a_source_that_misses_looks_goes_on_as_it_did_and_no_burst_follows() -> None:
    tally, _ = advance(start_tracking({A: 0.0}, 0.0), {A: 50.0}, 5.0, starts_at_zero=True)
    tally, told = extrapolate(tally, 10.0, 60.0)
    assert told == {A: 50.0}
    tally, told = extrapolate(tally, 12.0, 60.0)
    assert told == {A: 20.0}
    tally, told = advance(
        tally, {A: 200.0}, 15.0, starts_at_zero=True
    )  # 150 in the 10 s since it was read, of which 3 s are new
    assert told == pytest.approx({A: 45.0})
    _, told = advance(tally, {A: 210.0}, 20.0, starts_at_zero=True)
    assert told == {A: 10.0}


def test_a_source_that_is_silent_too_long_or_read_once_has_no_delta() -> None:
    tally, _ = advance(start_tracking({A: 0.0}, 0.0), {A: 50.0}, 5.0, starts_at_zero=True)
    assert extrapolate(tally, 65.1, 60.0)[1] is None
    assert extrapolate(start_tracking({A: 1.0}, 0.0), 5.0, 60.0)[1] is None


@pytest.mark.property
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 10**9).map(float), max_size=20))
def test_a_rise_is_a_finite_number_and_never_negative(values: list[float]) -> None:
    tally: CounterTracker = start_tracking({}, 0.0)
    for second, value in enumerate(values, 1):
        tally, told = advance(tally, {A: value}, float(second), starts_at_zero=True)
        assert all(0.0 <= rise < math.inf for rise in told.values())
