"""The default policy: two hashed homes, left only for a reason in seconds.

A prompt's routing key (`prefix.hot_prefixes`) hashes to two homes. Further candidates are the least
busy of the endpoints with the longest cached prefix, and the least busy of all. So is the endpoint
that served the session last, priced as a home. Each has a cost in seconds of engine time:

    J = backlog + load + own · (1 + 16·busy + 4·(1 - busy)·[neither a home nor the holder])
        + 0.4·T · in-flight tokens / KV tokens
    busy = min(1, mean backlog / 0.06·T)

`backlog` is prefill sent there and not answered, `own` this prompt's uncached part there, T the
TTFT objective. `load` is the time to load what lies in slower memory. Other prompts do not wait for
it. The middle term is a price on recomputation. The busier the fleet, the dearer a second copy of a
prefix, since it evicts another. Without it the fleet degrades abruptly: every duplicate evicts,
every eviction recomputes. The last term spreads decoding, which prefill alone does not show.

Leaving home costs extra, since homes keep several gateways in step when they see different loads,
and spread prefixes while load is light. In a busy fleet, a prompt that is cached nowhere belongs
where there is room. With the extra price the fleet carries 1 % less of long prompts. The price is
32, however busy the fleet is, if engines report cached prefixes that no source announced. Then
other routers send there, and homes are all that is common (no Redis, no index, or a late index).

The holder of the longest prefix costs no more than a home while the gateway is informed. It
computes nothing again that another endpoint has. The homes of a conversation change when
its key becomes longer. With the extra price, it left its cache for them.

While some candidate is predicted to meet the objective, the cheapest of those is taken. Otherwise
the cheapest of those within three times the objective is taken (`slo-spill`). If none is within
that either, the soonest first token wins.

Why: a fleet that gives up its caches under overload has to compute more, and stays overloaded
longer. At 4 to 7 % over capacity, the mean first token came after 11.8 s by the soonest alone,
after 8.5 s by price.

**Assigned requests wait in the gateway** (`queue_sort_key`). An engine serves by arrival, and
blocks that are cached now may be evicted before the turn of the prompt. So requests for a busy
engine wait until it can begin. Then the request with the earliest arrival is sent. Each second of a
request's prefill counts as `WAIT_PER_PREFILL_SECOND` seconds of later arrival, up to twice the TTFT
target. Prompts with much cached are short, so they use the cache before it is evicted. At the edge
of capacity they meet their target while the longest wait. An idle engine gets a request at once.

Measured on the recorded conversations (21 arrivals a second, share within 5 s): by arrival 0.73,
longest match first 0.86. Each second as 4 of waiting: 0.85, as 8: 0.90, as 16: 0.93. As 40: 0.95,
but then one in 200 waits more than 15 s.

Source: DualMap (arXiv 2602.06502: two homes, adaptive key, objective-aware switch); Preble and
Mooncake (cost of recomputation, minimal TTFT); shortest first with ageing for the order. Ours: one
price list in seconds instead of thresholds on single signals, the price on recomputation, and
candidates beyond the pair. Constants are fractions of T, so that a fleet twice as fast decides
alike.
"""

from collections.abc import Mapping
from typing import Final

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead.units import format_duration
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.policies.policy_input import AssignedRequest, QueueKey
from fairlead_gateway.routing.request import DEFAULT_TTFT_SECONDS

RECOMPUTE_PRICE: Final = 16.0
NON_HOME_PRICE: Final = 4.0
NON_HOME_PRICE_UNINFORMED: Final = 32.0
INFORMED_SHARE: Final = 0.005
UNINFORMED_SHARE: Final = 0.03
"""Share of prompts that engines had cached beyond what was known. Below the first it is chance;
from the second on, the gateway is uninformed.
"""
BUSY_SHARE: Final = 0.06
DECODE_SHARE: Final = 0.4
WAIT_PER_PREFILL_SECOND: Final = 16.0
MAX_WAIT_OBJECTIVES: Final = 2.0
"""A long prompt is passed over by at most so many objectives of waiting."""
MAX_LATE_OBJECTIVES: Final = 3.0
"""Prices still hold for a first token up to so many objectives late."""


def choose(
    candidates: list[Candidate],
    *,
    mean_backlog_seconds: float,
    objective_seconds: float | None,
    unforeseen_share: float = 0.0,
) -> Decision:
    """Returns the decision for the best candidate, with the numbers that led to it.

    At least one candidate is required. Within the objective, ties go to fewer requests in flight.
    Other ties go to the first of: the endpoint that served the session last, home 1, home 2, holder
    of the longest prefix, least busy.

    unforeseen_share: share of a prompt that engines lately had cached beyond what was known.
    """
    objective = DEFAULT_TTFT_SECONDS if objective_seconds is None else objective_seconds
    busy = _busy_share(mean_backlog_seconds, objective)
    recompute = 1.0 + RECOMPUTE_PRICE * busy
    decode = DECODE_SHARE * objective
    non_home = recompute + non_home_price(unforeseen_share, busy)
    holder = recompute + non_home_price(unforeseen_share, 1.0)  # as a home, while the gateway is informed
    best = late = soonest = candidates[0]
    best_cost = late_cost = soonest_cost = soonest_first = 0.0
    any_feasible = any_bearable = begun = False
    # One pass finds three: the cheapest within the objective, the cheapest of the bearably late,
    # and the soonest. Once all are very late, prices for caches would only make requests later.
    for candidate in candidates:
        prefill, backlog, load = candidate.prefill_seconds, candidate.backlog_seconds, candidate.load_seconds
        price = non_home
        if candidate.is_home or candidate.served_session:
            price = recompute
        elif candidate.is_holder:
            price = holder
        cost = backlog + load + prefill * price + decode * candidate.inflight_tokens / candidate.kv_tokens
        ttft = backlog + load + prefill
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
    decision = Decision(
        best.id,
        rule,
        cost_seconds=best_cost,
        home=best.is_home,
        matched_tokens=best.matched_tokens + best.pull_tokens,
        ttft_seconds=best.ttft_seconds,
        explanation=_DualHashExplanation(
            rule,
            best,
            candidates,
            mean_backlog_seconds,
            any_feasible,
            objective,
            unforeseen_share,
        ),
        source=best.pull_source,
    )
    decision.loaded = best.loaded
    return decision


