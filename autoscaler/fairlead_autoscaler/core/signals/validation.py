"""Validation of signals: values that no counter or gauge can have become None.

Such values are NaN, infinite, negative, or more than a cluster can count. A doubtful value never
becomes a number here: each consumer of None says what it does without the signal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import GatewayTraffic, PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState

_WARM_UP_SECONDS = 10.0
"""Two ticks. Until then a replica has served only a part of a tick, and all of its queue at
once."""
_NOT_SERVING = (ReplicaState.PENDING, ReplicaState.ASLEEP, ReplicaState.WAKING)
_MAX_COUNT = 1e12
"""The most tokens, requests or seconds of one tick. A counter that was reset can show more."""
MAX_PROMPT_TOKENS = 1e7
"""The longest prompt of any engine. A longer mean would spoil the variance of prompts for hours."""


def valid_number(value: float | None) -> float | None:
    """Returns the value, or None if no counter or gauge can have it."""
    if value is None:
        return None
    return value if 0.0 <= value <= _MAX_COUNT else None  # NaN compares false


def valid_count(value: float) -> int:
    number = valid_number(value)
    return 0 if number is None else int(number)


def valid_duration(seconds: float | None) -> float | None:
    """Returns the seconds of a start or a wake, or None if it cannot have taken them."""
    number = valid_number(seconds)
    return number if number is not None and number < 86_400.0 else None


def valid_traffic(traffic: GatewayTraffic | None) -> GatewayTraffic | None:
    """Returns the traffic with valid values; None if arrivals or their tokens are not valid.

    Other values that are not valid become 0, or None if they may be missing.
    """
    if traffic is None:
        return None
    arrivals, prompt = valid_number(traffic.arrivals), valid_number(traffic.prompt_tokens)
    if arrivals is None or prompt is None or prompt > MAX_PROMPT_TOKENS * max(1.0, arrivals):
        return None
    queued, abandoned = valid_number(traffic.held), valid_number(traffic.abandoned)
    kept, kept_tokens = valid_number(traffic.kept), valid_number(traffic.kept_tokens)
    if (queued, abandoned, kept, kept_tokens) == (traffic.held, traffic.abandoned, traffic.kept, traffic.kept_tokens):
        return traffic
    return GatewayTraffic(arrivals, prompt, queued or 0.0, abandoned or 0.0, kept, kept_tokens)


@dataclass(frozen=True, slots=True)
class TokenGapSample:
    """The inter-token gaps of one replica and the load under which they were measured.

    itl_seconds: sum of the gaps.

    Why: it is the input of the speed estimate. A replica that reports only some fields has no
    sample, or its engine would seem faster or slower than it is. Nor has a replica that just began:
    prompts that start all at once say little about steady gaps.
    """

    resident_tokens: float
    prompt_tokens: float
    generated_tokens: float
    itl_seconds: float


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """Generated tokens, finished and started requests, summed over replicas. Only replicas that
    report every metric of their role count.
    """

    generated_tokens: float = 0.0
    finished: float = 0.0
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolTotals:
    """Sums over the replicas of a pool since the last tick.

    is_entry: requests begin in this pool.
    unread_replicas: replicas whose requests in flight are unknown.
    prompt_tokens, cached_tokens: of replicas that report both.
    slow_tokens: generated tokens of replicas whose mean gap misses the target. A target is for the
        mean gap of a request, which no histogram of single gaps shows.
    resident_tokens, resident_sequences: tokens in KV memory and running sequences, of replicas that
        report both.
    in_flight_by_replica: running and queued requests of replicas that also report finished ones.
    """

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
    resident_tokens: float
    resident_sequences: float
    in_flight_by_replica: dict[str, float]
    finished_by_replica: dict[str, float]


def pool_totals(pool: PoolObservation, spec: PoolSpec, itl_seconds: float | None) -> PoolTotals | None:
    """Returns the sums over a pool's replicas.

    None if their metrics are missing, or if no serving replica reports any.
    """
    if pool.replicas is None:
        return None
    serving = [replica for replica in pool.replicas if replica.state not in _NOT_SERVING]
    reporting = [
        replica
        for replica in serving
        if valid_number(replica.running) is not None or valid_number(replica.finished) is not None
    ]
    if serving and not reporting:
        return None
    running = waiting = prompt = cached = generated = finished = first = slow = 0.0
    tokens_in_memory = sequences = 0.0
    in_flight: dict[str, float] = {}
    finished_by_replica: dict[str, float] = {}
    read_replicas = 0
    for replica in reporting:
        runs, waits, ended = map(valid_number, (replica.running, replica.waiting, replica.finished))
        if runs is not None and waits is not None:
            read_replicas += 1
            if ended is not None:
                in_flight[replica.id], finished_by_replica[replica.id] = runs + waits, ended
        queued = hidden_prefill_queue(
            spec, runs, valid_number(replica.first_tokens), valid_number(replica.prompt_tokens)
        )
        running += (runs or 0.0) - queued
        waiting += (waits or 0.0) + queued
        finished += ended or 0.0
        if runs is not None and (share := valid_number(replica.kv_share)) is not None and spec.profile is not None:
            tokens_in_memory += min(1.0, share) * spec.profile.kv_tokens
            sequences += runs
        computed, hit = valid_number(replica.prompt_tokens), valid_number(replica.cached_tokens)
        if computed is not None and hit is not None:
            prompt, cached = prompt + computed, cached + hit
        tokens, gaps = valid_number(replica.generated_tokens) or 0.0, valid_number(replica.itl_seconds) or 0.0
        generated += tokens
        if itl_seconds is not None:
            slow += _slow_tokens(tokens, gaps, itl_seconds)
        first += valid_number(replica.first_tokens) or 0.0
    return PoolTotals(
        is_entry=spec.role is not Role.DECODE,
        unread_replicas=len(serving) - read_replicas,
        running=running,
        waiting=waiting,
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        finished=finished,
        first_tokens=first,
        gap_samples=_gap_samples(reporting, spec),
        completions=_completions(reporting, spec),
        ttft_counts=_sum_histograms(replica.ttft_counts for replica in reporting if valid_number(replica.first_tokens)),
        itl_counts=_sum_histograms(replica.itl_counts for replica in reporting if valid_number(replica.finished)),
        slow_tokens=slow,
        resident_tokens=tokens_in_memory,
        resident_sequences=sequences,
        in_flight_by_replica=in_flight,
        finished_by_replica=finished_by_replica,
    )


def hidden_prefill_queue(
    spec: PoolSpec, running: float | None, first_tokens: float | None, computed_tokens: float | None
) -> float:
    """Returns how many `running` requests of a prefill engine are queued; 0 if that is unknown.

    first_tokens, computed_tokens: counted since the last tick.

    Why: some engines count every accepted request as running, also a prompt that waits for its
    first step. Their queue then reads 0 at any length. An engine that only prefills has as many
    prompts in a step as fit its tokens, by the mean length of the tick. One more may have arrived
    since; the other running requests wait.

    Why not for engines that also decode: it was tried, with the gap seconds of the tick as their
    decode load. Chance alone showed queues of prompts in prefill, and a noisy hour changed
    direction 15 times instead of five.
    """
    if spec.role is not Role.PREFILL or spec.profile is None or not running or not first_tokens or not computed_tokens:
        return 0.0
    prompts = max(1.0, spec.profile.step_tokens * first_tokens / computed_tokens)
    return max(0.0, running - prompts - 1.0)


def _gap_samples(reporting: Sequence[ReplicaMetrics], spec: PoolSpec) -> tuple[TokenGapSample, ...]:
    kv_tokens = spec.profile.kv_tokens if spec.profile else 0
    samples: list[TokenGapSample] = []
    for replica in reporting:
        share, computed, hit = map(valid_number, (replica.kv_share, replica.prompt_tokens, replica.cached_tokens))
        tokens, gaps = valid_number(replica.generated_tokens), valid_number(replica.itl_seconds)
        if share is None or computed is None or tokens is None or gaps is None:
            continue
        if spec.role is Role.DECODE and valid_number(replica.waiting):
            continue  # the gap after a first token from a prefill engine also holds the time in the queue
        age = valid_number(replica.age_seconds)
        if age is None or age - (valid_number(replica.startup_seconds) or 0.0) < _WARM_UP_SECONDS:
            continue
        samples.append(TokenGapSample(min(1.0, share) * kv_tokens, max(0.0, computed - (hit or 0.0)), tokens, gaps))
    return tuple(samples)


def _completions(reporting: Sequence[ReplicaMetrics], spec: PoolSpec) -> CompletionStats:
    generated = finished = started = 0.0
    for replica in reporting:
        tokens, ended = valid_number(replica.generated_tokens), valid_number(replica.finished)
        if spec.role is not Role.PREFILL:
            if tokens is None or ended is None:
                continue
            generated, finished = generated + tokens, finished + ended
        if spec.role is not Role.DECODE:
            started += valid_number(replica.first_tokens) or 0.0
    return CompletionStats(generated, finished, started)


def _sum_histograms(histograms: Iterable[tuple[float, ...] | None]) -> tuple[float, ...]:
    total: list[float] = []
    for counts in histograms:
        if counts is None:
            continue
        if not counts or not (min(counts) >= 0.0 and sum(counts) <= _MAX_COUNT):
            counts = tuple(valid_number(count) or 0.0 for count in counts)
        total = [sum_ + count for sum_, count in zip(total, counts, strict=False)] if total else list(counts)
    return tuple(total)


def _slow_tokens(generated: float, gap_seconds: float, target: float) -> float:
    """Returns the tokens of requests whose mean gap likely misses `target`.

    The estimate follows the mean gap of the replica: none at 90 % of the target, all at 110 %.
    """
    if generated < 1.0:
        return 0.0
    return generated * min(1.0, max(0.0, (gap_seconds / generated / target - 0.9) / 0.2))
