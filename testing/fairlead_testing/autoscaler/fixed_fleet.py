"""Fixed fleets at constant rates, without a controller: the share of requests that misses the SLO.

A capacity model can be compared with it. Engines, requests and gateway are those of a scenario;
there is no controller, no startup time and no change of load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from random import Random
from types import MappingProxyType
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_sim.autoscaling import traffic
from fairlead_sim.autoscaling.closed_loop import is_within_slo
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant
from fairlead_sim.autoscaling.reference_pools import large_profile, reference_model, reference_pool, small_profile
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.routing import LoadPolicy
from fairlead_sim.autoscaling.traffic import LengthDistribution

WARMUP_SECONDS: Final = 300.0
"""Requests of this time do not count: the fleet is empty at its beginning."""
DEFAULT_REQUESTS: Final = 20_000
_MINUTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class CapacityCase:
    """An engine class, the lengths of its requests, the SLO and the gateway's policy."""

    name: str
    profile: EngineProfile
    lengths: LengthDistribution
    slo: SloTargets
    load_policy: LoadPolicy = LoadPolicy.RESIDENT_KV


@dataclass(frozen=True, slots=True)
class MissedRequests:
    """The misses among the judged requests of one run.

    - late: first token too late, or none.
    - slow: first token in time, but the mean time between tokens too long, or the answer was cut.
    """

    requests: int
    late: int
    slow: int

    @property
    def share(self) -> float:
        return (self.late + self.slow) / self.requests if self.requests else 0.0


CASES: Final[Mapping[str, CapacityCase]] = MappingProxyType(
    {
        case.name: case
        for case in (
            CapacityCase("S chat", small_profile(), traffic.CHAT_LENGTHS, SloTargets(0.99, 3.0, itl_seconds=0.15)),
            CapacityCase("L chat", large_profile(), traffic.CHAT_LENGTHS, SloTargets(0.99, 2.0, itl_seconds=0.1)),
            CapacityCase(
                "L code", large_profile(), traffic.SHORT_OUTPUT_LENGTHS, SloTargets(0.99, 2.0, itl_seconds=0.2)
            ),
            CapacityCase(
                "L very long", large_profile(), traffic.VERY_LONG_LENGTHS, SloTargets(0.99, 30.0, itl_seconds=0.1)
            ),
        )
    }
)
"""Cases by name, with the gateway's default policy."""


def fixed_fleet_scenario(
    case: CapacityCase, replicas: int, rate: float, *, requests: int = DEFAULT_REQUESTS, seed: int = 1
) -> AutoscalingScenario:
    """Returns a scenario of ``replicas`` ready replicas that no controller can change.

    - rate: requests per second of the whole fleet; arrivals are Poisson.
    - requests: those that count, about; the warm-up has more.
    """
    setup = reference_pool(case.profile, replicas)
    setup = replace(setup, facts=replace(setup.facts, minimum=replicas, maximum=replicas))
    name = f"{case.name} x{replicas}"
    seconds = ceil((WARMUP_SECONDS + requests / rate) / _MINUTE_SECONDS) * _MINUTE_SECONDS
    load = _scaled_arrivals(case.lengths, rate, seconds, f"{name} {seed}")
    model = replace(reference_model([setup], case.slo.ttft_seconds, case.slo.itl_seconds), target=case.slo.target)
    return AutoscalingScenario(name, seed, seconds, model, (setup,), load, load_policy=case.load_policy)


def _scaled_arrivals(lengths: LengthDistribution, rate: float, seconds: float, seed: str) -> ArrivalTrace:
    """Returns Poisson arrivals.

    Why not ``poisson_arrivals``: here a seed has the same requests in the same order at every rate.
    So misses at two rates can be compared.
    """
    gaps, draws = Random(f"{seed} arrivals"), Random(f"{seed} lengths")
    prompts, outputs = lengths.sampling_grids()
    arrivals: list[float] = []
    at = gaps.expovariate(1.0) / rate
    while at < seconds:
        arrivals.append(at)
        at += gaps.expovariate(1.0) / rate
    pairs = [(draws.choice(prompts), draws.choice(outputs)) for _ in arrivals]
    return ArrivalTrace(arrivals, [prompt for prompt, _ in pairs], [output for _, output in pairs])


def count_misses(
    requests: RequestTable, scenario: AutoscalingScenario, *, since: float = WARMUP_SECONDS
) -> MissedRequests:
    """Returns the misses among the requests of a run that arrived at ``since`` or later."""
    ttft = scenario.model.ttft_seconds or float("inf")
    itl = scenario.model.itl_seconds or float("inf")
    count = late = slow = 0
    for request, arrival in enumerate(requests.arrival):
        if arrival < since:
            continue
        count += 1
        if is_within_slo(requests, request, ttft, itl):
            continue
        first = requests.first[request]
        if first < 0.0 or first - arrival > ttft:
            late += 1
        else:
            slow += 1
    return MissedRequests(count, late, slow)


def measure_fixed_fleet(
    case: CapacityCase,
    replicas: int,
    rate: float,
    *,
    engine_model: EngineModelKind = EngineModelKind.AGGREGATED,
    requests: int = DEFAULT_REQUESTS,
    seed: int = 1,
) -> MissedRequests:
    """Returns the misses of a fixed fleet at ``rate`` requests per second of the whole fleet."""
    scenario = fixed_fleet_scenario(case, replicas, rate, requests=requests, seed=seed)
    plant = Plant(scenario, engine_model=engine_model)
    plant.run(scenario.seconds)
    plant.finish()
    return count_misses(plant.requests, scenario)
