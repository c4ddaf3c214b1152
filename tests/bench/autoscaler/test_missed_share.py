"""The missed share that the autoscaler's core predicts, compared with what fixed fleets miss.

- Measured: the share of requests that miss a latency target. No controller changes the fleet.
- Derived: the share that the core predicts at this rate and size, with the lengths, cached share
  and speed that it learned from watching.
- Corrected: the same with the factors that the core learned from counted misses.

The core watches and decides nothing. Rate and size are known, so that errors of the forecast do
not count. The fleets belong to the simulator's plant and to the outside plant, which shares no code
with it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import pytest

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import MixRequest, MixResult, ModelSpec, Observation, PoolPlan, ScalingCore, ScalingPlan
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections, scale_odds
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad
from fairlead_autoscaler.core.sizing.group_sizer import SHORT_SECONDS
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, latency_targets, replica_model
from fairlead_autoscaler.core.workload.mean_request import mean_request
from fairlead_bench.outside_plant.plant import Plant as OutsidePlant
from fairlead_bench.outside_plant.plant import PlantOptions, core_info
from fairlead_bench.outside_plant.scenario import FAMILIES, RequestList, Scenario, poisson_arrivals
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter, parse_model
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_testing.autoscaler.fixed_fleet import CASES, WARMUP_SECONDS, count_misses, fixed_fleet_scenario
from fairlead_testing.pytest_hooks.nightly import shortened

OUTSIDE, AGGREGATED = "outside", "aggregated"
_MINUTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PredictedShare:
    """Missed shares (0..1) of a fixed fleet, as the core predicts them: means over ticks.

    derived: by the step model, at the known rate.
    corrected: with the factors that the core learned from counted misses.
    budgeted: what the error budget compares with counted misses: by the step model, at the load
        that the core believes, spread by the error of its forecast.
    sized: the same with the factors, as sizing reckons.
    learning: share of the ticks that taught factors. Where the core wants more replicas, none do.
    """

    derived: float
    corrected: float
    budgeted: float
    sized: float
    learning: float


class PredictingController:
    """A controller whose core sees everything and decides nothing. Its model has one pool.

    rate: requests per second of the whole fleet.
    since: the time from which on predictions count.
    """

    def __init__(self, model: ModelSpec, rate: float, since: float) -> None:
        self._core = ScalingCore(model)
        self._rate, self._since = rate, since
        self._ticks: list[PredictedShare] = []

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns an empty plan."""
        pool = self._core.model.pools[0]
        plan = self._core.step(observation).pools.get(pool.name)
        if observation.now > self._since and plan is not None and "level_replicas" in plan.inputs:
            replicas = observation.pools[pool.name].ready
            self._ticks.append(self._predict(observation.now, plan, replicas))
        return ScalingPlan({})

    def predicted(self) -> PredictedShare:
        """Returns the means over all ticks that count; there must be one."""
        shares = self._ticks
        return PredictedShare(
            fmean([share.derived for share in shares]),
            fmean([share.corrected for share in shares]),
            fmean([share.budgeted for share in shares]),
            fmean([share.sized for share in shares]),
            fmean([share.learning for share in shares]),
        )

    def _predict(self, now: float, plan: PoolPlan, replicas: int) -> PredictedShare:
        state, settings, model = self._core.state, self._core.settings, self._core.model
        pool = model.pools[0]
        memory = state.groups[Role.SERVE.value]
        request = mean_request(state.lengths, Role.SERVE)
        targets = latency_targets(model, Role.SERVE, request.prompt_tokens)
        slowdown = state.pools[pool.name].speed.slowdown()
        replica = replica_model(pool, GroupService(request, targets), slowdown)
        level = (plan.inputs["level_replicas"].value or 0.0) * (
            plan.inputs["capacity_requests_per_second"].value or 0.0
        )
        corrections = memory.budget.corrections(settings)
        known = replica.missed(ExpectedLoad(self._rate), replicas)
        believed = known
        if level > 0.0:
            believed = replica.missed(ExpectedLoad(level, memory.deviation or 0.0), replicas)
        is_learning = now - memory.short_at > SHORT_SECONDS
        return PredictedShare(
            known.total,
            _corrected(known, corrections),
            believed.total,
            _corrected(believed, corrections),
            float(is_learning),
        )


def _corrected(missed: MissedShares, corrections: MissCorrections) -> float:
    """Returns the missed share with the learned factors, as sizing applies them."""
    first_tokens = sum(
        scale_odds(share, corrections.first_tokens) for share in (missed.prompts, missed.batch, missed.memory)
    )
    return min(1.0, first_tokens + scale_odds(missed.gaps, corrections.gaps))


@dataclass(frozen=True, slots=True)
class FixedFleetCase:
    """A fleet of constant size at a constant rate of requests per second of each replica."""

    plant: str
    traffic: str
    replicas: int
    rate: float


@dataclass(frozen=True, slots=True)
class FleetComparison:
    """The share of requests of one fleet that missed a target, and the core's prediction of it."""

    measured: float
    predicted: PredictedShare


