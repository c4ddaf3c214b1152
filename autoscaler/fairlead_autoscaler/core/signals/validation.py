"""What no counter can be is missing: NaN, infinite, negative, and more than any cluster could have counted.

A value that is not there stays None. Nothing here turns a doubt into a number: who reads None decides what to do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import GatewayTraffic, PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState

_WARM_UP_SECONDS = 10.0
"""Two ticks: so long after its start a replica has served part of a tick, and computes at once what was held for it."""
_NOT_SERVING = (ReplicaState.PENDING, ReplicaState.ASLEEP, ReplicaState.WAKING)
_MAX_COUNT = 1e12
"""Tokens, requests or seconds of one tick: more was never counted, whatever a counter says after it was reset."""
_MAX_PROMPT_TOKENS = 1e7
"""Tokens of a prompt: no engine takes a longer one. A mean beyond it would be squared into the variance of prompts, and remembered
for hours."""


def valid_number(value: float | None) -> float | None:
    """The value, or None where no counter or gauge can read so."""
    if value is None:
        return None
    return value if 0.0 <= value <= _MAX_COUNT else None  # NaN compares false


def valid_count(value: float) -> int:
    """A count of pods; what cannot be one is 0."""
    seen = valid_number(value)
    return 0 if seen is None else int(seen)


def validated_traffic(seen: GatewayTraffic | None) -> GatewayTraffic | None:
    """What gateways counted; None where arrivals or their tokens cannot be believed. ``held`` and ``abandoned`` are then 0 at
    least."""
    if seen is None:
        return None
    arrivals, prompt = valid_number(seen.arrivals), valid_number(seen.prompt_tokens)
    if arrivals is None or prompt is None or prompt > _MAX_PROMPT_TOKENS * max(1.0, arrivals):
        return None
    held, abandoned = valid_number(seen.held), valid_number(seen.abandoned)
    kept, kept_tokens = valid_number(seen.kept), valid_number(seen.kept_tokens)
    if (held, abandoned, kept, kept_tokens) == (seen.held, seen.abandoned, seen.kept, seen.kept_tokens):
        return seen
    return GatewayTraffic(arrivals, prompt, held or 0.0, abandoned or 0.0, kept, kept_tokens)


@dataclass(frozen=True, slots=True)
class TokenGapSample:
    """What a replica did that told all of it: tokens resident, computed of prompts and generated, and the seconds between these. One
    that told a part only has none, or its engine would seem slower or faster than it is; nor has one that has only just begun: gaps
    between prompts that all come at once say little of gaps between prompts that come as they do."""

    resident_tokens: float
    prompt_tokens: float
    generated_tokens: float
    itl_seconds: float


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """Tokens generated, answers that ended and answers that began, of the replicas that told all that their role has of it."""

    generated_tokens: float = 0.0
    finished: float = 0.0
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolTotals:
    """What the replicas of a pool measured since the last tick, together. ``entry``: requests begin here. ``unseen``: of how many
    nobody knows what is in flight. ``prompt_tokens`` and ``cached_tokens`` are of replicas that told both. ``slow_tokens``: of those
    generated, how many on replicas whose mean gap passes the objective (a request's mean gap counts, which no histogram of single
    gaps tells). ``in_flight`` maps replica to running and waiting together, where it also tells what finished."""

    is_entry: bool
    unread_replicas: int
    running: float
    waiting: float
    prompt_tokens: float
    cached_tokens: float
    generated_tokens: float
    finished: float
    first_tokens: float
    gap_samples: tuple[TokenGapSample, ...]
    completions: CompletionStats
    ttft_counts: tuple[float, ...]
    itl_counts: tuple[float, ...]
    slow_tokens: float
    in_flight_by_replica: dict[str, float]
    finished_by_replica: dict[str, float]


def pool_totals(pool: PoolObservation, facts: PoolSpec, itl_seconds: float | None) -> PoolTotals | None:
    """The sum over the replicas of a pool; None where nobody could read them, or none of them that is ready said anything."""
    if pool.replicas is None:
        return None
    asked = [replica for replica in pool.replicas if replica.state not in _NOT_SERVING]
    told = [one for one in asked if valid_number(one.running) is not None or valid_number(one.finished) is not None]
    if asked and not told:
        return None
    running = waiting = prompt = cached = generated = done = first = slow = 0.0
    seen = 0
    ttft: list[float] = []
    itl: list[float] = []
    in_flight: dict[str, float] = {}
    finished: dict[str, float] = {}
    for replica in told:
        runs, waits, ended = (
            valid_number(replica.running),
            valid_number(replica.waiting),
            valid_number(replica.finished),
        )
        if runs is not None and waits is not None:
            seen += 1
            if ended is not None:
                in_flight[replica.id], finished[replica.id] = runs + waits, ended
        queued = hidden_prefill_queue(
            facts, runs, valid_number(replica.first_tokens), valid_number(replica.prompt_tokens)
        )
        running += (runs or 0.0) - queued
        waiting += (waits or 0.0) + queued
        done += ended or 0.0
        computed, hit = valid_number(replica.prompt_tokens), valid_number(replica.cached_tokens)
        if computed is not None and hit is not None:
            prompt, cached = prompt + computed, cached + hit
        tokens, seconds = valid_number(replica.generated_tokens) or 0.0, valid_number(replica.itl_seconds) or 0.0
        generated += tokens
        if itl_seconds is not None:
            slow += _slow_tokens(tokens, seconds, itl_seconds)
        began = valid_number(replica.first_tokens) or 0.0
        first += began
        if began and replica.ttft_counts is not None:
            ttft = _add_histograms(ttft, replica.ttft_counts)
        if ended and replica.itl_counts is not None:
            itl = _add_histograms(itl, replica.itl_counts)
    return PoolTotals(
        is_entry=facts.role is not Role.DECODE,
        unread_replicas=len(asked) - seen,
        running=running,
        waiting=waiting,
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        finished=done,
        first_tokens=first,
        gap_samples=_gap_samples(told, facts),
        completions=_completions(told, facts),
        ttft_counts=tuple(ttft),
        itl_counts=tuple(itl),
        slow_tokens=slow,
        in_flight_by_replica=in_flight,
        finished_by_replica=finished,
    )


def _gap_samples(told: Sequence[ReplicaMetrics], facts: PoolSpec) -> tuple[TokenGapSample, ...]:
    kv_tokens = facts.profile.kv_tokens if facts.profile else 0
    found: list[TokenGapSample] = []
    for one in told:
        share, computed, hit = (
            valid_number(one.kv_share),
            valid_number(one.prompt_tokens),
            valid_number(one.cached_tokens),
        )
        tokens, seconds = valid_number(one.generated_tokens), valid_number(one.itl_seconds)
        if share is None or computed is None or tokens is None or seconds is None:
            continue
        if facts.role is Role.DECODE and valid_number(one.waiting):
            continue  # the gap after a first token that came from elsewhere is also the wait for a place
        age = valid_number(one.age_seconds)
        if age is None or age - (valid_number(one.startup_seconds) or 0.0) < _WARM_UP_SECONDS:
            continue
        found.append(TokenGapSample(min(1.0, share) * kv_tokens, max(0.0, computed - (hit or 0.0)), tokens, seconds))
    return tuple(found)


def _completions(told: Sequence[ReplicaMetrics], facts: PoolSpec) -> CompletionStats:
    generated = finished = began = 0.0
    for one in told:
        tokens, ended = valid_number(one.generated_tokens), valid_number(one.finished)
        if facts.role is not Role.PREFILL:
            if tokens is None or ended is None:
                continue
            generated, finished = generated + tokens, finished + ended
        if facts.role is not Role.DECODE:
            began += valid_number(one.first_tokens) or 0.0
    return CompletionStats(generated, finished, began)


def _add_histograms(total: list[float], counts: tuple[float, ...]) -> list[float]:
    """The sum of two histograms; ``total`` may be empty."""
    if not counts or not (min(counts) >= 0.0 and sum(counts) <= _MAX_COUNT):
        counts = tuple(valid_number(count) or 0.0 for count in counts)
    return [was + more for was, more in zip(total, counts, strict=False)] if total else list(counts)


def _slow_tokens(generated: float, gaps_seconds: float, objective: float) -> float:
    """Tokens of requests whose mean gap is likely beyond ``objective``, where the replica's mean gap is known."""
    if generated < 1.0:
        return 0.0
    return generated * min(1.0, max(0.0, (gaps_seconds / generated / objective - 0.9) / 0.2))


def startup_seconds(replica: ReplicaMetrics) -> float | None:
    """How long a replica took to become ready; None before, and where that cannot be."""
    return valid_duration(replica.startup_seconds)


def valid_duration(seconds: float | None) -> float | None:
    """Seconds that a start or a waking can have taken; None for what it cannot."""
    seen = valid_number(seconds)
    return seen if seen is not None and seen < 86_400.0 else None


def hidden_prefill_queue(
    facts: PoolSpec, running: float | None, first_tokens: float | None, computed_tokens: float | None
) -> float:
    """How many of the requests that an engine calls ``running`` wait, where ``began`` of them had their first token and ``computed``
    prompt tokens were worked out since the last look; 0 where that cannot be told."""
    if (
        facts.role is not Role.PREFILL
        or facts.profile is None
        or not running
        or not first_tokens
        or not computed_tokens
    ):
        return 0.0
    prompts = max(1.0, facts.profile.step_tokens * first_tokens / computed_tokens)
    return max(0.0, running - prompts - 1.0)
