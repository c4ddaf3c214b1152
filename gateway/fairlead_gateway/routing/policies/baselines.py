"""The baseline policies: those of other routers and the plain ones, with this gateway's inputs.

Each function has the rule and constants of its source, in the version named. Three things differ in
all of them. Load is what gateways have dispatched and not seen finish; the sources scrape it,
later. A prefix is matched in bytes of the prompt. A tie goes by a hash of request and instance,
since a fixed order sends everything to the first of equals.

- round-robin, least-request: every load balancer. The next; fewest requests.
- session: every load balancer. The session's first home, whatever its load.
- power-of-two: Mitzenmacher, 2001. Of two drawn at random, the one with fewer requests.
- chwbl: KubeAI 0.2x; Mirrokni et al., arXiv 1608.01350. First on a ring with at most 1.25 × mean
  load.
- prefix-cache: AIBrix, Helm values. Spread over 16: fewest; else longest match, at most
  mean + 2 σ.
- cache-aware: SGLang router 0.x. Spread over 32 and 1.1 ×: fewest; else match over one half; else
  least cached.
- llm-d: llm-d EPP 0.10, default profile. 3 · matched share + 2 · queue + 2 · free memory, the most.
- lmetric: LMetric, OSDI 2026. (Queued + own uncached prefill) × batch, the least.
- min-ttft: Mooncake's conductor, FAST 2025. Queued + own uncached prefill, the least.
"""

import math
from typing import Final

from fairlead.decision import Decision
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.policies.policy_input import PolicyInput, least_inflight, scored_decision

CHWBL_MAX_LOAD_RATIO: Final = 1.25
AIBRIX_SPREAD: Final = 16
AIBRIX_SIGMAS: Final = 2.0
SGLANG_SPREAD: Final = 32
SGLANG_RATIO: Final = 1.1
SGLANG_MATCH: Final = 0.5
LLMD_PREFIX_WEIGHT, LLMD_QUEUE_WEIGHT, LLMD_MEMORY_WEIGHT = 3.0, 2.0, 2.0


def power_of_two(policy_input: PolicyInput) -> Decision:
    """Chooses, of two instances, the one with fewer requests in flight.

    The two are drawn by a hash of the request's id; every instance has the same chance.
    """
    candidates = policy_input.candidates
    digest = policy_input.tie_break("")
    first = digest % len(candidates)
    second = (first + 1 + (digest >> 32) % (len(candidates) - 1)) % len(candidates) if len(candidates) > 1 else first
    first_drawn, second_drawn = candidates[first], candidates[second]
    best = second_drawn if second_drawn.inflight < first_drawn.inflight else first_drawn
    reason = "fewer requests in flight than the other one drawn"
    return _decide_by_inflight(policy_input, best, "power-of-two", reason, [first_drawn, second_drawn])


def overloaded_ids(candidates: list[Candidate]) -> frozenset[str]:
    """Returns the instances that chwbl skips: those with over 1.25 × the mean load.

    As in KubeAI, the mean includes this request, and the load of an instance does not.
    """
    max_inflight = CHWBL_MAX_LOAD_RATIO * (sum([candidate.inflight for candidate in candidates]) + 1) / len(candidates)
    return frozenset([candidate.id for candidate in candidates if candidate.inflight > max_inflight])


def chwbl(policy_input: PolicyInput) -> Decision:
    """Chooses the first on the ring that is not overloaded; if all are, the least busy."""
    candidates = policy_input.candidates
    first = policy_input.first_on_ring(overloaded_ids(candidates))
    if first is not None:
        return _decide_by_inflight(
            policy_input, policy_input.candidate(first), "chwbl", "first on the ring that is not overloaded", candidates
        )
    reason = "all on the ring are overloaded: fewest in flight"
    return _decide_by_inflight(policy_input, least_inflight(policy_input, candidates), "chwbl", reason, candidates)


def prefix_cache(policy_input: PolicyInput) -> Decision:
    """Chooses as AIBrix does: the longest match below the load limit, and of equal ones the least
    busy. Without such a match, or with uneven loads, the least busy instance is chosen.
    """
    candidates = policy_input.candidates
    counts = [candidate.inflight for candidate in candidates]
    if max(counts) - min(counts) > AIBRIX_SPREAD:
        reason = f"loads are over {AIBRIX_SPREAD} apart: fewest in flight"
        return _decide_by_inflight(
            policy_input, least_inflight(policy_input, candidates), "prefix-cache", reason, candidates
        )
    mean = sum(counts) / len(counts)
    bound = mean + AIBRIX_SIGMAS * math.sqrt(sum([(count - mean) ** 2 for count in counts]) / len(counts))
    able = [candidate for candidate in candidates if candidate.matched_tokens > 0.0 and candidate.inflight <= bound]
    if not able:
        reason = "no eligible instance has a part of the prompt cached: fewest in flight"
        return _decide_by_inflight(
            policy_input, least_inflight(policy_input, candidates), "prefix-cache", reason, candidates
        )
    longest = max([candidate.matched_tokens for candidate in able])
    best = least_inflight(policy_input, [candidate for candidate in able if candidate.matched_tokens == longest])
    return _decide_by_match(policy_input, best, "prefix-cache", f"longest match with at most {bound:.1f} in flight")


