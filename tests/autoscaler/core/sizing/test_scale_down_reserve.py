"""A pool is lowered only to a number that carries the demand with room to spare."""

import pytest

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand, Rule, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.core.types import PoolObservation


def _planned(there: int, needed: float, capacity_after: float = 1.0) -> tuple[int, str]:
    """Returns the number and rule of a pool of so many replicas that needs these."""
    target = -int(-needed // 1)
    demand = PoolDemand(target, needed, False, False, False, False, (120.0, 250.0), capacity_after, {}, "TPOT target")
    planner = StatelessPoolPlanner(
        PoolMemory(),
        PoolObservation(there, there, replicas=()),
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
