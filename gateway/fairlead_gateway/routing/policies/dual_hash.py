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

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead.units import format_duration
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, QueueKey

RECOMPUTE_PRICE: Final = 16.0
NON_HOME_PRICE: Final = 4.0
NON_HOME_PRICE_UNINFORMED: Final = 32.0
INFORMED_SHARE: Final = 0.005
UNINFORMED_SHARE: Final = 0.03
"""Of prompts: what engines had cached beyond what was known. Less than the first is chance; from the second on we are blind."""
BUSY_SHARE: Final = 0.06
DECODE_SHARE: Final = 0.4
DEFAULT_TTFT_SECONDS: Final = 5.0
WAIT_PER_PREFILL_SECOND: Final = 16.0
MAX_WAIT_OBJECTIVES: Final = 2.0
"""The objective: by so much waiting at most may a long prompt be passed."""
MAX_LATE_OBJECTIVES: Final = 3.0
"""The objective: up to so late a first token prices still hold where nobody meets the objective."""


def choose(
    candidates: list[Candidate],
    *,
    mean_backlog_seconds: float,
    objective_seconds: float | None,
    hot_epoch: int = 0,
    hot_table_lost: bool = False,
    unforeseen_share: float = 0.0,
) -> Decision:
    """The best of at least one candidate, with the sums that decided it (J of the essay above, in seconds of engine time).
    ``hot_epoch`` is of the table by which the homes were found, 0 where the gateway counts for itself or (``hot_lost``) goes
    by the last that was told; ``unforeseen_share`` is what engines had cached of prompts lately beyond what was known.

    A tie goes to the first of the candidates, and those come in order: who served the session last, home 1, home 2, the holder, the
    least busy.
    """
    objective = DEFAULT_TTFT_SECONDS if objective_seconds is None else objective_seconds
    busy = _busy_share(mean_backlog_seconds, objective)
    recompute = 1.0 + RECOMPUTE_PRICE * busy
    decode = DECODE_SHARE * objective
    non_home = recompute + non_home_price(unforeseen_share, busy)
    best = late = soonest = candidates[0]
    best_cost = late_cost = soonest_cost = soonest_first = 0.0
    any_feasible = any_bearable = begun = False
    for candidate in candidates:
        prefill, backlog = candidate.prefill_seconds, candidate.backlog_seconds
        price = recompute if candidate.is_home or candidate.served_session else non_home
        cost = backlog + prefill * price + decode * candidate.inflight_tokens / candidate.kv_tokens
        ttft = backlog + prefill
        candidate.cost_seconds = cost
        if ttft <= objective:
            if not any_feasible or cost < best_cost or (cost == best_cost and candidate.inflight < best.inflight):
                best, best_cost, any_feasible = candidate, cost, True
        elif ttft <= MAX_LATE_OBJECTIVES * objective and (not any_bearable or cost < late_cost):
            late, late_cost, any_bearable = candidate, cost, True
        if not begun or ttft < soonest_first or (ttft == soonest_first and cost < soonest_cost):
            soonest, soonest_first, soonest_cost, begun = candidate, ttft, cost, True
    if not any_feasible:
        best, best_cost = (late, late_cost) if any_bearable else (soonest, soonest_cost)
    rule = _rule(best, candidates, any_feasible, objective)
    return Decision(
        best.id,
        rule,
        cost_seconds=best_cost,
        home=best.is_home,
        matched_tokens=best.matched_tokens + best.pull_tokens,
        ttft_seconds=best.backlog_seconds + best.prefill_seconds,
        explanation=_DualHashExplanation(
            rule,
            best,
            candidates,
            mean_backlog_seconds,
            any_feasible,
            objective,
            hot_epoch,
            hot_table_lost,
            unforeseen_share,
        ),
        source=best.pull_source,
    )


def queue_key(request: AssignedRequest) -> QueueKey:
    """What those that are held for one instance are sorted by. How much of a prompt is cached matters by what is left to compute."""
    allowed_wait = min(
        WAIT_PER_PREFILL_SECOND * request.prefill_seconds, MAX_WAIT_OBJECTIVES * request.objective_seconds
    )
    return request.assigned_at + allowed_wait, request.assigned_at, request.id


def non_home_price(unforeseen_share: float, busy: float) -> float:
    """What leaving home costs beside recomputation, in times the prompt's own part; ``busy`` from 0 to 1."""
    uninformed = (unforeseen_share - INFORMED_SHARE) / (UNINFORMED_SHARE - INFORMED_SHARE)
    informed_price = NON_HOME_PRICE * (1.0 - busy)
    return informed_price + (NON_HOME_PRICE_UNINFORMED - informed_price) * min(1.0, max(0.0, uninformed))


def _busy_share(mean_backlog_seconds: float, objective_seconds: float) -> float:
    return min(1.0, mean_backlog_seconds / (BUSY_SHARE * objective_seconds))


