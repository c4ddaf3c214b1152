"""Accelerator mix for given rates: by the mixed-integer program if it is solved in time, else
greedy.

Large accelerators carry the base load, since whole ones are cheapest per request. Small ones carry
the remainder, since a part of a large one costs more than a whole small one. No rule here says so;
it is what the program finds.

It is the capacity by which the scaling core sizes (`core.performance.replica_capacity`), for one
replica and requests of equal length. It is 0 if a request that has the engine for itself cannot
meet a target. Its sequence may not fit the memory, its steps may exceed the TPOT target, or its
prompt the TTFT target.

Shapes share an engine: r_1/R_1 + r_2/R_2 + … ≤ 1. The program of the mix assumes that, as Mélange
does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaModel
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.mix.greedy import solve_greedily
from fairlead_autoscaler.mix.milp import solve_milp, start_stop_prices
from fairlead_autoscaler.mix.types import AcceleratorMix, MixSettings, PoolCandidate

_FALLBACKS = {
    "infeasible": (
        "greedy-infeasible",
        "the bounds of the pools do not allow what the load needs: greedy, as much as they carry",
    ),
    "limit": (
        "greedy-timeout",
        "the solver found nothing better in time: greedy, each shape where it is cheapest",
    ),
}
_FAILED = "greedy-failed", "the solver gave no result: greedy, each shape where it is cheapest"


def throughput(
    profile: EngineProfile,
    prompt_tokens: float,
    output_tokens: float,
    targets: SloTargets,
) -> float:
    """Returns the requests per second of this shape on one engine; 0 if it cannot meet the targets
    even alone.
    """
    prompt, output = max(1.0, prompt_tokens), max(1.0, output_tokens)
    limit, itl = targets.ttft_limit_seconds(prompt), targets.itl_seconds
    if prompt + output > profile.kv_tokens:
        return 0.0
    if limit is not None and profile.prefill_time(prompt) > limit:
        return 0.0
    alone = profile.step_time(computed=1, sequences=1, resident=round(prompt + output / 2.0))
    if itl is not None and output >= 2.0 and alone > itl:
        return 0.0
    latency_targets = LatencyTargets(limit, itl, max(1e-4, 1.0 - targets.target))
    shape = MeanRequest(prompt, output, prompt_variability=0.0)
    step = StepModel.from_profile(profile)
    return ReplicaModel(step, shape, latency_targets, min_busy=0.0).capacity(1.0).requests_per_second


@dataclass(frozen=True, slots=True)
class _Solution:
    """Replicas of each candidate, and the share of each shape that it takes.

    unserved: requests per second that no candidate takes.
    explanation: the end of the reason.
    """

    replicas: Sequence[int]
    shares: Sequence[tuple[float, ...]]
    unserved: float
    rule: str
    explanation: str


def solve_mix(
    rates: Sequence[float], candidates: Sequence[PoolCandidate], settings: MixSettings | None = None
) -> AcceleratorMix:
    """Returns the cheapest replicas that carry `rates`, in requests per second of each shape.

    The mix is greedy if the solver fails or finds nothing better in time, or if no replicas within
    the bounds carry the load. Its `rule` says so. Shapes that no candidate can serve count as
    unserved. If no request can be served, the mix has the pools' minima.

    Raises BadInput only if the sizes of the tables do not match.
    """
    chosen = settings or MixSettings()
    for candidate in candidates:
        if len(candidate.throughput) != len(rates):
            message = f"{candidate.name} has {len(candidate.throughput)} throughputs for {len(rates)} shapes"
            raise BadInput(message, field=candidate.name)
    wanted = [max(0.0, rate) for rate in rates]
    servable = [any(candidate.throughput[shape] > 0.0 for candidate in candidates) for shape in range(len(wanted))]
    served = [rate if can else 0.0 for rate, can in zip(wanted, servable, strict=True)]
    unservable = sum(wanted) - sum(served)
    if sum(served) <= 0.0:
        nothing = tuple((0.0,) * len(rates) for _ in candidates)
        minima = tuple(candidate.minimum for candidate in candidates)
        explanation = "no request arrives that a pool could serve, so only the pools' minima"
        return _accelerator_mix(_Solution(minima, nothing, unservable, "idle", explanation), wanted, candidates)
    greedy = solve_greedily(served, candidates)
    solved = solve_milp(served, candidates, chosen, start=None if greedy.unserved > 0.0 else greedy.replicas)
    if solved.replicas is not None and solved.shares is not None:
        is_optimal = solved.status == "optimal"
        costs = [_hourly_cost(replicas, candidates, chosen) for replicas in (solved.replicas, greedy.replicas)]
        # When its time is over, the solver may have found nothing as cheap as the greedy mix.
        if is_optimal or greedy.unserved > 0.0 or costs[0] <= costs[1]:
            explanation = "the cheapest there is" if is_optimal else "the best that was found in time"
            rule = "milp" if is_optimal else "milp-limit"
            solution = _Solution(solved.replicas, solved.shares, unservable, rule, explanation)
            return _accelerator_mix(solution, wanted, candidates)
    rule, explanation = _FALLBACKS.get(solved.status, _FAILED)
    solution = _Solution(greedy.replicas, greedy.shares, unservable + greedy.unserved, rule, explanation)
    return _accelerator_mix(solution, wanted, candidates)


def _hourly_cost(replicas: Sequence[int], candidates: Sequence[PoolCandidate], settings: MixSettings) -> float:
    """Returns the cost per hour, starts and changes included."""
    total = 0.0
    for count, candidate in zip(replicas, candidates, strict=True):
        up, down = start_stop_prices(candidate, settings)
        total += count * candidate.cost_per_hour
        total += max(0, count - candidate.running) * up + max(0, candidate.running - count) * down
    return total


def _accelerator_mix(
    solution: _Solution, rates: Sequence[float], candidates: Sequence[PoolCandidate]
) -> AcceleratorMix:
    """Returns the solution by the names of the candidates, with its cost and its reason."""
    counts = list(zip(candidates, solution.replicas, strict=True))
    cost = sum([count * candidate.cost_per_hour for candidate, count in counts])
    total = sum(rates)
    inputs = {
        "requests_per_second": DecisionInput(total),
        "unserved_per_second": DecisionInput(solution.unserved),
    }
    parts = []
    for (candidate, count), row in zip(counts, solution.shares, strict=True):
        share = sum([part * rate for part, rate in zip(row, rates, strict=True)]) / total if total > 0.0 else 0.0
        load = sum(
            [
                part * rate / throughput
                for part, rate, throughput in zip(row, rates, candidate.throughput, strict=True)
                if part > 0.0 and throughput > 0.0
            ]
        )
        inputs[f"{candidate.name}/share"] = DecisionInput(share)
        inputs[f"{candidate.name}/load_replicas"] = DecisionInput(load)
        if count:
            parts.append(f"{count} × {candidate.name} for {share:.0%} of requests")
    reason = f"{', '.join(parts) or 'no replicas'}; {cost:.2f} an hour, {solution.explanation}"
    if solution.unserved > 1e-9:
        reason += f"; {solution.unserved:.2f} requests a second cannot be served within targets and bounds"
    names = [candidate.name for candidate in candidates]
    return AcceleratorMix(
        dict(zip(names, solution.replicas, strict=True)),
        dict(zip(names, solution.shares, strict=True)),
        cost,
        solution.unserved,
        solution.rule,
        reason,
        inputs,
    )
