"""The default preset: two hashed homes, and leave them only for a reason that can be said in seconds.

A prompt's key (``hotness``) hashes to two homes. Besides them more candidates are looked at: the least busy of the
instances that hold the longest prefix, the least busy instance of all, and who served the session last (``pins``), which is
priced as a home. Each is priced in seconds of engine time:

    J = backlog + own · (1 + 16·busy + 4·(1 - busy)·[not a home]) + 0.4·T · in-flight tokens / KV tokens
    busy = min(1, mean backlog / 0.06·T)

``backlog`` is prefill sent there and not yet answered, ``own`` this prompt's uncached part there, T the first-token
objective. The middle term is a price on recomputation: the busier the fleet, the dearer a second copy of a prefix,
since it evicts another; without it the fleet falls off a cliff (every duplicate evicts, every eviction recomputes).
Leaving home costs extra because homes are what keeps several gateways in step when they see different loads, and what spreads
prefixes while a fleet is calm; in a busy one a prompt that nobody holds belongs where there is room (with the extra price it carries
1 % less of long prompts). It costs 32 however busy the fleet is
where engines report cached prefixes that nobody had told of: others send there and we hear nothing of it (no Redis, no index, an
index that is late), and homes are all that is common then. The last term spreads decoding, which prefill alone never sees.

The objective decides how long affinity holds: as long as some candidate is predicted to meet it, the cheapest of those is taken. When
none is, the cheapest of those that are at most three times as late is (``slo-spill``): a fleet that gives up its caches because it is
overloaded has to compute more, and is overloaded for longer (measured 4 to 7 % over capacity: mean first token after 11.8 s by the
soonest alone, 8.5 s by price). Only when none of them is within that either, the soonest first token wins.

**Who waits, waits here** (``order``). An engine serves by arrival, and what a prompt would have found in its cache may be gone
by its turn. So what has been assigned to a busy engine stays in the gateway until the engine can begin, and then the one goes that
arrived first if each second of its own part counts as ``PATIENCE`` seconds of waiting, up to twice the objective: nobody is passed
by who comes later than that. Short parts are those with much in the cache, which is so used before it is evicted; and when
a fleet is at its edge they keep their objective while the longest wait. An idle engine is given what comes at once. Measured on the
recorded conversations (21 arrivals a second, share within 5 s): by arrival 0.73, longest hit first 0.86, each second as 4 of
waiting 0.85, as 8 0.90, as 16 0.93, as 40 0.95, but then one in 200 waits for more than 15 s.

Sources: DualMap (arXiv 2602.06502: two homes, adaptive key, objective-aware switch); Preble and Mooncake (cost of
recomputation, minimal TTFT); for the order, shortest first with ageing. Ours: one price list in seconds instead of thresholds on one
signal at a time, the price on recomputation, and candidates beyond the pair. The constants are fractions of T, so that a fleet on
a clock twice as fast decides alike.
"""

from collections.abc import Mapping
from typing import Final

from fairlead.decision import Decision, Input, Rejected
from fairlead.units import duration
from fairlead_gateway.routing.presets.stay import Order, Stay
from fairlead_gateway.routing.request import Candidate

RECOMPUTE_PRICE: Final = 16.0
AWAY_PRICE: Final = 4.0
AWAY_PRICE_BLIND: Final = 32.0
FORESEEN_SHARE: Final = 0.005
BLIND_SHARE: Final = 0.03
"""Of prompts: what engines had cached beyond what was known. Less than the first is chance; from the second on we are blind."""
BUSY_SHARE: Final = 0.06
DECODE_SHARE: Final = 0.4
OBJECTIVE_DEFAULT_SECONDS: Final = 5.0
PATIENCE: Final = 16.0
PATIENCE_TIMES: Final = 2.0
"""The objective: by so much waiting at most may a long prompt be passed."""
OVERLOAD_TIMES: Final = 3.0
"""The objective: up to so late a first token prices still hold where nobody meets the objective."""