def _rule(best: Candidate, candidates: list[Candidate], feasible: bool, objective: float) -> str:
    if len(candidates) == 1:
        return "only-one"
    if not feasible:
        return "slo-spill"
    if best.is_home or best.is_holder or best.served_session:
        return "affinity"
    homes = [item for item in candidates if item.is_home]
    return "slo-spill" if homes and all(item.ttft_seconds > objective for item in homes) else "load"


class _DualHashExplanation:
    """The numbers of a decision; sentences and tables are made when somebody asks."""

    __slots__ = (
        "_best",
        "_candidates",
        "_feasible",
        "_hot_epoch",
        "_hot_table_lost",
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
        hot_table_lost: bool,
        unforeseen_share: float,
    ) -> None:
        self._rule = rule
        self._best = best
        self._candidates = candidates
        self._mean = mean_backlog_seconds
        self._feasible = feasible
        self._objective = objective
        self._hot_epoch = hot_epoch
        self._hot_table_lost = hot_table_lost
        self._unforeseen = unforeseen_share

    def reason(self) -> str:
        """Why the best one was taken, where what it lacks comes from, and what was not known."""
        best, why = self._best, self._choice_reason()
        if best.pull_source is not None:
            took, instead = format_duration(best.prefill_seconds), format_duration(best.recompute_seconds)
            why += (
                f"; {best.pull_tokens:.0f} tokens from {best.pull_source}: {took} instead of {instead} to compute them"
            )
        price = non_home_price(self._unforeseen, _busy_share(self._mean, self._objective))
        if price > NON_HOME_PRICE and len(self._candidates) > 1:
            why += f"; engines had {self._unforeseen:.1%} of prompts cached that nobody told of"
            why += f", so leaving home costs {price:.0f} x its part"
        if self._hot_table_lost:
            why += "; hot prefixes as they were told last"
        return why

    def _choice_reason(self) -> str:
        best, objective = self._best, self._objective
        if self._rule == "only-one":
            return "the only instance that can take it"
        first = f"first token in about {format_duration(best.ttft_seconds)}"
        if not self._feasible:
            return f"no candidate meets {format_duration(objective)}: {first}"
        if self._rule == "affinity":
            place = (
                "a home"
                if best.is_home
                else "the holder of the longest prefix"
                if best.is_holder
                else "it served the session last"
            )
            held = f" with {best.matched_tokens:.0f} tokens cached" if best.matched_tokens else ""
            return f"{place}{held}; {first}"
        if self._rule == "slo-spill":
            return f"both homes over {format_duration(objective)}; {first} here"
        return f"cheaper than its homes; {first}"

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """The others."""
        return tuple(
            RejectedCandidate(item.id, self._rejection(item)) for item in self._candidates if item is not self._best
        )

    def inputs(self) -> Mapping[str, DecisionInput]:
        """All numbers by name."""
        table = {
            "mean/backlog_seconds": DecisionInput(self._mean),
            "mean/unforeseen_share": DecisionInput(self._unforeseen),
        }
        # None: no table is shared, and how deep keys reach is this gateway's own count.
        table["hot/table_epoch"] = DecisionInput(float(self._hot_epoch) if self._hot_epoch else None)
        for item in self._candidates:
            table[f"{item.id}/backlog_seconds"] = DecisionInput(item.backlog_seconds)
            table[f"{item.id}/matched_tokens"] = DecisionInput(item.matched_tokens)
            if item.indexed_tokens >= 0.0:
                table[f"{item.id}/indexed_tokens"] = DecisionInput(item.indexed_tokens)
            if item.pull_source is not None:
                table[f"{item.id}/pull_tokens"] = DecisionInput(item.pull_tokens)
                table[f"{item.id}/recompute_seconds"] = DecisionInput(item.recompute_seconds)
            table[f"{item.id}/predicted_ttft_seconds"] = DecisionInput(item.ttft_seconds)
            table[f"{item.id}/home"] = DecisionInput(float(item.is_home))
            if item.served_session:
                table[f"{item.id}/session_last"] = DecisionInput(1.0)
            table[f"{item.id}/cost_seconds"] = DecisionInput(item.cost_seconds)
        return table

    def _rejection(self, item: Candidate) -> str:
        objective = self._objective
        if item.ttft_seconds > objective and self._best.ttft_seconds <= objective:
            return f"first token in {format_duration(item.ttft_seconds)}, over the objective of {format_duration(objective)}"
        if self._best.ttft_seconds > objective and item.ttft_seconds > self._best.ttft_seconds:
            return f"first token later: {format_duration(item.ttft_seconds)}"
        mine, theirs = format_duration(item.cost_seconds), format_duration(self._best.cost_seconds)
        if mine == theirs:
            return f"costs as much ({mine}), and is asked after it"
        return f"costs {mine} against {theirs}"
