"""Fixed fleets of the simulator's plants: aggregated, token by token, and the fleet simulator."""

from dataclasses import replace

from fairlead_bench.autoscaler.missed_share.fixed_fleet_case import FixedFleetCase, FleetComparison
from fairlead_bench.autoscaler.missed_share.prediction import PredictingController
from fairlead_sim.autoscaling.capacity.fixed_fleet import (
    CASES,
    WARMUP_SECONDS,
    CapacityCase,
    count_misses,
    fixed_fleet_scenario,
)
from fairlead_sim.autoscaling.closed_loop import SimulatedPlant, run_controller
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant
from fairlead_sim.autoscaling.routing.load_balancing import LoadPolicy

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
