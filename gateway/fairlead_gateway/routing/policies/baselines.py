"""Routing as others publish it, on what this gateway knows: baselines, and the way over for those who come from there.

Each function has the rule and the constants of its source, read in the version named. Three things are ours in all of them: load is
what gateways have dispatched and not seen the end of (the sources scrape it, later), a prefix is matched in bytes of the prompt
against what was sent and what engines tell, and a tie goes by a hash of request and instance, since a fixed order sends everything
to one of several that are equal.

| preset | source | rule |
|---|---|---|
| power-of-two | Mitzenmacher, 2001 | of two drawn at random, the one with fewer requests |
| chwbl | KubeAI 0.2x; Mirrokni et al., arXiv 1608.01350 | around a ring to the first with at most 1.25 × the mean load |
| prefix-cache | AIBrix, Helm values | spread over 16: fewest requests; else the longest match with at most mean + 2 σ |
| cache-aware | SGLang router 0.x | spread over 32 and 1.1 ×: fewest; else a match over one half; else who holds least |
| llm-d | llm-d EPP 0.10, default profile | 3 · matched share + 2 · shortness of the queue + 2 · free memory, the most |
| lmetric | LMetric, OSDI 2026 | (queued + own uncached prefill) × batch, the least |
| min-ttft | Mooncake's conductor, FAST 2025 | queued + own uncached prefill, the least |
"""

import math
from typing import Final

from fairlead.decision import Decision
from fairlead_gateway.routing.policies.policy_input import PolicyCandidate, PolicyInput
from fairlead_gateway.routing.policies.scored_decision import least_inflight, scored_decision

CHWBL_MAX_LOAD_RATIO: Final = 1.25
AIBRIX_SPREAD: Final = 16
AIBRIX_SIGMAS: Final = 2.0
SGLANG_SPREAD: Final = 32
SGLANG_RATIO: Final = 1.1
SGLANG_MATCH: Final = 0.5
LLMD_PREFIX_WEIGHT, LLMD_QUEUE_WEIGHT, LLMD_MEMORY_WEIGHT = 3.0, 2.0, 2.0


def power_of_two(policy_input: PolicyInput) -> Decision:
    """Two are drawn by a hash of the request's id; every instance has the same chance."""
    candidates = policy_input.candidates
    digest = policy_input.tie_break("")
    first = digest % len(candidates)
    second = (first + 1 + (digest >> 32) % (len(candidates) - 1)) % len(candidates) if len(candidates) > 1 else first
    first_drawn, second_drawn = candidates[first], candidates[second]
    best = second_drawn if second_drawn.inflight < first_drawn.inflight else first_drawn
    reason = "fewer requests in flight than the other one drawn"
    return _decide_by_inflight(policy_input, best, "power-of-two", reason, [first_drawn, second_drawn])


def overloaded_ids(candidates: list[PolicyCandidate]) -> frozenset[str]:
    """Those that chwbl passes by: over 1.25 × what each would have if all carried the same, this request included. KubeAI looks at
    the load before the request, not with it."""
    max_inflight = CHWBL_MAX_LOAD_RATIO * (sum([item.inflight for item in candidates]) + 1) / len(candidates)
    return frozenset([item.id for item in candidates if item.inflight > max_inflight])


def chwbl(policy_input: PolicyInput) -> Decision:
    """The first on the ring that is not ``overloaded``; when all are, the least busy."""
    candidates = policy_input.candidates
    first = policy_input.first_on_ring(overloaded_ids(candidates))
    if first is not None:
        return _decide_by_inflight(
            policy_input, policy_input.candidate(first), "chwbl", "first on the ring that is not overloaded", candidates
        )
    reason = "all on the ring are overloaded: fewest in flight"
    return _decide_by_inflight(policy_input, least_inflight(policy_input, candidates), "chwbl", reason, candidates)


def prefix_cache(policy_input: PolicyInput) -> Decision:
    """AIBrix. Of those that match equally far the one with fewest requests; without a match that may take it, the fewest of all."""
    candidates = policy_input.candidates
    counts = [item.inflight for item in candidates]
    if max(counts) - min(counts) > AIBRIX_SPREAD:
        reason = f"loads are over {AIBRIX_SPREAD} apart: fewest in flight"
        return _decide_by_inflight(
            policy_input, least_inflight(policy_input, candidates), "prefix-cache", reason, candidates
        )
    mean = sum(counts) / len(counts)
    bound = mean + AIBRIX_SIGMAS * math.sqrt(sum([(count - mean) ** 2 for count in counts]) / len(counts))
    able = [item for item in candidates if item.matched_tokens > 0.0 and item.inflight <= bound]
    if not able:
        reason = "nobody with a part of the prompt may take it: fewest in flight"
        return _decide_by_inflight(
            policy_input, least_inflight(policy_input, candidates), "prefix-cache", reason, candidates
        )
    longest = max([item.matched_tokens for item in able])
    best = least_inflight(policy_input, [item for item in able if item.matched_tokens == longest])
    return _decide_by_match(policy_input, best, "prefix-cache", f"longest match with at most {bound:.1f} in flight")


