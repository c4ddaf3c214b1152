"""The upper bound of the offline optimum on the fleet plant."""

from random import Random

import pytest

from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import run_schedule
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import scale_steps, scaled_schedule_bound
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals
from fairlead_testing.pytest_hooks.nightly import shortened

MINUTES = shortened((2, 3, 2), (1, 2, 1))
"""Minutes with few requests, with twice as many, and with few again."""
STEPS = [(0.0, {"S": 4}), (60.0 * MINUTES[0], {"S": 8}), (60.0 * sum(MINUTES[:2]), {"S": 3})]


def scenario() -> AutoscalingScenario:
    load = poisson_arrivals([2.0] * MINUTES[0] + [4.0] * MINUTES[1] + [2.0] * MINUTES[2], CHAT_LENGTHS, Random(1))
    setup = reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=StartupDistribution(10.0, 0.0))
    return AutoscalingScenario(
        "made", 1, 60.0 * sum(MINUTES), reference_pools.reference_model([setup], 3.0, 0.15), (setup,), load
    )


def test_it_attains_the_target_for_less_than_the_schedule_it_scales() -> None:
    made = scenario()
    whole = run_schedule(made, STEPS, FleetPlant(made, foresight=True))
    bound = scaled_schedule_bound(made, STEPS, runs=shortened(6, 3))
    assert whole.attainment >= 0.99
    assert bound.attainment >= 0.99
    assert bound.cost < 0.8 * whole.cost
    again = run_schedule(made, bound.steps, FleetPlant(made, foresight=True))
    assert (again.attainment, again.cost) == (bound.attainment, bound.cost)


def test_lower_counts_for_a_part_of_the_time_save_more_than_whole_factors() -> None:
    """Two steps of ten minutes: one factor for both leaves too much in the first."""
    setup = reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=StartupDistribution(10.0, 0.0))
    load = poisson_arrivals([0.5] * 10 + [2.0] * 10, CHAT_LENGTHS, Random(1))
    model = reference_pools.reference_model([setup], 3.0, 0.15)
    made = AutoscalingScenario("made", 1, 1_200.0, model, (setup,), load)
    steps = [(0.0, {"S": 3}), (600.0, {"S": 3})]
    bound = scaled_schedule_bound(made, steps, runs=10)
    assert bound.attainment >= 0.99
    (_, first), (_, second) = bound.steps
    assert first["S"] < second["S"]


def test_a_schedule_that_is_too_small_is_raised() -> None:
    made = scenario()
    few = [(at, {"S": max(1, counts["S"] // 3)}) for at, counts in STEPS]
    assert run_schedule(made, few, FleetPlant(made, foresight=True)).attainment < 0.9
    bound = scaled_schedule_bound(made, few, runs=shortened(6, 4))
    assert bound.attainment >= 0.99


def test_without_a_schedule_that_attains_the_target_the_best_one_is_returned() -> None:
    made = scenario()
    bound = scaled_schedule_bound(made, [(0.0, {"S": 1})], target=1.1, runs=3)
    single = run_schedule(made, [(0.0, {"S": 1})], FleetPlant(made, foresight=True))
    assert bound.attainment > single.attainment


@pytest.mark.parametrize(
    ("factor", "counts"), [(1.0, [4, 8, 3]), (0.5, [2, 4, 2]), (0.1, [1, 1, 1]), (9.0, [36, 60, 27])]
)
def test_counts_are_rounded_within_the_bounds_of_the_pool(factor: float, counts: list[int]) -> None:
    assert [step["S"] for _, step in scale_steps(scenario(), STEPS, factor)] == counts
