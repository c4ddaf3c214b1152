"""A pool that an observation lacks has no substitute for a minute, since it may still serve."""

import copy
from dataclasses import replace
from functools import cache

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ScalingCore,
)

LARGE = PoolSpec("large", cost_per_hour=3.7, minimum=1, maximum=20, profile=builtin_profile("h100-llama8b"))
SMALL = PoolSpec("small", cost_per_hour=1.0, minimum=0, maximum=40, profile=builtin_profile("l4-qwen8b"))
MODEL = ModelSpec("chat", 3.0, 0.2, (LARGE, SMALL))


class Fleet:
    """Pools whose numbers are those that were planned last, each look after five seconds."""

    def __init__(self, model: ModelSpec) -> None:
        self.core, self.now, self.counts = ScalingCore(model), 0.0, {pool.name: 1 for pool in model.pools}

    def step(self, *named: str) -> dict[str, PoolPlan]:
        """Returns the plans of a tick with these pools, at sixty requests a second."""
        self.now += 5.0
        pools = {name: PoolObservation(self.counts[name], self.counts[name], replicas=()) for name in named}
        plans = self.core.step(Observation(self.now, GatewayTraffic(300.0, 300_000.0), pools)).pools
        self.counts |= {name: plan.replicas for name, plan in plans.items()}
        return dict(plans)


@pytest.fixture
def settled() -> Fleet:
    return copy.deepcopy(_settled())


@cache
def _settled() -> Fleet:
    """Returns a fleet after an hour, when its forecasts are known to be good and the large pool
    carries the whole load.
    """
    fleet = Fleet(MODEL)
    for _ in range(720):
        fleet.step("large", "small")
    return fleet


def test_one_that_vanishes_for_a_look_or_now_and_then_moves_nothing(settled: Fleet) -> None:
    had = dict(settled.counts)
    for tick in range(120):
        settled.step("small") if tick % 10 == 0 else settled.step("large", "small")
        assert settled.counts["small"] == had["small"]
        assert settled.counts["large"] <= had["large"]


def test_after_a_minute_the_others_carry_what_it_did(settled: Fleet) -> None:
    had = settled.counts["small"]
    for _ in range(11):
        assert settled.step("small") == {}
    for _ in range(6):
        settled.step("small")
    assert settled.counts["small"] > had


def test_a_pool_that_was_never_there_holds_nobody_up() -> None:
    fleet = Fleet(MODEL)
    for _ in range(60):
        fleet.step("small")
    assert fleet.counts["small"] > 1


def test_where_all_pools_share_a_number_nobody_takes_what_it_may_still_have() -> None:
    prefill, decode = (replace(LARGE, name=role.value, role=role) for role in (Role.PREFILL, Role.DECODE))
    fleet = Fleet(replace(MODEL, pools=(prefill, decode), replicas_most=6))
    for _ in range(60):
        fleet.step("Prefill", "Decode")
    assert sum(fleet.counts.values()) <= 6
    assert fleet.step("Decode") == {}