def cache_aware(policy_input: PolicyInput) -> Decision:
    """Chooses as SGLang does: with uneven loads, the least busy instance.

    Otherwise the longest match over half of the prompt, else the fewest cached bytes.
    """
    candidates = policy_input.candidates
    least_busy = least_inflight(policy_input, candidates)
    max_inflight = max([candidate.inflight for candidate in candidates])
    if max_inflight - least_busy.inflight > SGLANG_SPREAD and max_inflight > SGLANG_RATIO * least_busy.inflight:
        reason = "loads are out of balance: fewest in flight"
        return _decide_by_inflight(policy_input, least_busy, "cache-aware", reason, candidates)
    best = _lowest_cost(policy_input, [-candidate.matched_tokens for candidate in candidates])
    if best.matched_tokens > SGLANG_MATCH * policy_input.prompt_tokens:
        return _decide_by_match(policy_input, best, "cache-aware", "has most of the prompt cached, over a half")
    cached_bytes = [float(candidate.cached_bytes) for candidate in candidates]
    reason = "no instance has half of the prompt cached: least cached"
    return _decide_by_values(
        policy_input, _lowest_cost(policy_input, cached_bytes), "cache-aware", reason, "held_bytes", cached_bytes
    )


def llm_d(policy_input: PolicyInput) -> Decision:
    """Chooses by a weighted sum of three scores from 0 to 1: matched share, queue, free memory.

    The shortest queue scores 1, the longest 0.
    """
    candidates, prompt = policy_input.candidates, policy_input.prompt_tokens
    queues = [candidate.waiting for candidate in candidates]
    least, spread = min(queues), max(queues) - min(queues)
    costs = []
    for candidate in candidates:
        prefix = min(1.0, candidate.matched_tokens / prompt) if prompt > 0.0 else 0.0
        queue = 1.0 - (candidate.waiting - least) / spread if spread else 1.0
        memory = 1.0 - min(1.0, candidate.inflight_tokens / candidate.kv_tokens)
        costs.append(-(LLMD_PREFIX_WEIGHT * prefix + LLMD_QUEUE_WEIGHT * queue + LLMD_MEMORY_WEIGHT * memory))
    reason = f"highest score, {-min(costs):.2f} of 7"
    return _decide_by_values(
        policy_input, _lowest_cost(policy_input, costs), "llm-d", reason, "score", [-cost for cost in costs]
    )


def lmetric(policy_input: PolicyInput) -> Decision:
    """Chooses by prefill times batch, this request included.

    Prefill is in seconds, where the source counts tokens: the cost of attention is included.
    """
    costs = [
        (candidate.backlog_seconds + candidate.prefill_seconds) * (candidate.inflight + 1)
        for candidate in policy_input.candidates
    ]
    best = _lowest_cost(policy_input, costs)
    return _decide_by_values(policy_input, best, "lmetric", "least prefill times batch", "prefill_times_batch", costs)


def min_ttft(policy_input: PolicyInput) -> Decision:
    """Chooses the instance with the lowest predicted TTFT."""
    costs = [candidate.ttft_seconds for candidate in policy_input.candidates]
    best = _lowest_cost(policy_input, costs)
    return _decide_by_values(policy_input, best, "min-ttft", "soonest first token", "predicted_ttft_seconds", costs)


def _lowest_cost(policy_input: PolicyInput, costs: list[float]) -> Candidate:
    """Returns the candidate of the lowest cost; ties go by hash."""
    least = min(costs)
    equal = [candidate for candidate, cost in zip(policy_input.candidates, costs, strict=True) if cost == least]
    best = equal[0]
    for candidate in equal[1:]:
        if policy_input.tie_break(candidate.id) < policy_input.tie_break(best.id):
            best = candidate
    return best


def _decide_by_values(
    policy_input: PolicyInput, best: Candidate, rule: str, reason: str, score_name: str, values: list[float]
) -> Decision:
    scores = {candidate.id: value for candidate, value in zip(policy_input.candidates, values, strict=True)}
    return scored_decision(policy_input, best, rule, reason, score_name=score_name, scores=scores)


def _decide_by_match(policy_input: PolicyInput, best: Candidate, rule: str, reason: str) -> Decision:
    return _decide_by_values(
        policy_input,
        best,
        rule,
        reason,
        "matched_tokens",
        [candidate.matched_tokens for candidate in policy_input.candidates],
    )


def _decide_by_inflight(
    policy_input: PolicyInput, best: Candidate, rule: str, reason: str, compared: list[Candidate]
) -> Decision:
    scores = {candidate.id: float(candidate.inflight) for candidate in compared}
    return scored_decision(policy_input, best, rule, reason, score_name="inflight", scores=scores)


def round_robin(policy_input: PolicyInput) -> Decision:
    """Chooses the next instance in turn."""
    options = policy_input.candidates
    turn = policy_input.decision_count % len(options)
    return scored_decision(
        policy_input, options[turn], "round-robin", f"turn {turn + 1} of {len(options)}", score_name="turn", scores={}
    )


def least_request(policy_input: PolicyInput) -> Decision:
    """Chooses the instance with the fewest of this gateway's requests in flight."""
    best = least_inflight(policy_input, policy_input.candidates)
    scores = {candidate.id: float(candidate.inflight) for candidate in policy_input.candidates}
    return scored_decision(
        policy_input, best, "least-request", f"fewest in flight: {best.inflight}", score_name="inflight", scores=scores
    )


def session(policy_input: PolicyInput) -> Decision:
    """Chooses the first home of the session, or of the prompt's key without a session id."""
    best = policy_input.candidate(policy_input.homes[0])
    what = "the session's" if policy_input.is_session_key else "no session id was sent; the prompt's"
    return scored_decision(policy_input, best, "session", f"{what} home", score_name="home", scores={})
