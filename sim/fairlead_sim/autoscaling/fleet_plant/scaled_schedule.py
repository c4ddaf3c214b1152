"""An upper bound of the offline optimum on the fleet plant, from the aggregated plant's schedule.

``offline_optimum`` needs hundreds of runs, too many for this plant. Its schedule follows the load,
whatever the engines can do. So this module changes it in two ways, with a few runs:

1. **Scaling.** All counts are multiplied by one factor, the least that attains the target here.
   Caches and routing lower or raise it.
2. **Mixing.** Counts are whole numbers, so the next lower factor may save much and miss the target
   by little. The lower counts apply in those stretches of time in which they save most per miss,
   as many as the target allows.

The result is a schedule that attains the target. A search on this plant would find a cheaper one,
so that cost ÷ this cost is a lower bound of cost ÷ optimum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor

from fairlead_sim.autoscaling.closed_loop import is_within_slo, run_schedule
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario, SimulatedPlant

_LOW_FACTOR, _HIGH_FACTOR = 0.4, 2.5
_SAME_FACTORS = 1.01
_STRETCH_SECONDS = 600.0
DEFAULT_RUNS = 12

ScheduleSteps = Sequence[tuple[float, Mapping[str, int]]]
_Steps = tuple[tuple[float, dict[str, int]], ...]


def scaled_schedule_bound(
    scenario: AutoscalingScenario,
    steps: ScheduleSteps,
    *,
    target: float = 0.99,
    runs: int = DEFAULT_RUNS,
    make_plant: Callable[[AutoscalingScenario], SimulatedPlant] | None = None,
) -> OptimumSchedule:
    """Returns the cheapest scaled or mixed schedule found that attains ``target``, a share (0..1).

    If none attains the target, the one with the highest attainment is returned.

    - steps: the schedule of the aggregated plant (time, ready replicas by pool).
    - runs: the most runs of the plant.
    - make_plant: returns a new plant with foresight; None: a ``FleetPlant``.
    """
    return _ScaledSearch(scenario, steps, target, runs, make_plant).run()


def scale_steps(scenario: AutoscalingScenario, steps: ScheduleSteps, factor: float) -> _Steps:
    """Returns the schedule with all counts multiplied and rounded, within the pools' bounds."""
    bounds = {setup.facts.name: (setup.facts.minimum, setup.facts.maximum) for setup in scenario.pools}
    scaled: list[tuple[float, dict[str, int]]] = []
    for at, counts in steps:
        now: dict[str, int] = {}
        for pool, count in counts.items():
            minimum, maximum = bounds[pool]
            now[pool] = max(minimum, min(maximum, floor(factor * count + 0.5)))
        scaled.append((at, now))
    return tuple(scaled)


@dataclass(frozen=True, slots=True)
class _MeasuredSchedule:
    """A schedule, its outcome, and its misses by stretch of arrival."""

    schedule: OptimumSchedule
    misses: list[int]


