"""The missed share that the autoscaler's core predicts, compared with fixed fleets of four plants.

For each plant, traffic, number of replicas and rate:

- Measured: the share of requests that miss a latency target. No controller changes the fleet.
- Derived: the share that the core predicts at this rate and size, with the lengths, cached share
  and speed that it learned from watching.
- Corrected: the same with the factors that the core learned from counted misses.

Fleets that miss 0.1 % to 10 % are judged.

The fixed fleets of the comparison, and the result of each.

Fixed fleets of the outside plant, which shares no code with the simulator.

The lengths are those of a family whose lengths do not change with time. The rate is constant.

A core that watches a fleet of constant size, and the missed share that it predicts for it.

The core learns lengths, cached share, speed and its factors from metrics, as it always does. The
number of replicas and the rate are known, so that errors of the forecast do not count.

Fixed fleets of the simulator's plants: aggregated, token by token, and the fleet simulator.
"""

import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Final

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import MixRequest, MixResult, ModelSpec, Observation, PoolPlan, ScalingCore, ScalingPlan
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections, scale_odds
from fairlead_autoscaler.core.performance.missed_share import MissedShares, missed_shares
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad, ReplicaModel
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.core.sizing.group_sizer import SHORT_SECONDS
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, latency_targets, pool_profile, replica_model
from fairlead_autoscaler.core.workload.mean_request import mean_request
from fairlead_bench.autoscaler.benchmark import geometric_mean
from fairlead_bench.outside_plant.plant import Plant as OutsidePlant
from fairlead_bench.outside_plant.plant import PlantOptions, core_info
from fairlead_bench.outside_plant.scenario import FAMILIES, RequestList, Scenario, poisson_arrivals
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, parse_options, write_results
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter, parse_model
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.fixed_fleet import (
    CASES,
    WARMUP_SECONDS,
    CapacityCase,
    count_misses,
    fixed_fleet_scenario,
)
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant, SimulatedPlant
from fairlead_sim.autoscaling.routing import LoadPolicy

_RATE_FACTORS: Final = 0.25, 2.0
"""The range in which the rate of a share is searched, as factors on the known rate."""
_SEARCH_STEPS = 40


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


@dataclass(frozen=True, slots=True)
class _TickPrediction:
    replica: ReplicaModel
    slowdown: float
    share: PredictedShare


