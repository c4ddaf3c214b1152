"""The missed share that the autoscaler's core predicts, compared with what fixed fleets miss.

The core sees everything and decides nothing. It predicts with the lengths, the cached share and the
speed that it learned. Rate and size are known, so that errors of the forecast do not count. One
fleet belongs to the simulator's plant, the other one to the outside plant, which shares no code
with it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import pytest

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import MixRequest, MixResult, ModelSpec, Observation, ScalingCore, ScalingPlan
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, latency_targets, replica_model
from fairlead_autoscaler.core.workload.mean_request import mean_request
from fairlead_bench.outside_plant.plant import Plant as OutsidePlant
from fairlead_bench.outside_plant.plant import PlantOptions, core_info
from fairlead_bench.outside_plant.scenario import FAMILIES, RequestList
from fairlead_bench.outside_plant.scenario import poisson_arrivals as outside_arrivals
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter, parse_model
from fairlead_sim.autoscaling.closed_loop import is_within_slo, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import reference_model, reference_pool, small_profile
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals

REQUESTS = 8_000
MINUTE_SECONDS = 60.0
WARMUP_SECONDS = 300.0
"""Requests of this time do not count: the fleet is empty at its beginning."""


class PredictingController:
    """A controller that predicts the missed share of one pool, and changes nothing.

    rate: requests per second of the whole fleet.
    """

    def __init__(self, model: ModelSpec, rate: float) -> None:
        self._core = ScalingCore(model)
        self._rate = rate
        self._predicted: list[float] = []

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns an empty plan."""
        model, state = self._core.model, self._core.state
        pool = model.pools[0]
        plan = self._core.step(observation).pools.get(pool.name)
        if observation.now > WARMUP_SECONDS and plan is not None and "level_replicas" in plan.inputs:
            request = mean_request(state.lengths, Role.SERVE)
            service = GroupService(request, latency_targets(model, Role.SERVE, request.prompt_tokens))
            replica = replica_model(pool, service, state.pools[pool.name].speed.slowdown())
            replicas = observation.pools[pool.name].ready
            self._predicted.append(replica.missed(ExpectedLoad(self._rate), replicas).total)
        return ScalingPlan({})

    def predicted(self) -> float:
        """Returns the mean over all ticks that count; there must be one."""
        return fmean(self._predicted)


@dataclass(frozen=True, slots=True)
class FixedFleet:
    """Ready replicas at a constant rate of requests per second of each of them."""

    replicas: int
    rate_each: float

    @property
    def rate(self) -> float:
        return self.replicas * self.rate_each

    @property
    def minutes(self) -> int:
        return math.ceil((WARMUP_SECONDS + REQUESTS / self.rate) / MINUTE_SECONDS)


def outside_fleet(fleet: FixedFleet) -> tuple[float, float]:
    """Returns what a fleet of the outside plant missed, and what the core predicted."""
    family = FAMILIES["long-prompts"]
    arrivals = outside_arrivals(random.Random("arrivals"), [fleet.rate] * fleet.minutes, MINUTE_SECONDS)
    prompts: list[int] = []
    answers: list[int] = []
    seed = 0
    while len(prompts) < len(arrivals):
        lengths = family(seed := seed + 1).requests
        prompts, answers = prompts + lengths.prompts, answers + lengths.answers
    scenario, size = family(1), fleet.replicas
    scenario = replace(
        scenario,
        seconds=fleet.minutes * MINUTE_SECONDS,
        requests=RequestList(arrivals, prompts[: len(arrivals)], answers[: len(arrivals)]),
        pools=(replace(scenario.pools[0], initial=size, minimum=size, maximum=size),),
        shocks=(),
    )
    model = parse_model(core_info(scenario))
    controller = PredictingController(model, fleet.rate)
    OutsidePlant(scenario, PlantOptions()).run(AutoscalerAdapter(controller, model, _no_solver))
    log = scenario.requests
    counted = [number for number, arrival in enumerate(log.arrivals) if arrival >= WARMUP_SECONDS]
    missed = [log.ttft[number] > scenario.ttft or log.gap[number] > scenario.gap for number in counted]
    return fmean(missed), controller.predicted()


def simulated_fleet(fleet: FixedFleet) -> tuple[float, float]:
    """Returns what a fleet of the simulator's plant missed, and what the core predicted."""
    setup = reference_pool(small_profile(), fleet.replicas)
    setup = replace(setup, facts=replace(setup.facts, minimum=fleet.replicas, maximum=fleet.replicas))
    load = poisson_arrivals([fleet.rate] * fleet.minutes, CHAT_LENGTHS, random.Random(1))
    ttft, itl = 3.0, 0.15
    model = reference_model([setup], ttft, itl)
    scenario = AutoscalingScenario("fixed", 1, fleet.minutes * MINUTE_SECONDS, model, (setup,), load)
    controller = PredictingController(model, fleet.rate)
    requests = run_controller(scenario, controller).request_table
    counted = [number for number, arrival in enumerate(requests.arrival) if arrival >= WARMUP_SECONDS]
    missed = [not is_within_slo(requests, number, ttft, itl) for number in counted]
    return fmean(missed), controller.predicted()


def _no_solver() -> Callable[[MixRequest], MixResult]:
    raise AssertionError("a model of one pool asks for no mix")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("miss_share", "fleet", "factor"),
    [(outside_fleet, FixedFleet(32, 0.528), 2.0), (simulated_fleet, FixedFleet(4, 1.25), 3.0)],
)
def test_shares_of_some_percent_are_predicted_within_a_factor(
    miss_share: Callable[[FixedFleet], tuple[float, float]], fleet: FixedFleet, factor: float
) -> None:
    measured, predicted = miss_share(fleet)
    assert 0.001 <= measured <= 0.1
    assert predicted > 0.0
    assert abs(math.log(predicted / measured)) <= math.log(factor)