def choose(
    candidates: list[Candidate],
    *,
    mean_backlog_seconds: float,
    objective_seconds: float | None,
    hot_epoch: int = 0,
    hot_lost: bool = False,
    unforeseen_share: float = 0.0,
) -> Decision:
    """The best of at least one candidate, with the sums that decided it (J of the essay above, in seconds of engine time).
    ``hot_epoch`` is of the table by which the homes were found, 0 where the gateway counts for itself or (``hot_lost``) goes
    by the last that was told; ``unforeseen_share`` is what engines had cached of prompts lately beyond what was known.

    A tie goes to the first of the candidates, and those come in order: who served the session last, home 1, home 2, the holder, the
    least busy.
    """
    scale = OBJECTIVE_DEFAULT_SECONDS if objective_seconds is None else objective_seconds
    busy = _busy(mean_backlog_seconds, scale)
    recompute = 1.0 + RECOMPUTE_PRICE * busy
    decode = DECODE_SHARE * scale
    away = recompute + away_price(unforeseen_share, busy)
    best = late = soonest = candidates[0]
    best_cost = late_cost = soonest_cost = soonest_first = 0.0
    feasible = bearable = begun = False
    for item in candidates:
        own, backlog = item.own_seconds, item.backlog_seconds
        price = recompute if item.home or item.pinned else away
        cost = backlog + own * price + decode * item.inflight_tokens / item.kv_tokens
        first = backlog + own
        item.cost_seconds = cost
        if first <= scale:
            if not feasible or cost < best_cost or (cost == best_cost and item.inflight < best.inflight):
                best, best_cost, feasible = item, cost, True
        elif first <= OVERLOAD_TIMES * scale and (not bearable or cost < late_cost):
            late, late_cost, bearable = item, cost, True
        if not begun or first < soonest_first or (first == soonest_first and cost < soonest_cost):
            soonest, soonest_first, soonest_cost, begun = item, first, cost, True
    if not feasible:
        best, best_cost = (late, late_cost) if bearable else (soonest, soonest_cost)
    rule = _rule(best, candidates, feasible, scale)
    return Decision(
        best.id,
        rule,
        cost_seconds=best_cost,
        home=best.home,
        matched_tokens=best.matched_tokens + best.pull_tokens,
        ttft_seconds=best.backlog_seconds + best.own_seconds,
        account=_Account(
            rule, best, candidates, mean_backlog_seconds, feasible, scale, hot_epoch, hot_lost, unforeseen_share
        ),
        source=best.source,
    )


def order(stay: Stay) -> Order:
    """What those that are held for one instance are sorted by. How much of a prompt is cached matters by what is left to compute."""
    patience = min(PATIENCE * stay.own_seconds, PATIENCE_TIMES * stay.objective_seconds)
    return stay.arrived + patience, stay.arrived, stay.id


def away_price(unforeseen_share: float, busy: float) -> float:
    """What leaving home costs beside recomputation, in times the prompt's own part; ``busy`` from 0 to 1."""
    blind = (unforeseen_share - FORESEEN_SHARE) / (BLIND_SHARE - FORESEEN_SHARE)
    seen = AWAY_PRICE * (1.0 - busy)
    return seen + (AWAY_PRICE_BLIND - seen) * min(1.0, max(0.0, blind))


def _busy(mean_backlog_seconds: float, objective_seconds: float) -> float:
    return min(1.0, mean_backlog_seconds / (BUSY_SHARE * objective_seconds))


def _rule(best: Candidate, candidates: list[Candidate], feasible: bool, objective: float) -> str:
    if len(candidates) == 1:
        return "only-one"
    if not feasible:
        return "slo-spill"
    if best.home or best.holder or best.pinned:
        return "affinity"
    homes = [item for item in candidates if item.home]
    return "slo-spill" if homes and all(item.ttft_seconds > objective for item in homes) else "load"


