"""A limit that pools share, and the ratio of prefill to decode engines under it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.limits.prefill_decode_ratio import KEEP_FACTOR, split_by_role
from fairlead_autoscaler.core.limits.shared_replica_limit import LimitShare, SharedLimit, apply_shared_limit
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan, PoolSpec

PREFILL = PoolSpec("prefill", Role.PREFILL, maximum=20)
DECODE = PoolSpec("decode", Role.DECODE, maximum=20)


def plans(prefill: int, decode: int) -> dict[str, PoolPlan]:
    return {"prefill": PoolPlan(prefill, "up", "load"), "decode": PoolPlan(decode, "up", "load")}


def shares(prefill: float | None, decode: float | None) -> list[LimitShare]:
    return [LimitShare(Role.PREFILL, (PREFILL,), prefill), LimitShare(Role.DECODE, (DECODE,), decode)]


def observed(prefill: int, decode: int) -> dict[str, PoolObservation]:
    return {"prefill": PoolObservation(prefill, prefill), "decode": PoolObservation(decode, decode)}


def test_what_fits_stays_as_it_is() -> None:
    assert apply_shared_limit(SharedLimit(16), shares(1.0, 15.0), plans(14, 2), observed(14, 2)) == plans(14, 2)


def test_what_a_window_holds_for_one_role_goes_to_the_other_that_needs_it() -> None:
    pool_plans = apply_shared_limit(SharedLimit(16), shares(5.0, 10.0), plans(14, 16), observed(14, 2))
    assert (pool_plans["prefill"].replicas, pool_plans["decode"].replicas) == (5, 11)
    assert pool_plans["prefill"].rule == "shared"
    assert pool_plans["prefill"].reason.startswith("14 are needed; 5.0 engines of prefill to 10.0 of decode")


def test_where_a_need_is_unknown_what_was_planned_stands_for_it() -> None:
    pool_plans = apply_shared_limit(SharedLimit(16), shares(None, 8.0), plans(8, 16), observed(8, 8))
    assert (pool_plans["prefill"].replicas, pool_plans["decode"].replicas) == (8, 8)


def test_a_model_of_one_role_is_cut_from_the_dearest_pool_down_to_its_minimum() -> None:
    big = PoolSpec("big", cost_per_hour=5.0, minimum=2, maximum=9)
    small = PoolSpec("small", cost_per_hour=1.0, maximum=9)
    planned = {"big": PoolPlan(5, "up", "load"), "small": PoolPlan(6, "up", "load")}
    pool_plans = apply_shared_limit(
        SharedLimit(7),
        [LimitShare(Role.SERVE, (big, small), 9.0)],
        planned,
        {"big": PoolObservation(3, 3), "small": PoolObservation(3, 3)},
    )
    assert (pool_plans["big"].replicas, pool_plans["small"].replicas) == (2, 5)
    assert "7" in pool_plans["big"].reason


def test_in_doubt_nothing_is_lowered_and_less_is_raised() -> None:
    pool_plans = apply_shared_limit(SharedLimit(16, can_lower=False), shares(5.0, 10.0), plans(14, 16), observed(14, 2))
    assert (pool_plans["prefill"].replicas, pool_plans["decode"].replicas) == (14, 2)
    fewer = apply_shared_limit(SharedLimit(16, can_lower=False), shares(5.0, 10.0), plans(9, 16), observed(9, 2))
    assert (fewer["prefill"].replicas, fewer["decode"].replicas) == (9, 7)
    settled = apply_shared_limit(SharedLimit(17, can_lower=False), shares(5.0, 10.0), plans(14, 3), observed(14, 2))
    assert (settled["prefill"].replicas, settled["decode"].replicas) == (14, 3)


needs = st.one_of(st.none(), st.floats(0, 200))
counts = st.integers(0, 40)


@given(st.integers(2, 40), needs, needs, counts, counts, counts, counts)
def test_never_more_than_there_may_be_and_never_more_than_was_planned(
    most: int, prefill_need: float | None, decode_need: float | None, prefill: int, decode: int, has: int, other: int
) -> None:
    planned = plans(prefill, decode)
    pool_plans = apply_shared_limit(SharedLimit(most), shares(prefill_need, decode_need), planned, observed(has, other))
    assert all(pool_plans[name].replicas >= 1 or planned[name].replicas == 0 for name in planned)
    assert all(pool_plans[name].replicas <= planned[name].replicas for name in planned)
    assert sum(plan.replicas for plan in pool_plans.values()) <= most


def test_the_law_is_the_ratio_of_what_each_role_needs() -> None:
    # b_p / T_p = 2 prompts a second per prefill engine
    # b_d / T_d = 1 / 3 of an answer a second per decode engine
    assert (split_by_role(14, 10.0 / 2.0, 10.0 * 3.0).prefill, split_by_role(14, 10.0 / 2.0, 10.0 * 3.0).decode) == (
        2,
        12,
    )


@given(st.integers(2, 64), st.floats(0.01, 500), st.floats(0.01, 500))
def test_no_other_division_carries_more(total: int, prefill: float, decode: float) -> None:
    chosen = split_by_role(total, prefill, decode)
    assert chosen.prefill + chosen.decode == total
    assert min(chosen.prefill, chosen.decode) >= 1
    best = max(min(n / prefill, (total - n) / decode) for n in range(1, total))
    assert chosen.carried == pytest.approx(best)
    exact = total * prefill / (prefill + decode)
    assert abs(chosen.prefill - min(total - 1, max(1, exact))) < 1
    kept = split_by_role(total, prefill, decode, now=chosen.prefill + 1)
    assert kept.carried * KEEP_FACTOR >= chosen.carried
    assert kept.rule == ("ratio" if kept.prefill == chosen.prefill else "kept")


def test_silence_moves_nothing() -> None:
    assert split_by_role(16, 0.0, 0.0, now=11).prefill == 11
    assert split_by_role(16, 0.0, 0.0).prefill == 8
    assert split_by_role(16, 3.0, 0.0).decode == 1
    with pytest.raises(BadInput):
        split_by_role(1, 1.0, 1.0)
