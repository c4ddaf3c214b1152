"""The loop of a controller and a plant: an observation and a plan per tick, and the outcome.

A plan's mix requests are answered with the next observation, as by a solver that takes less than a
tick. With wake hints, a request that finds no replica brings the next tick forward.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fairlead_autoscaler.core.types import MixRequest, MixResult, Observation, PoolPlan, ScalingPlan
from fairlead_sim.autoscalers.controller import Controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant, SimulatedPlant
from fairlead_sim.autoscaling.request_table import RequestTable

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class PlantSample:
    """One tick: ready and desired replicas, in the order of the scenario's pools."""

    now: float
    ready: tuple[int, ...]
    desired: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ControllerOutcome:
    """The outcome of one run.

    - attainment: share (0..1) of all requests with TTFT and TPOT within the SLO; abandoned and lost
      requests are not.
    - cost: in the currency of the pools.
    - changes_per_hour: changes of desired replicas; ``reversals_per_hour``: changes of direction.
    - starts: (ordered, ready) by pool, in seconds.
    """

    scenario: str
    requests: int
    attainment: float
    cost: float
    replica_hours: Mapping[str, float]
    abandoned: int
    lost: int
    changes_per_hour: float
    reversals_per_hour: float
    samples: tuple[PlantSample, ...]
    starts: Mapping[str, tuple[tuple[float, float], ...]]
    request_table: RequestTable
    ttft_seconds: float
    itl_seconds: float

    def attainment_between(self, begin: float, end: float) -> float | None:
        """Returns the attainment of the requests that arrived in [begin, end); None if there are
        none.
        """
        requests = [at for at, arrival in enumerate(self.request_table.arrival) if begin <= arrival < end]
        if not requests:
            return None
        return sum(
            [is_within_slo(self.request_table, at, self.ttft_seconds, self.itl_seconds) for at in requests]
        ) / len(requests)


def is_within_slo(requests: RequestTable, request: int, ttft_seconds: float, itl_seconds: float) -> bool:
    """Whether a request met both latency targets."""
    first, end = requests.first[request], requests.end[request]
    if first < 0.0 or end < 0.0 or first - requests.arrival[request] > ttft_seconds:
        return False
    gaps = requests.output[request] - 1
    return not gaps or end - first <= itl_seconds * gaps


def run_schedule(
    scenario: AutoscalingScenario,
    steps: Sequence[tuple[float, Mapping[str, int]]],
    plant: SimulatedPlant | None = None,
) -> ControllerOutcome:
    """Runs the scenario with a schedule of ready replicas, as if the future were known.

    - steps: (time, ready replicas by pool). Those of time 0 are there from the start.
    - plant: a new plant of this scenario with foresight; None: the aggregated one.
    """
    plant = plant or Plant(scenario, foresight=True)
    names = list(plant.pools)
    samples: list[PlantSample] = []
    for at, counts in steps:
        plant.run(at)
        for name, count in counts.items():
            plant.scale(name, count)
        ready = tuple([len(plant.pools[name].ready) for name in names])
        samples.append(PlantSample(at, ready, tuple([plant.pools[name].desired for name in names])))
    plant.run(scenario.seconds)
    plant.finish()
    return _controller_outcome(scenario, plant, samples)


def run_controller(
    scenario: AutoscalingScenario,
    controller: Controller,
    *,
    engine_model: EngineModelKind = EngineModelKind.AGGREGATED,
    plant: SimulatedPlant | None = None,
    solver: Callable[[MixRequest], MixResult] | None = None,
    hint_seconds: float | None = None,
) -> ControllerOutcome:
    """Runs the scenario under one controller.

    - plant: a new plant of this scenario; None: a ``Plant`` of ``engine_model``.
    - solver: answers the plan's mix requests; None: they stay open.
    - hint_seconds: delay from a request without a replica to the tick of its wake hint; None:
      gateways send no hints.
    """
    plant = plant or Plant(scenario, engine_model=engine_model)
    names = list(plant.pools)
    samples: list[PlantSample] = []
    now = 0.0
    mixes: dict[str, MixResult] = {}
    while now < scenario.seconds:
        now = min(scenario.seconds, now + scenario.model.interval_seconds, _hinted_tick(plant, now, hint_seconds))
        plant.run(now)
        plan = controller.step(replace(plant.observe(), mixes=mixes))
        mixes = {} if solver is None else {role: solver(mix_request) for role, mix_request in plan.asks.items()}
        ready = tuple([len(plant.pools[name].ready) for name in names])
        for name, pool_plan in plan.pools.items():
            plant.scale(name, pool_plan.replicas, pool_plan.asleep)
        samples.append(PlantSample(now, ready, tuple([plant.pools[name].desired for name in names])))
    plant.finish()
    return _controller_outcome(scenario, plant, samples)


def _hinted_tick(plant: SimulatedPlant, now: float, hint_seconds: float | None) -> float:
    """Returns the time of the tick that the next wake hint causes; infinity if none will."""
    if hint_seconds is None or any(pool.desired for pool in plant.pools.values()):
        return math.inf
    arrivals = plant.requests.arrival
    at = bisect_left(arrivals, now)
    return arrivals[at] + hint_seconds if at < len(arrivals) else math.inf


def _controller_outcome(
    scenario: AutoscalingScenario, plant: SimulatedPlant, samples: list[PlantSample]
) -> ControllerOutcome:
    table, model = plant.requests, scenario.model
    ttft = model.ttft_seconds or float("inf")
    itl = model.itl_seconds or float("inf")
    requests = len(scenario.load)
    attained = sum([is_within_slo(table, request, ttft, itl) for request in range(requests)])
    hours = {name: pool.replica_seconds / _HOUR for name, pool in plant.pools.items()}
    first = tuple([setup.initial for setup in scenario.pools])
    series = [first, *[sample.desired for sample in samples]]
    changes, reversals = 0, 0
    for desired in zip(*series, strict=True):
        steps = [after - before for before, after in pairwise(desired) if after != before]
        changes += len(steps)
        reversals += sum([(step > 0) != (next_step > 0) for step, next_step in pairwise(steps)])
    cost = sum([hours[setup.facts.name] * setup.facts.cost_per_hour for setup in scenario.pools])
    span = scenario.seconds / _HOUR
    return ControllerOutcome(
        scenario=scenario.name,
        requests=requests,
        attainment=attained / requests if requests else 1.0,
        cost=cost,
        replica_hours=hours,
        abandoned=table.abandoned,
        lost=table.lost,
        changes_per_hour=changes / span,
        reversals_per_hour=reversals / span,
        samples=tuple(samples),
        starts={name: tuple(pool.starts) for name, pool in plant.pools.items()},
        request_table=table,
        ttft_seconds=ttft,
        itl_seconds=itl,
    )


class ScheduleController:
    """A controller that follows ``steps`` (time, replicas by pool), in the order of time."""

    def __init__(self, steps: Sequence[tuple[float, Mapping[str, int]]]) -> None:
        self._steps = steps
        self._next = 0

    def step(self, observation: Observation) -> ScalingPlan:
        counts: Mapping[str, int] = {}
        while self._next < len(self._steps) and self._steps[self._next][0] <= observation.now:
            counts = {**counts, **self._steps[self._next][1]}
            self._next += 1
        return ScalingPlan(
            {pool: PoolPlan(count, "schedule", "the schedule says so") for pool, count in counts.items()}
        )