class PredictingController:
    """A controller whose core sees everything and decides nothing. Its model has one pool.

    rate: requests per second of the whole fleet.
    since: the time from which on predictions count.
    """

    def __init__(self, model: ModelSpec, rate: float, since: float) -> None:
        self._core = ScalingCore(model)
        self._rate, self._since = rate, since
        self._ticks: list[_TickPrediction] = []
        self._replicas = 0

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns an empty plan."""
        pool = self._core.model.pools[0]
        plan = self._core.step(observation).pools.get(pool.name)
        if observation.now > self._since and plan is not None and "level_replicas" in plan.inputs:
            self._replicas = observation.pools[pool.name].ready
            self._ticks.append(self._predict(observation.now, plan))
        return ScalingPlan({})

    def predicted(self) -> PredictedShare:
        """Returns the means over all ticks that count; there must be one."""
        shares = [tick.share for tick in self._ticks]
        return PredictedShare(
            fmean([share.derived for share in shares]),
            fmean([share.corrected for share in shares]),
            fmean([share.budgeted for share in shares]),
            fmean([share.sized for share in shares]),
            fmean([share.learning for share in shares]),
        )

    def rate_of(self, share: float) -> float:
        """Returns the rate at which the step model predicts ``share``, divided by the known rate.

        The workload is the mean over all ticks. Near saturation a small error of the rate is a
        large one of the share.
        """
        step, request, targets = self._mean_workload()
        low, high = _RATE_FACTORS
        for _ in range(_SEARCH_STEPS):
            middle = math.sqrt(low * high)
            rate = middle * self._rate / self._replicas
            if missed_shares(step, request, targets, rate, self._replicas).total > share:
                high = middle
            else:
                low = middle
        return low

    def _predict(self, now: float, plan: PoolPlan) -> _TickPrediction:
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
        known = replica.missed(ExpectedLoad(self._rate), self._replicas)
        believed = known
        if level > 0.0:
            believed = replica.missed(ExpectedLoad(level, memory.deviation or 0.0), self._replicas)
        is_learning = now - memory.short_at > SHORT_SECONDS
        share = PredictedShare(
            known.total,
            _corrected(known, corrections),
            believed.total,
            _corrected(believed, corrections),
            float(is_learning),
        )
        return _TickPrediction(replica, slowdown, share)

    def _mean_workload(self) -> tuple[StepModel, MeanRequest, LatencyTargets]:
        requests = [tick.replica.request for tick in self._ticks]
        request = MeanRequest(
            fmean([request.prompt_tokens for request in requests]),
            fmean([request.output_tokens for request in requests]),
            fmean([request.cached_share for request in requests]),
            fmean([request.prompt_variability for request in requests]),
        )
        slowdown = fmean([tick.slowdown for tick in self._ticks])
        step = StepModel.from_profile(pool_profile(self._core.model.pools[0]), slowdown)
        return step, request, self._ticks[-1].replica.targets


def _corrected(missed: MissedShares, corrections: MissCorrections) -> float:
    """Returns the missed share with the learned factors, as sizing applies them."""
    first_tokens = sum(
        scale_odds(share, corrections.first_tokens) for share in (missed.prompts, missed.batch, missed.memory)
    )
    return min(1.0, first_tokens + scale_odds(missed.gaps, corrections.gaps))


RATES_FILE = Path(__file__).with_name("fleet_rates.json")
MIN_SHARE, MAX_SHARE = 0.001, 0.1
"""Fleets that miss less or more are shown and not judged."""
ALLOWED_FACTOR: Final = 2.0


@dataclass(frozen=True, slots=True)
class FixedFleetCase:
    """A fleet of constant size at a constant rate.

    rate: requests per second of each replica.
    """

    plant: str
    traffic: str
    replicas: int
    rate: float

    def describe(self) -> str:
        """Returns the case as rows name it."""
        return f"{self.plant}, {self.traffic}, {self.replicas} replicas at {self.rate:g}/s each"


@dataclass(frozen=True, slots=True)
class FleetComparison:
    """The misses of one fleet, and the core's prediction of them.

    requests: those that count.
    late, slow: shares (0..1) that missed the TTFT target, and the TPOT target only.
    rate_ratio: the rate at which the step model predicts the measured share, divided by the true
        one.
    """

    case: FixedFleetCase
    requests: int
    late: float
    slow: float
    predicted: PredictedShare
    rate_ratio: float

    @property
    def measured(self) -> float:
        """The share (0..1) of requests that missed a target."""
        return self.late + self.slow

    @property
    def is_judged(self) -> bool:
        """Whether the measured share lies in the judged range."""
        return MIN_SHARE <= self.measured <= MAX_SHARE


def is_within(predicted: float, measured: float, factor: float = ALLOWED_FACTOR) -> bool:
    """Whether two shares differ by no more than the factor."""
    return predicted > 0.0 and measured > 0.0 and abs(math.log(predicted / measured)) <= math.log(factor) + 1e-9


def load_cases(
    plants: Sequence[str], replicas: Sequence[int], rates: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
) -> list[FixedFleetCase]:
    """Returns the cases of these plants and sizes.

    rates: by plant, traffic and number of replicas, as in ``fleet_rates.json``.
    """
    return [
        FixedFleetCase(plant, traffic, int(size), rate)
        for plant in plants
        for traffic, sizes in rates[plant].items()
        for size, of_size in sizes.items()
        if int(size) in replicas
        for rate in of_size
    ]


def committed_rates() -> Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]:
    """Returns the committed rates by plant, traffic and number of replicas."""
    rates: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = json.loads(
        RATES_FILE.read_text(encoding="utf-8")
    )["rates"]
    return rates


OUTSIDE = "outside"
_MINUTE_SECONDS = 60.0


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
    late = sum(log.ttft[number] > scenario.ttft for number in counted)
    slow = sum(log.ttft[number] <= scenario.ttft and log.gap[number] > scenario.gap for number in counted)
    count = len(counted)
    rate_ratio = controller.rate_of((late + slow) / count)
    return FleetComparison(case, count, late / count, slow / count, controller.predicted(), rate_ratio)


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


AGGREGATED, TOKEN_LEVEL, FLEET_SIMULATOR = "aggregated", "token-level", "fleet simulator"


def compare_simulated_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what a fleet of a simulated plant missed, and what the core predicted.

    requests: those that count, about.
    """
    rate = case.rate * case.replicas
    scenario = fixed_fleet_scenario(_traffic(case.traffic), case.replicas, rate, requests=requests, seed=seed)
    controller = PredictingController(scenario.model, rate, WARMUP_SECONDS)
    outcome = run_controller(scenario, controller, plant=_plant(case.plant, scenario))
    missed = count_misses(outcome.request_table, scenario)
    return FleetComparison(
        case,
        missed.requests,
        missed.late_share,
        missed.slow_share,
        controller.predicted(),
        controller.rate_of(missed.share),
    )


def _traffic(name: str) -> CapacityCase:
    """Returns the case of a name like ``S chat`` or ``S chat by prompt-work``."""
    case, _, policy = name.partition(" by ")
    if not policy:
        return CASES[case]
    return replace(CASES[case], load_policy=LoadPolicy[policy.upper().replace("-", "_")])


