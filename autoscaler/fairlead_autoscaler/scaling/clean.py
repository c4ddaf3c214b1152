"""What no counter can be is missing: NaN, infinite, negative, and more than any cluster could have counted.

A value that is not there stays None. Nothing here turns a doubt into a number: who reads None decides what to do without.
"""

from dataclasses import dataclass

from fairlead.fleet import Role
from fairlead_autoscaler.scaling.values import GatewaySeen, PoolFacts, PoolSeen, ReplicaSeen, ReplicaState

_IDLE = (ReplicaState.PENDING, ReplicaState.ASLEEP, ReplicaState.WAKING)
_MOST = 1e12
"""Tokens, requests or seconds of one tick: more was never counted, whatever a counter says after it was reset."""


def number(value: float | None) -> float | None:
    """The value, or None where no counter or gauge can read so."""
    if value is None:
        return None
    return value if 0.0 <= value <= _MOST else None  # NaN compares false


def whole(value: float) -> int:
    """A count of pods; what cannot be one is 0."""
    seen = number(value)
    return 0 if seen is None else int(seen)


def gateway(seen: GatewaySeen | None) -> GatewaySeen | None:
    """What gateways counted; None where arrivals or their tokens cannot be believed. ``held`` and ``abandoned`` are then 0 at
    least."""
    if seen is None:
        return None
    arrivals, prompt = number(seen.arrivals), number(seen.prompt_tokens)
    if arrivals is None or prompt is None:
        return None
    held, abandoned = number(seen.held), number(seen.abandoned)
    kept, kept_tokens = number(seen.kept), number(seen.kept_tokens)
    if (held, abandoned, kept, kept_tokens) == (seen.held, seen.abandoned, seen.kept, seen.kept_tokens):
        return seen
    return GatewaySeen(arrivals, prompt, held or 0.0, abandoned or 0.0, kept, kept_tokens)


@dataclass(frozen=True, slots=True)
class Totals:
    """What the replicas of a pool measured since the last tick, together. ``entry``: requests begin here. ``told`` counts the
    replicas that said something; ``resident_tokens`` is their KV. ``slow_tokens``: of those generated, how many on replicas
    whose mean gap passes the objective (a request's mean gap counts, which no histogram of single gaps tells).
    ``in_flight`` maps replica to running and waiting together."""

    entry: bool
    told: int
    running: float
    waiting: float
    resident_tokens: float
    prompt_tokens: float
    cached_tokens: float
    generated_tokens: float
    itl_seconds: float
    finished: float
    first_tokens: float
    ttft_counts: tuple[float, ...]
    itl_counts: tuple[float, ...]
    slow_tokens: float
    in_flight: dict[str, float]
    finished_of: dict[str, float]


def totals(pool: PoolSeen, facts: PoolFacts, itl_seconds: float | None) -> Totals | None:
    """The sum over the replicas of a pool; None where nobody could read them, or none of them that is ready said anything."""
    if pool.replicas is None:
        return None
    kv_tokens = facts.profile.kv_tokens if facts.profile else 0
    running = waiting = resident = prompt = cached = generated = gaps = done = first = slow = 0.0
    told = asked = 0
    ttft: list[float] = []
    itl: list[float] = []
    in_flight: dict[str, float] = {}
    finished: dict[str, float] = {}
    for replica in pool.replicas:
        if replica.state in _IDLE:
            continue
        asked += 1
        runs, ended = number(replica.running), number(replica.finished)
        if runs is None and ended is None:
            continue
        told += 1
        waits = number(replica.waiting)
        if runs is not None and waits is not None:
            in_flight[replica.id] = runs + waits
        finished[replica.id] = ended or 0.0
        running += runs or 0.0
        waiting += waits or 0.0
        done += ended or 0.0
        resident += min(1.0, number(replica.kv_share) or 0.0) * kv_tokens
        prompt += number(replica.prompt_tokens) or 0.0
        cached += number(replica.cached_tokens) or 0.0
        tokens, seconds = number(replica.generated_tokens) or 0.0, number(replica.itl_seconds) or 0.0
        generated += tokens
        gaps += seconds
        if itl_seconds is not None:
            slow += _slow(tokens, seconds, itl_seconds)
        began = number(replica.first_tokens) or 0.0
        first += began
        if began and replica.ttft_counts is not None:
            ttft = _plus(ttft, replica.ttft_counts)
        if ended and replica.itl_counts is not None:
            itl = _plus(itl, replica.itl_counts)
    if asked and not told:
        return None
    return Totals(
        entry=facts.role is not Role.DECODE,
        told=told,
        running=running,
        waiting=waiting,
        resident_tokens=resident,
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        itl_seconds=gaps,
        finished=done,
        first_tokens=first,
        ttft_counts=tuple(ttft),
        itl_counts=tuple(itl),
        slow_tokens=slow,
        in_flight=in_flight,
        finished_of=finished,
    )


def _plus(total: list[float], counts: tuple[float, ...]) -> list[float]:
    """The sum of two histograms; ``total`` may be empty."""
    if not counts or not (min(counts) >= 0.0 and sum(counts) <= _MOST):
        counts = tuple(number(count) or 0.0 for count in counts)
    return [was + more for was, more in zip(total, counts, strict=False)] if total else list(counts)


def _slow(generated: float, gaps_seconds: float, objective: float) -> float:
    """Tokens of requests whose mean gap is likely beyond ``objective``, where the replica's mean gap is known."""
    if generated < 1.0:
        return 0.0
    return generated * min(1.0, max(0.0, (gaps_seconds / generated / objective - 0.9) / 0.2))


def startup(replica: ReplicaSeen) -> float | None:
    """How long a replica took to become ready; None before, and where that cannot be."""
    return duration(replica.startup_seconds)


def duration(seconds: float | None) -> float | None:
    """Seconds that a start or a waking can have taken; None for what it cannot."""
    seen = number(seconds)
    return seen if seen is not None and seen < 86_400.0 else None