def queue_sort_key(request: AssignedRequest) -> QueueKey:
    """Returns the sort key of an assigned request: its arrival plus a wait for its prefill."""
    allowed_wait = min(
        WAIT_PER_PREFILL_SECOND * request.prefill_seconds, MAX_WAIT_OBJECTIVES * request.objective_seconds
    )
    return request.assigned_at + allowed_wait, request.assigned_at, request.id


def non_home_price(unforeseen_share: float, busy: float) -> float:
    """Returns the extra price of an endpoint that is no home, as a factor on the prompt's prefill.

    busy: from 0 (idle fleet) to 1.
    """
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
    homes = [candidate for candidate in candidates if candidate.is_home]
    return "slo-spill" if homes and all(candidate.ttft_seconds > objective for candidate in homes) else "load"


class _DualHashExplanation:
    """The numbers of a decision. Text and tables are built when they are read."""

    __slots__ = (
        "_best",
        "_candidates",
        "_feasible",
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
        unforeseen_share: float,
    ) -> None:
        self._rule = rule
        self._best = best
        self._candidates = candidates
        self._mean = mean_backlog_seconds
        self._feasible = feasible
        self._objective = objective
        self._unforeseen = unforeseen_share

    def reason(self) -> str:
        """Returns why the candidate was chosen, and its pull."""
        best, why = self._best, self._choice_reason()
        if best.pull_source is not None:
            took, instead = format_duration(best.prefill_seconds), format_duration(best.recompute_seconds)
            why += (
                f"; {best.pull_tokens:.0f} tokens from {best.pull_source}: {took} instead of {instead} to compute them"
            )
        return why

    def _choice_reason(self) -> str:
        best, objective = self._best, self._objective
        if self._rule == "only-one":
            return "the only instance that can take it"
        first = f"first token in about {format_duration(best.ttft_seconds)}"
        if not self._feasible:
            return f"no candidate meets the TTFT target of {format_duration(objective)}: {first}"
        if self._rule == "affinity":
            place = (
                "a home"
                if best.is_home
                else "the holder of the longest prefix"
                if best.is_holder
                else "it served the session last"
            )
            held = f" with about {best.matched_tokens:,.0f} tokens cached" if best.matched_tokens else ""
            return f"{place}{held}; {first}"
        if self._rule == "slo-spill":
            return f"both homes over the TTFT target of {format_duration(objective)}; {first} here"
        return f"cheaper than its homes; {first}"

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        return tuple(
            RejectedCandidate(candidate.id, self._rejection(candidate))
            for candidate in self._candidates
            if candidate is not self._best
        )

    def inputs(self) -> Mapping[str, DecisionInput]:
        """Returns the numbers of every candidate and of the fleet, by name."""
        table = {
            "mean/backlog_seconds": DecisionInput(self._mean),
            "mean/unforeseen_share": DecisionInput(self._unforeseen),
            "mean/non_home_price": DecisionInput(
                non_home_price(self._unforeseen, _busy_share(self._mean, self._objective))
            ),
        }
        for candidate in self._candidates:
            table[f"{candidate.id}/backlog_seconds"] = DecisionInput(candidate.backlog_seconds)
            table[f"{candidate.id}/matched_tokens"] = DecisionInput(candidate.matched_tokens)
            if candidate.indexed_tokens >= 0.0:
                table[f"{candidate.id}/indexed_tokens"] = DecisionInput(candidate.indexed_tokens)
            if candidate.pull_source is not None:
                table[f"{candidate.id}/pull_tokens"] = DecisionInput(candidate.pull_tokens)
                table[f"{candidate.id}/recompute_seconds"] = DecisionInput(candidate.recompute_seconds)
            if candidate.load_seconds:
                table[f"{candidate.id}/load_seconds"] = DecisionInput(candidate.load_seconds)
            table[f"{candidate.id}/predicted_ttft_seconds"] = DecisionInput(candidate.ttft_seconds)
            table[f"{candidate.id}/home"] = DecisionInput(float(candidate.is_home))
            if candidate.served_session:
                table[f"{candidate.id}/session_last"] = DecisionInput(1.0)
            if candidate.is_holder:
                table[f"{candidate.id}/longest_prefix"] = DecisionInput(1.0)
            table[f"{candidate.id}/cost_seconds"] = DecisionInput(candidate.cost_seconds)
        return table

    def _rejection(self, candidate: Candidate) -> str:
        objective = self._objective
        if candidate.ttft_seconds > objective and self._best.ttft_seconds <= objective:
            return f"first token in {format_duration(candidate.ttft_seconds)}, over the TTFT target of {format_duration(objective)}"
        if self._best.ttft_seconds > objective and candidate.ttft_seconds > self._best.ttft_seconds:
            return f"first token later: {format_duration(candidate.ttft_seconds)}"
        mine, theirs = format_duration(candidate.cost_seconds), format_duration(self._best.cost_seconds)
        if mine == theirs:
            return f"costs as much ({mine}); the first of equals is chosen"
        return f"costs {mine} against {theirs}"
