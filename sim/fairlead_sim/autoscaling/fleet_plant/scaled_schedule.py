"""An upper bound of the offline optimum on the fleet plant, from the aggregated plant's schedule.

``offline_optimum`` needs hundreds of runs, too many for this plant. Its schedule follows the load,
whatever the engines can do. So this module scales it: all counts are multiplied by one factor, the
least that attains the target here. Caches and routing lower the factor, or raise it.

The result is a schedule that attains the target. A search on this plant would find a cheaper one,
so that cost ÷ this cost is a lower bound of cost ÷ optimum.
"""

from collections.abc import Callable, Mapping, Sequence
from math import floor

from fairlead_sim.autoscaling.closed_loop import SimulatedPlant, run_schedule
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario

_LOW_FACTOR, _HIGH_FACTOR = 0.4, 2.5
DEFAULT_RUNS = 8

ScheduleSteps = Sequence[tuple[float, Mapping[str, int]]]


def scaled_schedule_bound(
    scenario: AutoscalingScenario,
    steps: ScheduleSteps,
    *,
    target: float = 0.99,
    runs: int = DEFAULT_RUNS,
    make_plant: Callable[[AutoscalingScenario], SimulatedPlant] | None = None,
) -> OptimumSchedule:
    """Returns the cheapest multiple of a schedule that attains ``target``, a share (0..1).

    If no multiple attains the target, the one with the highest attainment is returned.

    - steps: the schedule of the aggregated plant (time, ready replicas by pool).
    - runs: the number of runs, which halve the interval of the factor.
    - make_plant: returns a new plant with foresight; None: a ``FleetPlant``.
    """
    best: OptimumSchedule | None = None
    low, high = _LOW_FACTOR, _HIGH_FACTOR
    factor = 1.0
    for _ in range(max(1, runs)):
        scaled = scale_steps(scenario, steps, factor)
        plant = FleetPlant(scenario, foresight=True) if make_plant is None else make_plant(scenario)
        outcome = run_schedule(scenario, scaled, plant)
        schedule = OptimumSchedule(tuple(scaled), outcome.attainment, outcome.cost)
        if best is None or schedule.is_better_than(best, target):
            best = schedule
        if outcome.attainment >= target:
            high = factor
        else:
            low = factor
        factor = (low * high) ** 0.5
    assert best is not None
    return best


def scale_steps(
    scenario: AutoscalingScenario, steps: ScheduleSteps, factor: float
) -> list[tuple[float, dict[str, int]]]:
    """Returns the schedule with all counts multiplied and rounded, within the pools' bounds."""
    bounds = {setup.facts.name: (setup.facts.minimum, setup.facts.maximum) for setup in scenario.pools}
    scaled: list[tuple[float, dict[str, int]]] = []
    for at, counts in steps:
        now: dict[str, int] = {}
        for pool, count in counts.items():
            minimum, maximum = bounds[pool]
            now[pool] = max(minimum, min(maximum, floor(factor * count + 0.5)))
        scaled.append((at, now))
    return scaled
