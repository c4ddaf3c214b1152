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
from collections.abc import Callable, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision, Input, Rejected
from fairlead_gateway.routing.request import Candidate

CHWBL_LOAD: Final = 1.25
AIBRIX_SPREAD: Final = 16
AIBRIX_SIGMAS: Final = 2.0
SGLANG_SPREAD: Final = 32
SGLANG_RATIO: Final = 1.1
SGLANG_MATCH: Final = 0.5
LLMD_PREFIX, LLMD_QUEUE, LLMD_MEMORY = 3.0, 2.0, 2.0


def power_of_two(all_: Sequence[Candidate], request_id: str) -> Decision:
    """Two are drawn by a hash of the request's id; every instance has the same chance."""
    digest = xxhash.xxh3_64_intdigest(request_id.encode())
    first = digest % len(all_)
    second = (first + 1 + (digest >> 32) % (len(all_) - 1)) % len(all_) if len(all_) > 1 else first
    one, other = all_[first], all_[second]
    best = other if other.inflight < one.inflight else one
    return _decided(best, "power-of-two", "fewer requests in flight than the other one drawn", [one, other], _inflight)


def overloaded(all_: Sequence[Candidate]) -> frozenset[str]:
    """Those that chwbl passes by: over 1.25 × what each would have if all carried the same, this request included. KubeAI looks at
    the load before the request, not with it."""
    most = CHWBL_LOAD * (sum([item.inflight for item in all_]) + 1) / len(all_)
    return frozenset([item.id for item in all_ if item.inflight > most])


def chwbl(all_: Sequence[Candidate], home: str | None) -> Decision:
    """``home``: the first on the ring that is not ``overloaded``; None when all are, and then the least busy is taken."""
    for item in all_:
        if item.id == home:
            return _decided(item, "chwbl", "first on the ring that is not overloaded", all_, _inflight)
    best = min(all_, key=_by_inflight)
    return _decided(best, "chwbl", "all on the ring are overloaded: fewest in flight", all_, _inflight)


def prefix_cache(all_: Sequence[Candidate], request_id: str) -> Decision:
    """AIBrix. Of those that match equally far the one with fewest requests; without a match that may take it, the fewest of all."""
    fewest = min(all_, key=_tie(request_id, _by_inflight))
    counts = [item.inflight for item in all_]
    if max(counts) - min(counts) > AIBRIX_SPREAD:
        return _decided(
            fewest, "prefix-cache", f"loads are over {AIBRIX_SPREAD} apart: fewest in flight", all_, _inflight
        )
    mean = sum(counts) / len(counts)
    bound = mean + AIBRIX_SIGMAS * math.sqrt(sum([(count - mean) ** 2 for count in counts]) / len(counts))
    able = [item for item in all_ if item.matched_tokens > 0.0 and item.inflight <= bound]
    if not able:
        return _decided(
            fewest, "prefix-cache", "nobody with a part of the prompt may take it: fewest in flight", all_, _inflight
        )

    def rank(item: Candidate) -> tuple[float, int]:
        return -item.matched_tokens, item.inflight

    best = min(able, key=_tie(request_id, rank))
    return _decided(best, "prefix-cache", f"longest match with at most {bound:.1f} in flight", all_, _matched)


def cache_aware(all_: Sequence[Candidate], request_id: str, prompt_tokens: float) -> Decision:
    """SGLang. Who holds least is told by tokens in flight: the size of its tree is not."""
    fewest = min(all_, key=_tie(request_id, _by_inflight))
    most = max([item.inflight for item in all_])
    if most - fewest.inflight > SGLANG_SPREAD and most > SGLANG_RATIO * fewest.inflight:
        return _decided(fewest, "cache-aware", "loads are out of balance: fewest in flight", all_, _inflight)

    def rank(item: Candidate) -> float:
        return -item.matched_tokens

    best = min(all_, key=_tie(request_id, rank))
    if best.matched_tokens > SGLANG_MATCH * prompt_tokens:
        return _decided(best, "cache-aware", "holds most of the prompt, over a half", all_, _matched)

    def held(item: Candidate) -> float:
        return item.inflight_tokens

    least = min(all_, key=_tie(request_id, held))
    return _decided(least, "cache-aware", "nobody holds half of the prompt: least held", all_, _matched)


def llm_d(all_: Sequence[Candidate], request_id: str, prompt_tokens: float) -> Decision:
    """The sum of three scores between 0 and 1; queues are scored between the shortest and the longest."""
    queues = [item.waiting for item in all_]
    least, spread = min(queues), max(queues) - min(queues)

    def score(item: Candidate) -> float:
        prefix = min(1.0, item.matched_tokens / prompt_tokens) if prompt_tokens > 0.0 else 0.0
        queue = 1.0 - (item.waiting - least) / spread if spread else 1.0
        memory = 1.0 - min(1.0, item.inflight_tokens / item.kv_tokens)
        return -(LLMD_PREFIX * prefix + LLMD_QUEUE * queue + LLMD_MEMORY * memory)

    best = min(all_, key=_tie(request_id, score))
    return _decided(
        best, "llm-d", f"highest score, {-score(best):.2f} of 7", all_, lambda item: ("score", -score(item))
    )


def lmetric(all_: Sequence[Candidate], request_id: str) -> Decision:
    """Prefill in seconds, where the source counts tokens: what attention costs is in it. The batch is counted with this request."""

    def cost(item: Candidate) -> float:
        return (item.backlog_seconds + item.own_seconds) * (item.inflight + 1)

    best = min(all_, key=_tie(request_id, cost))
    return _decided(
        best, "lmetric", "least prefill times batch", all_, lambda item: ("prefill_times_batch", cost(item))
    )


def min_ttft(all_: Sequence[Candidate], request_id: str) -> Decision:
    """The soonest first token."""

    def first(item: Candidate) -> float:
        return item.ttft_seconds

    best = min(all_, key=_tie(request_id, first))
    return _decided(best, "min-ttft", "soonest first token", all_, lambda item: ("predicted_ttft_seconds", first(item)))


def _tie(request_id: str, rank: "Callable[[Candidate], object]") -> "Callable[[Candidate], tuple[object, int]]":
    def key(item: Candidate) -> tuple[object, int]:
        return rank(item), xxhash.xxh3_64_intdigest(f"{request_id}|{item.id}".encode())

    return key


def _by_inflight(item: Candidate) -> int:
    return item.inflight


def _inflight(item: Candidate) -> tuple[str, float]:
    return "inflight", float(item.inflight)


def _matched(item: Candidate) -> tuple[str, float]:
    return "matched_tokens", item.matched_tokens


def _decided(
    best: Candidate,
    rule: str,
    reason: str,
    looked_at: Sequence[Candidate],
    shown: "Callable[[Candidate], tuple[str, float]]",
) -> Decision:
    """The decision, with what decided it of each that was looked at."""
    mine = shown(best)[1]
    inputs: dict[str, Input] = {}
    rejected = []
    for item in looked_at:
        what, value = shown(item)
        inputs[f"{item.id}/{what}"] = Input(value)
        if item is not best:
            rejected.append(Rejected(item.id, f"{what.replace('_', ' ')} {value:g} against {mine:g}"))
    for item in looked_at:
        inputs.setdefault(f"{item.id}/inflight", Input(float(item.inflight)))
    return Decision(
        best.id,
        rule,
        reason,
        tuple(rejected),
        inputs,
        matched_tokens=best.matched_tokens,
        ttft_seconds=best.ttft_seconds,
    )