def _plant(name: str, scenario: AutoscalingScenario) -> SimulatedPlant:
    if name == FLEET_SIMULATOR:
        return FleetPlant(scenario)
    kind = {AGGREGATED: EngineModelKind.AGGREGATED, TOKEN_LEVEL: EngineModelKind.TOKEN_LEVEL}[name]
    return Plant(scenario, engine_model=kind)


NAME: Final = "autoscaler-missed-share"
PLANTS: Final = (AGGREGATED, TOKEN_LEVEL, OUTSIDE, FLEET_SIMULATOR)
REPLICAS: Final = (4, 8, 16, 32, 64)
REQUESTS: Final = 30_000
"""A missed share of 0.1 % is 30 requests of these."""
_JUDGED: Final[Mapping[str, Callable[[PredictedShare], float]]] = {
    "derived": lambda predicted: predicted.derived,
    "corrected": lambda predicted: predicted.corrected,
}
_INFORMING: Final[Mapping[str, Callable[[PredictedShare], float]]] = {
    **_JUDGED,
    "budgeted": lambda predicted: predicted.budgeted,
    "sized": lambda predicted: predicted.sized,
}


def compare_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what the fleet of a case missed, and what the core predicted."""
    compare = compare_outside_fleet if case.plant == OUTSIDE else compare_simulated_fleet
    return compare(case, requests=requests, seed=seed)


def case_rows(comparisons: Sequence[FleetComparison]) -> Iterator[ResultRow]:
    """Yields two rows for each fleet: predicted ÷ measured share, without and with factors."""
    for comparison in comparisons:
        for kind, share in _JUDGED.items():
            metric = f"{comparison.case.describe()}: missed share, {kind} ÷ measured"
            yield NO_GOALS.ratio(metric, "share", share(comparison.predicted), "measured", comparison.measured or None)


def summary_rows(comparisons: Sequence[FleetComparison]) -> Iterator[ResultRow]:
    """Yields the summary of each plant, with goals.

    Only judged fleets count.
    """
    goals = load_goals(NAME)
    for plant in dict.fromkeys(comparison.case.plant for comparison in comparisons):
        judged = [comparison for comparison in comparisons if comparison.case.plant == plant and comparison.is_judged]
        yield goals.value(f"{plant}: fleets judged", "fleets", float(len(judged)))
        if not judged:
            continue
        for kind, share in _JUDGED.items():
            for factor in (2, 3):
                within = [is_within(share(one.predicted), one.measured, factor) for one in judged]
                metric = f"{plant}: fleets whose missed share, {kind}, is within a factor of {factor}"
                yield goals.value(metric, "of 1", sum(within) / len(within))
        for kind, share in _INFORMING.items():
            ratios = [share(one.predicted) / one.measured for one in judged]
            metric = f"{plant}: missed share, {kind} ÷ measured, geometric mean"
            yield goals.value(metric, "ratio", geometric_mean(ratios))
        errors = [abs(math.log(one.rate_ratio)) for one in judged]
        metric = f"{plant}: error of the rate at which the measured share is predicted, median"
        yield goals.value(metric, "of 1", median(errors))


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    given = parse_options(
        NAME,
        __doc__,
        arguments,
        plants=list(PLANTS),
        replicas=list(REPLICAS),
        requests=(REQUESTS, "that count in each run"),
        seed=1,
        jobs=min(os.cpu_count() or 1, 2),
    )
    cases = load_cases(given.plants, given.replicas, committed_rates())
    comparisons = []
    with ProcessPoolExecutor(max(1, given.jobs)) as pool:
        for one in pool.map(partial(compare_fleet, requests=given.requests, seed=given.seed), cases):
            comparisons.append(one)
            print(_describe(one), file=sys.stderr, flush=True)
    rows = [*case_rows(comparisons), *summary_rows(comparisons)]
    more = {
        "cases": [
            {**asdict(comparison), "measured": comparison.measured, "is_judged": comparison.is_judged}
            for comparison in comparisons
        ]
    }
    write_results(NAME, rows, seed=given.seed, file=given.out, more=more)
    return 0


def _describe(one: FleetComparison) -> str:
    predicted, measured = one.predicted, max(one.measured, 1e-9)
    return (
        f"{one.case.describe():60} measured {one.measured:7.3%} "
        f"derived {predicted.derived:7.3%} = {predicted.derived / measured:5.2f} × "
        f"corrected {predicted.corrected:7.3%} = {predicted.corrected / measured:5.2f} × "
        f"rate {one.rate_ratio:.3f} learning {predicted.learning:.0%}"
    )