def compare_outside_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what a fleet of the outside plant missed, and what the core predicted.

    requests: those that count, about.
    """
    scenario = outside_fleet_scenario(case, requests=requests, seed=seed)
    model = parse_model(core_info(scenario))
    controller = PredictingController(model, case.rate * case.replicas, WARMUP_SECONDS)
    OutsidePlant(scenario, PlantOptions()).run(AutoscalerAdapter(controller, model, _no_solver))
    log = scenario.requests
    counted = [number for number, arrival in enumerate(log.arrivals) if arrival >= WARMUP_SECONDS]
    missed = sum(log.ttft[number] > scenario.ttft or log.gap[number] > scenario.gap for number in counted)
    return FleetComparison(missed / len(counted), controller.predicted())


def outside_fleet_scenario(case: FixedFleetCase, *, requests: int, seed: int) -> Scenario:
    """Returns a scenario of ready replicas that no controller can change."""
    rate = case.rate * case.replicas
    minutes = math.ceil((WARMUP_SECONDS + requests / rate) / _MINUTE_SECONDS)
    draws = random.Random(f"{case.traffic}/{case.replicas}/{seed}/arrivals")
    arrivals = poisson_arrivals(draws, [rate] * minutes, _MINUTE_SECONDS)
    family = FAMILIES[case.traffic]
    prompts: list[int] = []
    answers: list[int] = []
    number = seed
    while len(prompts) < len(arrivals):
        lengths = family(number).requests
        prompts, answers, number = prompts + lengths.prompts, answers + lengths.answers, number + 1
    scenario = family(seed)
    size = case.replicas
    return replace(
        scenario,
        seconds=minutes * _MINUTE_SECONDS,
        requests=RequestList(arrivals, prompts[: len(arrivals)], answers[: len(arrivals)]),
        pools=(replace(scenario.pools[0], initial=size, minimum=size, maximum=size),),
        shocks=(),
    )


def _no_solver() -> Callable[[MixRequest], MixResult]:
    raise AssertionError("a model of one pool asks for no mix")


def compare_simulated_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what a fleet of a simulated plant missed, and what the core predicted.

    requests: those that count, about.
    """
    rate = case.rate * case.replicas
    scenario = fixed_fleet_scenario(CASES[case.traffic], case.replicas, rate, requests=requests, seed=seed)
    controller = PredictingController(scenario.model, rate, WARMUP_SECONDS)
    outcome = run_controller(scenario, controller)
    return FleetComparison(count_misses(outcome.request_table, scenario).share, controller.predicted())


def is_within(predicted: float, measured: float, factor: float) -> bool:
    return predicted > 0.0 and abs(math.log(predicted / measured)) <= math.log(factor)


def compared(case: FixedFleetCase, requests: int = 8_000) -> FleetComparison:
    compare = compare_outside_fleet if case.plant == OUTSIDE else compare_simulated_fleet
    found = compare(case, requests=requests, seed=1)
    assert 0.001 <= found.measured <= 0.1
    return found


FLEETS = [
    (FixedFleetCase(OUTSIDE, "long-prompts", 32, 0.528), 2.0),
    (FixedFleetCase(AGGREGATED, "S chat", 4, 1.335), 3.0),
]


@pytest.mark.parametrize(("case", "factor"), shortened(FLEETS, FLEETS[:1]))
def test_shares_of_some_percent_are_predicted_within_a_factor(case: FixedFleetCase, factor: float) -> None:
    found = compared(case, requests=shortened(8_000, 4_000))
    assert is_within(found.predicted.derived, found.measured, factor), found


@pytest.mark.nightly
def test_factors_mend_a_small_fleet_that_is_predicted_to_miss_too_much() -> None:
    found = compared(FixedFleetCase(AGGREGATED, "L chat", 4, 5.322), requests=20_000)
    assert found.predicted.learning > 0.8
    assert abs(found.predicted.corrected - found.measured) < abs(found.predicted.derived - found.measured)
    assert is_within(found.predicted.corrected, found.measured, 2.0), found


def test_a_core_that_wants_more_replicas_learns_no_factor() -> None:
    found = compared(FixedFleetCase(AGGREGATED, "S chat", 16, 1.43), requests=shortened(8_000, 4_000))
    assert found.predicted.learning < 0.1
    assert found.predicted.corrected == pytest.approx(found.predicted.derived)
    assert found.predicted.sized > found.predicted.derived


def test_a_controller_that_predicts_changes_nothing() -> None:
    scenario = fixed_fleet_scenario(CASES["S chat"], 3, 2.0, requests=300)
    pools = tuple([replace(pool, facts=replace(pool.facts, maximum=50)) for pool in scenario.pools])
    controller = PredictingController(scenario.model, 2.0, 300.0)
    outcome = run_controller(replace(scenario, pools=pools), controller)
    assert {sample.desired for sample in outcome.samples} == {(3,)}