def cache_aware(policy_input: PolicyInput) -> Decision:
    """SGLang. Who holds least is told by the bytes of prompts that should be cached there, which its tree is of too."""
    candidates = policy_input.candidates
    least = least_inflight(policy_input, candidates)
    most = max([item.inflight for item in candidates])
    if most - least.inflight > SGLANG_SPREAD and most > SGLANG_RATIO * least.inflight:
        reason = "loads are out of balance: fewest in flight"
        return _decide_by_inflight(policy_input, least, "cache-aware", reason, candidates)
    best = _lowest_cost(policy_input, [-item.matched_tokens for item in candidates])
    if best.matched_tokens > SGLANG_MATCH * policy_input.prompt_tokens:
        return _decide_by_match(policy_input, best, "cache-aware", "holds most of the prompt, over a half")
    cached_bytes = [float(item.cached_bytes) for item in candidates]
    reason = "nobody holds half of the prompt: least held"
    return _decide_by_values(
        policy_input, _lowest_cost(policy_input, cached_bytes), "cache-aware", reason, "held_bytes", cached_bytes
    )


def llm_d(policy_input: PolicyInput) -> Decision:
    """The sum of three scores between 0 and 1; queues are scored between the shortest and the longest."""
    candidates, prompt = policy_input.candidates, policy_input.prompt_tokens
    queues = [item.waiting for item in candidates]
    least, spread = min(queues), max(queues) - min(queues)
    costs = []
    for item in candidates:
        prefix = min(1.0, item.matched_tokens / prompt) if prompt > 0.0 else 0.0
        queue = 1.0 - (item.waiting - least) / spread if spread else 1.0
        memory = 1.0 - min(1.0, item.inflight_tokens / item.kv_tokens)
        costs.append(-(LLMD_PREFIX_WEIGHT * prefix + LLMD_QUEUE_WEIGHT * queue + LLMD_MEMORY_WEIGHT * memory))
    reason = f"highest score, {-min(costs):.2f} of 7"
    return _decide_by_values(
        policy_input, _lowest_cost(policy_input, costs), "llm-d", reason, "score", [-cost for cost in costs]
    )


def lmetric(policy_input: PolicyInput) -> Decision:
    """Prefill in seconds, where the source counts tokens: what attention costs is in it. The batch is counted with this request."""
    costs = [(item.backlog_seconds + item.prefill_seconds) * (item.inflight + 1) for item in policy_input.candidates]
    best = _lowest_cost(policy_input, costs)
    return _decide_by_values(policy_input, best, "lmetric", "least prefill times batch", "prefill_times_batch", costs)


def min_ttft(policy_input: PolicyInput) -> Decision:
    """The soonest first token."""
    costs = [item.ttft_seconds for item in policy_input.candidates]
    best = _lowest_cost(policy_input, costs)
    return _decide_by_values(policy_input, best, "min-ttft", "soonest first token", "predicted_ttft_seconds", costs)


def _lowest_cost(policy_input: PolicyInput, costs: list[float]) -> PolicyCandidate:
    """The option of the lowest cost; of equals the one that the lot falls on."""
    least = min(costs)
    equal = [item for item, cost in zip(policy_input.candidates, costs, strict=True) if cost == least]
    best = equal[0]
    for item in equal[1:]:
        if policy_input.tie_break(item.id) < policy_input.tie_break(best.id):
            best = item
    return best


def _decide_by_values(
    policy_input: PolicyInput, best: PolicyCandidate, rule: str, reason: str, score_name: str, values: list[float]
) -> Decision:
    scores = {item.id: value for item, value in zip(policy_input.candidates, values, strict=True)}
    return scored_decision(policy_input, best, rule, reason, score_name=score_name, scores=scores)


def _decide_by_match(policy_input: PolicyInput, best: PolicyCandidate, rule: str, reason: str) -> Decision:
    return _decide_by_values(
        policy_input, best, rule, reason, "matched_tokens", [item.matched_tokens for item in policy_input.candidates]
    )


def _decide_by_inflight(
    policy_input: PolicyInput, best: PolicyCandidate, rule: str, reason: str, compared: list[PolicyCandidate]
) -> Decision:
    scores = {item.id: float(item.inflight) for item in compared}
    return scored_decision(policy_input, best, rule, reason, score_name="inflight", scores=scores)


def round_robin(policy_input: PolicyInput) -> Decision:
    """The next instance, counting around."""
    options = policy_input.candidates
    turn = policy_input.decision_count % len(options)
    return scored_decision(
        policy_input, options[turn], "round-robin", f"turn {turn + 1} of {len(options)}", score_name="turn", scores={}
    )


def least_request(policy_input: PolicyInput) -> Decision:
    """The instance with the fewest of this gateway's requests in flight."""
    best = least_inflight(policy_input, policy_input.candidates)
    scores = {item.id: float(item.inflight) for item in policy_input.candidates}
    return scored_decision(
        policy_input, best, "least-request", f"fewest in flight: {best.inflight}", score_name="inflight", scores=scores
    )


def session(policy_input: PolicyInput) -> Decision:
    """The first home of the session (or, without a session id, of the prompt's key), whatever its load."""
    best = policy_input.candidate(policy_input.homes[0])
    what = "the session's" if policy_input.is_session_key else "no session id was sent; the prompt's"
    return scored_decision(policy_input, best, "session", f"{what} home", score_name="home", scores={})
