"""The default preset: two hashed homes, and leave them only for a reason that can be said in seconds.

A prompt's key (``hotness``) hashes to two homes. Besides them two more candidates are looked at: the least busy of the
instances that hold the longest prefix, and the least busy instance of all. Each is priced in seconds of engine time:

    J = backlog + own · (1 + 16·min(1, mean backlog / 0.06·T) + 4·[not a home]) + 0.4·T · in-flight tokens / KV tokens

``backlog`` is prefill sent there and not yet answered, ``own`` this prompt's uncached part there, T the first-token
objective. The middle term is a price on recomputation: the busier the fleet, the dearer a second copy of a prefix,
since it evicts another; without it the fleet falls off a cliff (every duplicate evicts, every eviction recomputes).
Leaving home costs extra because homes are what keeps several gateways in step when they see different loads. The
last term spreads decoding, which prefill alone never sees.

The objective decides how long affinity holds: as long as some candidate is predicted to meet it, the cheapest of
those is taken; when none is, the prices no longer matter and the soonest first token wins (``slo-spill``).

Sources: DualMap (arXiv 2602.06502: two homes, adaptive key, objective-aware switch); Preble and Mooncake (cost of
recomputation, minimal TTFT). Ours: one price list in seconds instead of thresholds on one signal at a time, the
price on recomputation, and candidates beyond the pair. The constants are fractions of T, so that a fleet on a clock
twice as fast decides alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from fairlead.decision import Decision, Input, Rejected
from fairlead.units import duration
from fairlead_gateway.routing.request import Candidate

RECOMPUTE_PRICE = 16.0
AWAY_PRICE = 4.0
BUSY_SHARE = 0.06
DECODE_SHARE = 0.4
OBJECTIVE_DEFAULT_SECONDS = 5.0


def cost(candidate: Candidate, *, mean_backlog_seconds: float, objective_seconds: float) -> float:
    """J of the essay above, in seconds of engine time."""
    busy = min(1.0, mean_backlog_seconds / (BUSY_SHARE * objective_seconds))
    price = 1.0 + RECOMPUTE_PRICE * busy + (0.0 if candidate.home else AWAY_PRICE)
    return (
        candidate.backlog_seconds
        + candidate.own_seconds * price
        + DECODE_SHARE * objective_seconds * candidate.inflight_tokens / candidate.kv_tokens
    )


def choose(
    candidates: Sequence[Candidate], *, mean_backlog_seconds: float, objective_seconds: float | None
) -> Decision:
    """The best of at least one candidate, with the sums that decided it."""
    scale = OBJECTIVE_DEFAULT_SECONDS if objective_seconds is None else objective_seconds
    costs = {
        item.id: cost(item, mean_backlog_seconds=mean_backlog_seconds, objective_seconds=scale) for item in candidates
    }
    feasible = [item for item in candidates if item.ttft_seconds <= scale]
    # A tie goes to the first of the candidates, and those come in order: home 1, home 2, the holder, the least busy.
    if feasible:
        best = min(feasible, key=lambda item: (costs[item.id], item.inflight))
    else:
        best = min(candidates, key=lambda item: (item.ttft_seconds, costs[item.id]))
    rule, reason = _name(best, candidates, bool(feasible), scale)
    rejected = tuple(Rejected(item.id, _why_not(item, best, costs, scale)) for item in candidates if item is not best)
    inputs = _Inputs(candidates, costs, mean_backlog_seconds)
    return Decision(best.id, rule, reason, rejected, inputs, costs[best.id])


_NUMBERS: Mapping[str, Callable[[Candidate], float]] = {
    "backlog_seconds": lambda item: item.backlog_seconds,
    "matched_tokens": lambda item: item.matched_tokens,
    "predicted_ttft_seconds": lambda item: item.ttft_seconds,
    "home": lambda item: float(item.home),
}


class _Inputs(Mapping[str, Input]):
    """The numbers of a decision by name, written out only when somebody asks: most decisions are never looked at."""

    __slots__ = ("_candidates", "_costs", "_mean", "_table")

    def __init__(
        self, candidates: Sequence[Candidate], costs: Mapping[str, float], mean_backlog_seconds: float
    ) -> None:
        self._candidates = candidates
        self._costs = costs
        self._mean = mean_backlog_seconds
        self._table: dict[str, Input] | None = None

    def _written(self) -> dict[str, Input]:
        if self._table is None:
            table = {"mean/backlog_seconds": Input(self._mean)}
            for item in self._candidates:
                table |= {f"{item.id}/{name}": Input(number(item)) for name, number in _NUMBERS.items()}
                table[f"{item.id}/cost_seconds"] = Input(self._costs[item.id])
            self._table = table
        return self._table

    def __getitem__(self, name: str) -> Input:
        if self._table is None:
            instance, _, number = name.rpartition("/")
            for item in self._candidates:
                if item.id == instance and number in _NUMBERS:
                    return Input(_NUMBERS[number](item))
        return self._written()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._written())

    def __len__(self) -> int:
        return len(self._written())


def _name(best: Candidate, candidates: Sequence[Candidate], feasible: bool, objective: float) -> tuple[str, str]:
    if len(candidates) == 1:
        return "only-one", "the only instance that can take it"
    first = f"first token in about {duration(best.ttft_seconds)}"
    if not feasible:
        return "slo-spill", f"no candidate meets {duration(objective)}; soonest: {first}"
    homes = [item for item in candidates if item.home]
    if best.home or best.holder:
        place = "a home" if best.home else "the holder of the longest prefix"
        held = f" with {best.matched_tokens:.0f} tokens cached" if best.matched_tokens else ""
        return "affinity", f"{place}{held}; {first}"
    if homes and all(item.ttft_seconds > objective for item in homes):
        return "slo-spill", f"both homes over {duration(objective)}; {first} here"
    return "load", f"cheaper than its homes; {first}"


def _why_not(item: Candidate, best: Candidate, costs: dict[str, float], objective: float) -> str:
    if item.ttft_seconds > objective and best.ttft_seconds <= objective:
        return f"first token in {duration(item.ttft_seconds)}, over the objective of {duration(objective)}"
    if best.ttft_seconds > objective:
        return f"first token later: {duration(item.ttft_seconds)}"
    mine, theirs = duration(costs[item.id]), duration(costs[best.id])
    if mine == theirs:
        return f"costs as much ({mine}), and is asked after it"
    return f"costs {mine} against {theirs}"
