"""The flood of `flood_processes` in the simulator: the same engines, tenants and arrivals.

Requests of steady tenants arrive when those of the processes did. Floods are closed loops, as
there. A message of an engine takes a millisecond here, and nothing else takes time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count, cycle

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
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.cluster_options import ClusterOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.traces import TraceRequest

_BLOCK_TOKENS = 16
_HOP_SECONDS = 0.001
"""From an engine to a gateway: what ends with a step is known after the next one has begun."""


def simulated_waits(answers: Sequence[Answer], floods: Mapping[str, int], gateways: int, seconds: float) -> list[float]:
    """Returns the waits of steady tenants' requests for an engine, after the warm-up, in seconds.

    answers: of the processes, at engines bound by sequences.
    """
    requests = [
        replace(_request(number, answer.tenant, answer.tokens), arrival=answer.sent_at)
        for number, answer in enumerate(answers)
        if answer.tenant not in floods
    ]
    tenants = {answer.tenant for answer in answers}
    results = _run(requests, floods, dict.fromkeys(tenants, 1.0), gateways, seconds)
    alone = engine_profile("sequences").prefill_time(PROMPT_TOKENS)
    return [
        result.ttft_seconds - alone
        for result in results[: len(requests)]
        if WARM_UP_SECONDS <= result.arrival < seconds and result.ttft_seconds is not None
    ]


def simulated_service(
    weights: Mapping[str, float], floods: Mapping[str, int], gateways: int, seconds: float
) -> dict[str, float]:
    """Returns the tokens that floods alone got between warm-up and end, by tenant.

    floods: requests that each keeps in flight.
    """
    served = dict.fromkeys(floods, 0.0)

    def count_end(request: TraceRequest, now: float) -> None:
        if WARM_UP_SECONDS <= now < seconds:
            served[request.tenant or ""] += request.output_tokens

    _run([], floods, weights, gateways, seconds, count_end)
    return served


def _run(
    steady: Sequence[TraceRequest],
    floods: Mapping[str, int],
    weights: Mapping[str, float],
    gateways: int,
    seconds: float,
    count_end: Callable[[TraceRequest, float], None] = lambda *_: None,
) -> list[RequestResult]:
    """Runs requests at their times, and floods that send the next request after each end."""
    fleet = FleetOptions(
        [f"e-{number}" for number in range(ENGINES)],
        engine_profile("sequences"),
        _BLOCK_TOKENS,
        feedback_delay_seconds=_HOP_SECONDS,
    )
    classes = {tenant: TenantClass(weight=weight) for tenant, weight in weights.items()}
    routing, options = RoutingOptions(SloTargets(), b"flood"), ClusterOptions(gateways=gateways)
    cluster = FairCluster(fleet, routing, options, classes=classes)
    simulation = FleetSimulation(cluster, fleet)
    numbers, lengths = count(len(steady)), cycle(OUTPUT_TOKENS)

    def on_end(request: TraceRequest, now: float) -> None:
        count_end(request, now)
        if request.tenant in floods and now < seconds:
            cluster.schedule(now, lambda at: simulation.arrive(next_of(request.tenant or ""), at))

    def next_of(tenant: str) -> TraceRequest:
        return _request(next(numbers), tenant, next(lengths))

    cluster.on_end = on_end
    return simulation.run([*steady, *(next_of(tenant) for tenant, number in floods.items() for _ in range(number))])


def _request(number: int, tenant: str, output_tokens: int) -> TraceRequest:
    """Returns a request whose prompt is like no other one."""
    return TraceRequest(f"{tenant}/{number}", 0.0, PROMPT_TOKENS, output_tokens, (number,), None, tenant)
