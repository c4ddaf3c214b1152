"""Fixed fleets of the outside plant, which shares no code with the simulator.

The lengths are those of a family whose lengths do not change with time. The rate is constant.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_bench.autoscaler.missed_share.fixed_fleet_case import FixedFleetCase, FleetComparison
from fairlead_bench.autoscaler.missed_share.prediction import PredictingController
from fairlead_bench.outside_plant.core_seam import core_info
from fairlead_bench.outside_plant.families import FAMILIES
from fairlead_bench.outside_plant.plant import Plant, PlantOptions
from fairlead_bench.outside_plant.requests import RequestList, poisson_arrivals
from fairlead_bench.outside_plant.scenario import Scenario
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter
from fairlead_sim.adapters.autoscaler_model_info import parse_model
from fairlead_sim.autoscaling.capacity.fixed_fleet import WARMUP_SECONDS

OUTSIDE = "outside"
_MINUTE_SECONDS = 60.0


def compare_outside_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what a fleet of the outside plant missed, and what the core predicted.

    requests: those that count, about.
    """
    scenario = outside_fleet_scenario(case, requests=requests, seed=seed)
    model = parse_model(core_info(scenario))
    controller = PredictingController(model, case.rate * case.replicas, WARMUP_SECONDS)
    Plant(scenario, PlantOptions()).run(AutoscalerAdapter(controller, model, _no_solver))
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
