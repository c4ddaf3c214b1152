"""Shares of a limit, by tables and by their laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet.kubernetes.instance_shares import fair_shares


@pytest.mark.parametrize(
    ("demands", "capacity", "shares"),
    [
        ({}, 4, {}),
        ({"a": 3}, 4, {"a": 3}),
        ({"a": 9}, 4, {"a": 4}),
        ({"a": 1, "b": 9}, 4, {"a": 1, "b": 3}),
        ({"a": 9, "b": 9}, 5, {"a": 2, "b": 3}),
        ({"a": 2, "b": 9, "c": 9}, 8, {"a": 2, "b": 3, "c": 3}),
        ({"a": 1, "b": 1}, 1, {"a": 0, "b": 1}),
    ],
)
def test_small_demands_are_met_and_large_ones_share_the_rest(
    demands: dict[str, int], capacity: int, shares: dict[str, int]
) -> None:
    assert fair_shares(demands, capacity) == shares


@given(st.dictionaries(st.text(max_size=2), st.integers(0, 50), max_size=8), st.integers(0, 100))
def test_nobody_loses_below_the_share_of_another(demands: dict[str, int], capacity: int) -> None:
    shares = fair_shares(demands, capacity)
    assert sum(shares.values()) == min(capacity, sum(demands.values()))
    for key, share in shares.items():
        assert share == demands[key] or share >= max(shares.values()) - 1
