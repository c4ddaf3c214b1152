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
from fairlead_gateway.routing.presets.answer import chosen, fewest
from fairlead_gateway.routing.presets.question import Option, Question

CHWBL_LOAD: Final = 1.25
AIBRIX_SPREAD: Final = 16
AIBRIX_SIGMAS: Final = 2.0
SGLANG_SPREAD: Final = 32
SGLANG_RATIO: Final = 1.1
SGLANG_MATCH: Final = 0.5
LLMD_PREFIX, LLMD_QUEUE, LLMD_MEMORY = 3.0, 2.0, 2.0


def power_of_two(question: Question) -> Decision:
    """Two are drawn by a hash of the request's id; every instance has the same chance."""
    options = question.options
    digest = question.lot("")
    first = digest % len(options)
    second = (first + 1 + (digest >> 32) % (len(options) - 1)) % len(options) if len(options) > 1 else first
    one, other = options[first], options[second]
    best = other if other.inflight < one.inflight else one
    reason = "fewer requests in flight than the other one drawn"
    return _by_inflight(question, best, "power-of-two", reason, [one, other])


def overloaded(options: list[Option]) -> frozenset[str]:
    """Those that chwbl passes by: over 1.25 × what each would have if all carried the same, this request included. KubeAI looks at
    the load before the request, not with it."""
    most = CHWBL_LOAD * (sum([item.inflight for item in options]) + 1) / len(options)
    return frozenset([item.id for item in options if item.inflight > most])


def chwbl(question: Question) -> Decision:
    """The first on the ring that is not ``overloaded``; when all are, the least busy."""
    options = question.options
    first = question.ring(overloaded(options))
    if first is not None:
        return _by_inflight(
            question, question.option(first), "chwbl", "first on the ring that is not overloaded", options
        )
    reason = "all on the ring are overloaded: fewest in flight"
    return _by_inflight(question, fewest(question, options), "chwbl", reason, options)


def prefix_cache(question: Question) -> Decision:
    """AIBrix. Of those that match equally far the one with fewest requests; without a match that may take it, the fewest of all."""
    options = question.options
    counts = [item.inflight for item in options]
    if max(counts) - min(counts) > AIBRIX_SPREAD:
        reason = f"loads are over {AIBRIX_SPREAD} apart: fewest in flight"
        return _by_inflight(question, fewest(question, options), "prefix-cache", reason, options)
    mean = sum(counts) / len(counts)
    bound = mean + AIBRIX_SIGMAS * math.sqrt(sum([(count - mean) ** 2 for count in counts]) / len(counts))
    able = [item for item in options if item.matched_tokens > 0.0 and item.inflight <= bound]
    if not able:
        reason = "nobody with a part of the prompt may take it: fewest in flight"
        return _by_inflight(question, fewest(question, options), "prefix-cache", reason, options)
    longest = max([item.matched_tokens for item in able])
    best = fewest(question, [item for item in able if item.matched_tokens == longest])
    return _by_match(question, best, "prefix-cache", f"longest match with at most {bound:.1f} in flight")


def cache_aware(question: Question) -> Decision:
    """SGLang. Who holds least is told by the bytes of prompts that should be cached there, which its tree is of too."""
    options = question.options
    least = fewest(question, options)
    most = max([item.inflight for item in options])
    if most - least.inflight > SGLANG_SPREAD and most > SGLANG_RATIO * least.inflight:
        reason = "loads are out of balance: fewest in flight"
        return _by_inflight(question, least, "cache-aware", reason, options)
    best = _lowest(question, [-item.matched_tokens for item in options])
    if best.matched_tokens > SGLANG_MATCH * question.prompt_tokens:
        return _by_match(question, best, "cache-aware", "holds most of the prompt, over a half")
    held = [float(item.held_bytes) for item in options]
    reason = "nobody holds half of the prompt: least held"
    return _by(question, _lowest(question, held), "cache-aware", reason, "held_bytes", held)


def llm_d(question: Question) -> Decision:
    """The sum of three scores between 0 and 1; queues are scored between the shortest and the longest."""
    options, prompt = question.options, question.prompt_tokens
    queues = [item.waiting for item in options]
    least, spread = min(queues), max(queues) - min(queues)
    costs = []
    for item in options:
        prefix = min(1.0, item.matched_tokens / prompt) if prompt > 0.0 else 0.0
        queue = 1.0 - (item.waiting - least) / spread if spread else 1.0
        memory = 1.0 - min(1.0, item.inflight_tokens / item.kv_tokens)
        costs.append(-(LLMD_PREFIX * prefix + LLMD_QUEUE * queue + LLMD_MEMORY * memory))
    reason = f"highest score, {-min(costs):.2f} of 7"
    return _by(question, _lowest(question, costs), "llm-d", reason, "score", [-cost for cost in costs])


def lmetric(question: Question) -> Decision:
    """Prefill in seconds, where the source counts tokens: what attention costs is in it. The batch is counted with this request."""
    costs = [(item.backlog_seconds + item.own_seconds) * (item.inflight + 1) for item in question.options]
    best = _lowest(question, costs)
    return _by(question, best, "lmetric", "least prefill times batch", "prefill_times_batch", costs)


def min_ttft(question: Question) -> Decision:
    """The soonest first token."""
    costs = [item.ttft_seconds for item in question.options]
    best = _lowest(question, costs)
    return _by(question, best, "min-ttft", "soonest first token", "predicted_ttft_seconds", costs)


def _lowest(question: Question, costs: list[float]) -> Option:
    """The option of the lowest cost; of equals the one that the lot falls on."""
    least = min(costs)
    equal = [item for item, cost in zip(question.options, costs, strict=True) if cost == least]
    best = equal[0]
    for item in equal[1:]:
        if question.lot(item.id) < question.lot(best.id):
            best = item
    return best


def _by(question: Question, best: Option, rule: str, reason: str, what: str, values: list[float]) -> Decision:
    scores = {item.id: value for item, value in zip(question.options, values, strict=True)}
    return chosen(question, best, rule, reason, what=what, scores=scores)


def _by_match(question: Question, best: Option, rule: str, reason: str) -> Decision:
    return _by(question, best, rule, reason, "matched_tokens", [item.matched_tokens for item in question.options])


def _by_inflight(question: Question, best: Option, rule: str, reason: str, looked_at: list[Option]) -> Decision:
    scores = {item.id: float(item.inflight) for item in looked_at}
    return chosen(question, best, rule, reason, what="inflight", scores=scores)
