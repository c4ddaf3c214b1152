"""Sleeping replicas in the plant: their lifetime, their cost, and the benefit of a sleep tier."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from fairlead_autoscaler.core import ReplicaState, ScalingCore, SleepTier
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import Pool, PoolSetup, SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.reference_pools import reference_pool, small_profile
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import SCENARIOS, with_sleep_tier
from fairlead_testing.pytest_hooks.nightly import shortened


class FakeEngine:
    """An engine that has as many requests as it is given."""

    def __init__(self) -> None:
        self.inside = 0
        self.slowdown = 1.0
        self.next_step_at = 0.0

    def running(self) -> int:
        return self.inside

    def waiting(self) -> int:
        return 0


def made(initial: int) -> Pool:
    setup = reference_pool(small_profile(), initial, startup=StartupDistribution(100.0, 0.0))
    make: Any = FakeEngine
    return Pool(
        PoolSetup(setup.facts, setup.profile, setup.startup, initial, SleepTimings(10.0, 0.25)), make, Random(1)
    )


def counts(found: Pool) -> tuple[int, ...]:
    """Returns the ready, pending, waking, sleeping and draining replicas."""
    ready, pending, draining = found.ready, found.pending, found.draining
    return len(ready), len(pending), len(found.waking), len(found.asleep), len(draining)


def test_sleeping_replicas_wake_before_new_ones_start() -> None:
    found = made(3)
    found.scale(1, 0.0, asleep=2)
    assert counts(found) == (1, 0, 0, 2, 0)
    found.scale(4, 50.0)
    assert counts(found) == (1, 1, 2, 0, 0)
    found.apply_due(60.0)
    assert counts(found) == (3, 1, 0, 0, 0)
    found.apply_due(150.0)
    assert counts(found) == (4, 0, 0, 0, 0)


def test_a_busy_replica_sleeps_after_its_requests_and_can_return_at_once() -> None:
    found = made(2)
    for one in found.ready:
        one.engine.inside = 3  # type: ignore[attr-defined]  # the engine of this test
    found.scale(1, 0.0, asleep=1)
    assert counts(found) == (1, 0, 0, 0, 1)
    found.scale(2, 5.0)
    assert counts(found) == (2, 0, 0, 0, 0)
    found.scale(1, 6.0, asleep=1)
    found.draining[0].engine.inside = 0  # type: ignore[attr-defined]
    found.apply_due(9.0)
    assert counts(found) == (1, 0, 0, 1, 0)


def test_what_is_started_for_the_tier_sleeps_when_it_is_ready() -> None:
    found = made(1)
    found.scale(1, 0.0, asleep=1)
    assert counts(found) == (1, 1, 0, 0, 0)
    found.apply_due(100.0)
    assert counts(found) == (1, 0, 0, 1, 0)


def test_asleep_costs_its_share_and_no_more() -> None:
    found = made(1)
    found.scale(0, 100.0, asleep=1)
    found.scale(1, 500.0)
    found.apply_due(510.0)
    found.close(600.0)
    assert found.replica_seconds == pytest.approx(600.0 - 0.75 * 400.0)


def test_each_replica_is_counted_in_its_state_and_a_waking_one_as_pending() -> None:
    found = made(3)
    found.ready.clear()
    found.scale(0, 0.0, asleep=2)
    found.apply_due(100.0)
    found.scale(1, 200.0, asleep=1)
    seen = found.observe(205.0, missing=False, zeroed=False)
    assert [one.state for one in seen.replicas or ()] == [ReplicaState.WAKING, ReplicaState.ASLEEP]
    assert (seen.desired, seen.asleep_desired, seen.ready, seen.pending, seen.waking, seen.asleep) == (1, 1, 0, 1, 1, 1)


def first_share(scenario: AutoscalingScenario, share: float) -> AutoscalingScenario:
    """Returns the first part of a scenario, with the requests that end in it."""
    seconds, load = share * scenario.seconds, scenario.load
    count = sum(arrival < seconds - 120.0 for arrival in load.arrivals)
    first = ArrivalTrace(load.arrivals[:count], load.prompts[:count], load.outputs[:count])
    return replace(scenario, seconds=seconds, load=first) if share < 1.0 else scenario


@pytest.mark.parametrize("seed", shortened([1, 2], [1]))
def test_a_sleep_tier_halves_the_cost_of_silence_with_more_requests_in_time(seed: int) -> None:
    cold = first_share(SCENARIOS["zero-cold"](seed, None), shortened(1.0, 0.15))
    tiered = with_sleep_tier(cold, SleepTier(3, wake_seconds=10.0), SleepTimings(10.0, 0.1))
    without, with_ = run_controller(cold, ScalingCore(cold.model)), run_controller(tiered, ScalingCore(tiered.model))
    assert with_.attainment > without.attainment + 0.05
    assert with_.cost < 0.7 * without.cost
    assert with_.lost == with_.abandoned == 0
    assert sum(map(len, with_.starts.values())) < sum(map(len, without.starts.values()))
