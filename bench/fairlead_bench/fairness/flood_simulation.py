"""The flood of `flood_processes` in the simulator: the same engines, tenants and requests.

Requests of a flood arrive when those of the processes did. Two floods alone are closed loops, since
their shares say when they send. Networks and processes take no time here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from fairlead.fleet.model import SloTargets
from fairlead_bench.fairness.fair_gateways import FairCluster
from fairlead_bench.fairness.flood_processes import (
    ENGINES,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    WARM_UP_SECONDS,
    Answer,
    engine_profile,
)
from fairlead_sim.fleet.fleet_options import FleetOptions
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.cluster_options import ClusterOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.traces import TraceRequest

_BLOCK_TOKENS = 16
_TURNS = 200


def simulated_waits(answers: Sequence[Answer], gateways: int, tenants: Sequence[str], seconds: float) -> list[float]:
    """Returns the waits of some tenants' requests for an engine, after the warm-up, in seconds.

    answers: of the processes, at engines bound by sequences.
    """
    simulation = _simulation(gateways, dict.fromkeys({answer.tenant for answer in answers}, 1.0))
    requests = [
        replace(_request(number, answer.tenant, answer.tokens), arrival=answer.sent_at)
        for number, answer in enumerate(answers)
    ]
    results = simulation.run(requests)
    alone = engine_profile("sequences").prefill_time(PROMPT_TOKENS)
    return [
        result.ttft_seconds - alone
        for request, result in zip(requests, results, strict=True)
        if request.tenant in tenants
        and WARM_UP_SECONDS <= request.arrival < seconds
        and result.ttft_seconds is not None
    ]


def simulated_service(
    weights: Mapping[str, float], floods: Mapping[str, int], gateways: int, seconds: float, seed: int
) -> dict[str, float]:
    """Returns the tokens that floods got between warm-up and end, by tenant.

    floods: requests that each keeps in flight.
    """
    numbers = count()
    sessions = [
        [_request(next(numbers), tenant, OUTPUT_TOKENS[(loop + turn) % len(OUTPUT_TOKENS)]) for turn in range(_TURNS)]
        for loop in range(max(floods.values()))
        for tenant, in_flight in floods.items()
        if loop < in_flight
    ]
    results = _simulation(gateways, weights).run_sessions(
        sessions, concurrency=len(sessions), round_trip_seconds=0.001, seed=seed
    )
    served = dict.fromkeys(floods, 0.0)
    requests = (request for session in sessions for request in session)
    for request, result in zip(requests, results, strict=True):
        if result.finish is not None and WARM_UP_SECONDS <= result.finish < seconds:
            served[request.tenant or ""] += result.output_tokens
    return served


def _simulation(gateways: int, weights: Mapping[str, float]) -> FleetSimulation:
    fleet = FleetOptions([f"e-{number}" for number in range(ENGINES)], engine_profile("sequences"), _BLOCK_TOKENS)
    classes = {tenant: TenantClass(weight=weight) for tenant, weight in weights.items()}
    routing, options = RoutingOptions(SloTargets(), b"flood"), ClusterOptions(gateways=gateways)
    return FleetSimulation(FairCluster(fleet, routing, options, classes=classes), fleet)


def _request(number: int, tenant: str, output_tokens: int) -> TraceRequest:
    """Returns a request whose prompt is like no other one."""
    return TraceRequest(f"{tenant}/{number}", 0.0, PROMPT_TOKENS, output_tokens, (number,), None, tenant)
