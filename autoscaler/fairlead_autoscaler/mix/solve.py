"""The mix to have now: the program where it is solved in time, else the greedy one, always with its reason and its cost.

Big accelerators carry the base load because whole ones are cheapest per request there, small ones the remainder, because a
part of a big one costs more than a whole small one. Nothing here says so; it is what the program finds.
"""

from collections.abc import Sequence

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput
from fairlead_autoscaler.mix.greedy import GreedyMix, solve_greedily
from fairlead_autoscaler.mix.milp import MilpSolution, solve_milp, start_stop_prices
from fairlead_autoscaler.mix.types import AcceleratorMix, MixSettings, PoolCandidate


def solve_mix(
    rates: Sequence[float], candidates: Sequence[PoolCandidate], settings: MixSettings | None = None
) -> AcceleratorMix:
    """The cheapest replicas that carry ``rates`` (requests per second of each shape). Always answers: where the solver runs
    out of time with nothing better, or no replicas within the bounds carry the load, it is the greedy mix and says so.
    Shapes that no candidate can serve are left out and counted as unserved. Raises BadInput only for tables whose sizes do
    not match."""
    chosen = settings or MixSettings()
    for one in candidates:
        if len(one.throughput) != len(rates):
            raise BadInput(f"{one.name} has {len(one.throughput)} throughputs for {len(rates)} shapes", field=one.name)
    wanted = [max(0.0, rate) for rate in rates]
    able = [any(one.throughput[shape] > 0.0 for one in candidates) for shape in range(len(wanted))]
    served = [rate if can else 0.0 for rate, can in zip(wanted, able, strict=True)]
    hopeless = sum(wanted) - sum(served)
    dealt = solve_greedily(served, candidates)
    if sum(served) <= 0.0:
        return _idle(wanted, candidates, hopeless)
    solved = solve_milp(served, candidates, chosen, start=None if dealt.unserved > 0.0 else dealt.replicas)
    if solved.replicas is not None and solved.shares is not None:
        better = solved.status == "optimal" or dealt.unserved > 0.0
        if better or _hourly_cost(solved.replicas, candidates, chosen) <= _hourly_cost(
            dealt.replicas, candidates, chosen
        ):
            return _from_milp(solved, solved.replicas, solved.shares, wanted, candidates, hopeless)
    return _from_greedy(solved, dealt, wanted, candidates, hopeless)


def _hourly_cost(replicas: Sequence[int], candidates: Sequence[PoolCandidate], settings: MixSettings) -> float:
    """Cost per hour, starts and changes included."""
    total = 0.0
    for count, one in zip(replicas, candidates, strict=True):
        up, down = start_stop_prices(one, settings)
        total += count * one.cost_per_hour + max(0, count - one.running) * up + max(0, one.running - count) * down
    return total


def _from_milp(
    solved: MilpSolution,
    replicas: tuple[int, ...],
    shares: tuple[tuple[float, ...], ...],
    rates: Sequence[float],
    candidates: Sequence[PoolCandidate],
    hopeless: float,
) -> AcceleratorMix:
    proven = solved.status == "optimal"
    said = "the cheapest there is" if proven else "the best that was found in time"
    rule = "milp" if proven else "milp-limit"
    return _accelerator_mix(replicas, shares, rates, candidates, hopeless, rule, said)


def _from_greedy(
    solved: MilpSolution, dealt: GreedyMix, rates: Sequence[float], candidates: Sequence[PoolCandidate], hopeless: float
) -> AcceleratorMix:
    rules = {"infeasible": "greedy-infeasible", "limit": "greedy-timeout"}
    why = {
        "infeasible": "the bounds of the pools do not allow what the load needs: greedy, as much as they carry",
        "limit": "the solver found nothing better in time: greedy, each shape where it is cheapest",
    }
    said = why.get(solved.status, "the solver gave no answer: greedy, each shape where it is cheapest")
    rule = rules.get(solved.status, "greedy-failed")
    return _accelerator_mix(dealt.replicas, dealt.shares, rates, candidates, hopeless + dealt.unserved, rule, said)


def _idle(rates: Sequence[float], candidates: Sequence[PoolCandidate], hopeless: float) -> AcceleratorMix:
    nothing = tuple((0.0,) * len(rates) for _ in candidates)
    said = "no request arrives that a pool could serve, so only the pools' minima"
    return _accelerator_mix(
        tuple(one.minimum for one in candidates), nothing, rates, candidates, hopeless, "idle", said
    )


def _accelerator_mix(
    replicas: Sequence[int],
    shares: Sequence[tuple[float, ...]],
    rates: Sequence[float],
    candidates: Sequence[PoolCandidate],
    unserved: float,
    rule: str,
    said: str,
) -> AcceleratorMix:
    cost = sum([count * one.cost_per_hour for count, one in zip(replicas, candidates, strict=True)])
    total = sum(rates)
    parts, inputs = [], {"requests_per_second": DecisionInput(total), "unserved_per_second": DecisionInput(unserved)}
    for count, one, row in zip(replicas, candidates, shares, strict=True):
        share = sum([part * rate for part, rate in zip(row, rates, strict=True)]) / total if total > 0.0 else 0.0
        load = sum(
            [
                part * rate / each
                for part, rate, each in zip(row, rates, one.throughput, strict=True)
                if part > 0.0 and each > 0.0
            ]
        )
        inputs |= {f"{one.name}/share": DecisionInput(share), f"{one.name}/load_replicas": DecisionInput(load)}
        if count:
            parts.append(f"{count} × {one.name} for {share:.0%} of requests")
    reason = f"{', '.join(parts) or 'no replicas'}; {cost:.2f} an hour, {said}"
    if unserved > 1e-9:
        reason += f"; {unserved:.2f} requests a second cannot be served within objectives and bounds"
    names = [one.name for one in candidates]
    return AcceleratorMix(
        dict(zip(names, replicas, strict=True)),
        dict(zip(names, shares, strict=True)),
        cost,
        unserved,
        rule,
        reason,
        inputs,
    )