class _Account:
    """The numbers of a decision; sentences and tables are made when somebody asks."""

    __slots__ = (
        "_best",
        "_candidates",
        "_feasible",
        "_hot_epoch",
        "_hot_lost",
        "_mean",
        "_objective",
        "_rule",
        "_unforeseen",
    )

    def __init__(
        self,
        rule: str,
        best: Candidate,
        candidates: list[Candidate],
        mean_backlog_seconds: float,
        feasible: bool,
        objective: float,
        hot_epoch: int,
        hot_lost: bool,
        unforeseen_share: float,
    ) -> None:
        self._rule = rule
        self._best = best
        self._candidates = candidates
        self._mean = mean_backlog_seconds
        self._feasible = feasible
        self._objective = objective
        self._hot_epoch = hot_epoch
        self._hot_lost = hot_lost
        self._unforeseen = unforeseen_share

    def reason(self) -> str:
        """Why the best one was taken, where what it lacks comes from, and what was not known."""
        best, why = self._best, self._why()
        if best.source is not None:
            took, instead = duration(best.own_seconds), duration(best.recompute_seconds)
            why += f"; {best.pull_tokens:.0f} tokens from {best.source}: {took} instead of {instead} to compute them"
        price = away_price(self._unforeseen, _busy(self._mean, self._objective))
        if price > AWAY_PRICE and len(self._candidates) > 1:
            why += f"; engines had {self._unforeseen:.1%} of prompts cached that nobody told of"
            why += f", so leaving home costs {price:.0f} x its part"
        if self._hot_lost:
            why += "; hot prefixes as they were told last"
        return why

    def _why(self) -> str:
        best, objective = self._best, self._objective
        if self._rule == "only-one":
            return "the only instance that can take it"
        first = f"first token in about {duration(best.ttft_seconds)}"
        if not self._feasible:
            return f"no candidate meets {duration(objective)}: {first}"
        if self._rule == "affinity":
            place = (
                "a home"
                if best.home
                else "the holder of the longest prefix"
                if best.holder
                else "it served the session last"
            )
            held = f" with {best.matched_tokens:.0f} tokens cached" if best.matched_tokens else ""
            return f"{place}{held}; {first}"
        if self._rule == "slo-spill":
            return f"both homes over {duration(objective)}; {first} here"
        return f"cheaper than its homes; {first}"

    def rejected(self) -> tuple[Rejected, ...]:
        """The others."""
        return tuple(Rejected(item.id, self._why_not(item)) for item in self._candidates if item is not self._best)

    def inputs(self) -> Mapping[str, Input]:
        """All numbers by name."""
        table = {"mean/backlog_seconds": Input(self._mean), "mean/unforeseen_share": Input(self._unforeseen)}
        # None: no table is shared, and how deep keys reach is this gateway's own count.
        table["hot/table_epoch"] = Input(float(self._hot_epoch) if self._hot_epoch else None)
        for item in self._candidates:
            table[f"{item.id}/backlog_seconds"] = Input(item.backlog_seconds)
            table[f"{item.id}/matched_tokens"] = Input(item.matched_tokens)
            if item.indexed_tokens >= 0.0:
                table[f"{item.id}/indexed_tokens"] = Input(item.indexed_tokens)
            if item.source is not None:
                table[f"{item.id}/pull_tokens"] = Input(item.pull_tokens)
                table[f"{item.id}/recompute_seconds"] = Input(item.recompute_seconds)
            table[f"{item.id}/predicted_ttft_seconds"] = Input(item.ttft_seconds)
            table[f"{item.id}/home"] = Input(float(item.home))
            if item.pinned:
                table[f"{item.id}/session_last"] = Input(1.0)
            table[f"{item.id}/cost_seconds"] = Input(item.cost_seconds)
        return table

    def _why_not(self, item: Candidate) -> str:
        objective = self._objective
        if item.ttft_seconds > objective and self._best.ttft_seconds <= objective:
            return f"first token in {duration(item.ttft_seconds)}, over the objective of {duration(objective)}"
        if self._best.ttft_seconds > objective and item.ttft_seconds > self._best.ttft_seconds:
            return f"first token later: {duration(item.ttft_seconds)}"
        mine, theirs = duration(item.cost_seconds), duration(self._best.cost_seconds)
        if mine == theirs:
            return f"costs as much ({mine}), and is asked after it"
        return f"costs {mine} against {theirs}"
