"""To zero and from zero.

**From zero** it takes one request: held by a gateway, or counted as arrived. **To zero** it takes the odds. A replica that idles
costs a second a second; one that was removed too early costs its start-up, paid without serving, and the objectives of whoever
comes meanwhile (``cold_start_price`` times the start-up together, where the start-up passes the objective). So it is kept while

    hazard of a next arrival (per second) × cost of a cold start (seconds) > 1

The hazard comes from the silences that were seen: of those that lasted as long as this one has, how many ended within the next
cold-start cost, over how long they were at risk. One more is added that ends just now, so the hazard without any history is one
over the silence so far, and the rule that of renting skis: keep for as long as a start costs."""

from dataclasses import dataclass

_MAX_GAPS = 48
_MIN_GAP_SECONDS = 5.0
"""Seconds without a request that count as a silence at all."""


@dataclass(frozen=True, slots=True)
class IdleGaps:
    """When something last arrived (None = not yet), and how long the silences before were."""

    last_arrival: float | None = None
    gaps: tuple[float, ...] = ()


def record_arrival(before: IdleGaps, now: float) -> IdleGaps:
    """``before`` with an arrival now."""
    if before.last_arrival is None or now - before.last_arrival < _MIN_GAP_SECONDS:
        return IdleGaps(now, before.gaps)
    return IdleGaps(now, (*before.gaps, now - before.last_arrival)[-_MAX_GAPS:])


def arrival_hazard(silence: IdleGaps, quiet_seconds: float, ahead_seconds: float) -> float:
    """Arrivals per second to expect after ``quiet_seconds`` of silence, over the next ``ahead_seconds``."""
    ended, at_risk = 1.0, max(1.0, quiet_seconds)
    for gap in silence.gaps:
        if gap > quiet_seconds:
            at_risk += min(gap - quiet_seconds, ahead_seconds)
            ended += gap <= quiet_seconds + ahead_seconds
    return ended / at_risk


def is_worth_keeping(silence: IdleGaps, quiet_seconds: float, cost_seconds: float) -> bool:
    """Is idling on cheaper than starting anew for the next request?"""
    if quiet_seconds < cost_seconds / 4:
        return True
    return arrival_hazard(silence, quiet_seconds, cost_seconds) * cost_seconds > 1.0