class _ScaledSearch:
    """One search: the best schedule so far, and the runs that are left."""

    def __init__(
        self,
        scenario: AutoscalingScenario,
        steps: ScheduleSteps,
        target: float,
        runs: int,
        make_plant: Callable[[AutoscalingScenario], SimulatedPlant] | None,
    ) -> None:
        self._scenario = scenario
        self._steps = steps
        self._target = target
        self._runs_left = max(1, runs)
        self._make_plant = make_plant
        self._stretches = max(1, -int(-scenario.seconds // _STRETCH_SECONDS))
        self._measured: dict[str, _MeasuredSchedule] = {}

    def run(self) -> OptimumSchedule:
        low, high = _LOW_FACTOR, _HIGH_FACTOR
        factor, failed = 1.0, scale_steps(self._scenario, self._steps, low)
        best: _MeasuredSchedule | None = None
        while high > low * _SAME_FACTORS and self._runs_left:
            scaled = scale_steps(self._scenario, self._steps, factor)
            measured = self._measure(scaled)
            if best is None or measured.schedule.is_better_than(best.schedule, self._target):
                best = measured
            if measured.schedule.attainment >= self._target:
                high = factor
            else:
                low, failed = factor, scaled
            factor = (low * high) ** 0.5
        assert best is not None
        if best.schedule.attainment < self._target or not self._runs_left:
            return best.schedule
        return self._mix(best, self._measure(failed))

    def _measure(self, steps: _Steps) -> _MeasuredSchedule:
        """Returns the outcome of a schedule; a known schedule is not run again."""
        known = self._measured.get(repr(steps))
        if known is not None:
            return known
        self._runs_left -= 1
        scenario = self._scenario
        plant = FleetPlant(scenario, foresight=True) if self._make_plant is None else self._make_plant(scenario)
        outcome = run_schedule(scenario, steps, plant)
        table, misses = outcome.request_table, [0] * self._stretches
        for request, at in enumerate(table.arrival):
            if not is_within_slo(table, request, outcome.ttft_seconds, outcome.itl_seconds):
                misses[min(self._stretches - 1, int(at / _STRETCH_SECONDS))] += 1
        measured = _MeasuredSchedule(OptimumSchedule(steps, outcome.attainment, outcome.cost), misses)
        self._measured[repr(steps)] = measured
        return measured

    def _mix(self, enough: _MeasuredSchedule, fewer: _MeasuredSchedule) -> OptimumSchedule:
        """Returns the best mix of a schedule that attains the target and one that does not."""
        best, budget = enough.schedule, (1.0 - self._target) * len(self._scenario.load)
        high, low = self._counts_by_stretch(enough.schedule.steps), self._counts_by_stretch(fewer.schedule.steps)
        saved = [self._cost(one) - self._cost(other) for one, other in zip(high, low, strict=True)]
        further = [max(0, other - one) for one, other in zip(enough.misses, fewer.misses, strict=True)]
        worth = [stretch for stretch in range(self._stretches) if saved[stretch] > 0.0]
        order = sorted(worth, key=lambda one: (further[one] + 1) / saved[one])
        left, first_guess = budget - sum(enough.misses), 0
        for stretch in order:
            left -= further[stretch]
            first_guess += left >= 0
        attaining, missing = 0, len(order) + 1
        chosen = max(1, first_guess)
        while missing - attaining > 1 and self._runs_left:
            taken = frozenset(order[:chosen])
            mixed = [low[index] if index in taken else high[index] for index in range(self._stretches)]
            found = self._measure(tuple([step for part in mixed for step in part])).schedule
            if found.is_better_than(best, self._target):
                best = found
            if found.attainment >= self._target:
                attaining = chosen
            else:
                missing = chosen
            chosen = (attaining + missing) // 2
        return best

    def _counts_by_stretch(self, steps: ScheduleSteps) -> list[_Steps]:
        """Returns the complete counts of each stretch, from its begin on."""
        parts: list[list[tuple[float, dict[str, int]]]] = [[] for _ in range(self._stretches)]
        now = {setup.facts.name: setup.initial for setup in self._scenario.pools}
        at = 0
        for stretch, part in enumerate(parts):
            begin = stretch * _STRETCH_SECONDS
            while at < len(steps) and steps[at][0] <= begin:
                now = {**now, **steps[at][1]}
                at += 1
            part.append((begin, now))
            while at < len(steps) and steps[at][0] < begin + _STRETCH_SECONDS:
                now = {**now, **steps[at][1]}
                part.append((steps[at][0], now))
                at += 1
        return [tuple(part) for part in parts]

    def _cost(self, part: _Steps) -> float:
        """Returns the cost of the counts of one stretch, without starts."""
        prices = {setup.facts.name: setup.facts.cost_per_hour for setup in self._scenario.pools}
        ends = [*[at for at, _ in part], part[0][0] + _STRETCH_SECONDS]
        return sum(
            [
                (end - begin) * prices[pool] * count
                for (begin, end), (_, counts) in zip(pairwise(ends), part, strict=True)
                for pool, count in counts.items()
            ]
        )
