"""Hedged starts: further replicas start with the missing ones; the first are ready sooner."""

import pytest

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan

_UNEQUAL, _EQUAL = (120.0, 250.0), (10.0, 10.0)


def _plan(
    missing: int,
    *,
    urgent: bool = True,
    overloaded: bool = False,
    starts: tuple[float, float] = _UNEQUAL,
    most: int = 60,
    blind_seconds: float | None = None,
) -> PoolPlan:
    """Returns the plan of a pool of ten that needs so many more."""
    wanted = PoolDemand(10 + missing, 10.0 + missing, urgent, overloaded, False, starts, 1.0, {}, "batch")
    doubt = SignalDoubt(blind_seconds, None, False)
    observed = PoolObservation(10, 10, replicas=())
    return StatelessPoolPlanner(PoolMemory(), observed, doubt, (1, most), 0.0, ScalingSettings()).next_memory_and_plan(
        wanted
    )[1]


@pytest.mark.parametrize(
    ("missing", "overloaded", "beside"), [(1, False, 0), (4, False, 4), (1, True, 0), (4, True, 8)]
)
def test_the_more_is_missing_the_more_are_started_beside(missing: int, overloaded: bool, beside: int) -> None:
    plan = _plan(missing, overloaded=overloaded)
    assert plan.replicas == 10 + missing + beside
    assert plan.rule == ("hedged" if beside else "up")


def test_where_starts_take_all_the_same_time_none_is_started_beside() -> None:
    assert _plan(4, overloaded=True, starts=_EQUAL).replicas == 14
    assert _plan(4, urgent=False, starts=_EQUAL, blind_seconds=60.0).replicas == 14


def test_no_more_are_started_beside_than_there_may_be() -> None:
    assert _plan(4, overloaded=True, most=16).replicas == 16


def test_without_metrics_a_rise_is_hedged_whether_requests_wait_or_not() -> None:
    plan = _plan(3, urgent=False, blind_seconds=60.0)
    assert (plan.replicas, plan.rule) == (16, "metrics-missing-up")
    assert _plan(3, urgent=False, blind_seconds=55.0).replicas == 10
