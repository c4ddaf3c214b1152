"""A pool is lowered only to a number that carries the demand with room to spare."""

from dataclasses import replace

import pytest

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand, Rule, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.core.types import PoolObservation


def _planned(
    there: int, needed: float, capacity_after: float = 1.0, *, ready: int | None = None, shares_limit: bool = False
) -> tuple[int, str]:
    """Returns the number and rule of a pool of so many replicas that needs these.

    ready: of those that are there; None: all.
    """
    target = -int(-needed // 1)
    demand = PoolDemand(target, needed, False, False, False, (120.0, 250.0), capacity_after, {}, "TPOT target")
    demand = replace(demand, shares_limit=shares_limit)
    planner = StatelessPoolPlanner(
        PoolMemory(),
        PoolObservation(there, there if ready is None else ready, replicas=()),
        SignalDoubt(None, None, False),
        (1, 60),
        1_000.0,
        ScalingSettings(),
    )
    plan = planner.next_memory_and_plan(demand)[1]
    return plan.replicas, plan.rule


@pytest.mark.parametrize(
    ("needed", "replicas", "rule"),
    [
        (5.35, 6, Rule.DOWN),
        (5.45, 7, Rule.DOWN),
        (6.35, 7, Rule.DOWN),
        (6.45, 8, Rule.WHAT_IF),
        (7.2, 8, Rule.ENOUGH),
    ],
)
def test_six_tenths_of_a_replica_must_be_left_after_a_step_down(needed: float, replicas: int, rule: Rule) -> None:
    assert _planned(8, needed) == (replicas, rule)


def test_the_last_step_needs_no_room() -> None:
    assert _planned(2, 0.9) == (1, Rule.DOWN)


def test_caches_that_go_count_before_the_room() -> None:
    assert _planned(8, 6.0, 0.95) == (7, Rule.DOWN)
    assert _planned(8, 6.0, 0.90) == (8, Rule.WHAT_IF)


@pytest.mark.parametrize(
    ("ready", "replicas", "rule"),
    [
        (7, 8, Rule.STARTING),
        (6, 8, Rule.STARTING),
        (8, 7, Rule.DOWN),
    ],
)
def test_the_last_start_is_finished_if_one_replica_fewer_is_needed(ready: int, replicas: int, rule: Rule) -> None:
    assert _planned(8, 6.3, ready=ready) == (replicas, rule)


def test_starts_are_cancelled_if_fewer_than_are_ready_or_two_fewer_are_needed() -> None:
    assert _planned(8, 5.3, ready=7) == (6, Rule.DOWN)
    assert _planned(8, 5.3, ready=6) == (6, Rule.DOWN)


def test_the_last_start_is_cancelled_where_another_group_may_need_the_replica() -> None:
    assert _planned(8, 6.3, ready=7, shares_limit=True) == (7, Rule.DOWN)
