"""Idle gaps: times without requests, and whether an idle replica is worth keeping.

**From zero**, one request is enough: queued at a gateway, or counted as arrived. **To zero**, the
odds decide. An idle replica costs a second per second. A replica that was removed too early costs
its startup time, in which it serves nothing. Unless that is within the TTFT target, requests that
come meanwhile are too late: then the cost is `cold_start_price` times the startup time. So a
replica stays while

    hazard of the next arrival (per second) × cost of a cold start (seconds) > 1

The hazard follows from former gaps. Among those that lasted as long as this one, it is the number
that ended within the next cold-start cost, over their time at risk. One more gap counts as ending
now. Without history the hazard is thus one over the gap so far, which is the ski-rental rule: keep
for as long as a start costs.
"""

from dataclasses import dataclass

_MAX_GAPS = 48
_MIN_GAP_SECONDS = 10.0
"""The shortest time without requests that counts as a gap.

Why longer than a look at the metrics: else each look at steady traffic adds a gap. The list then
forgets those of hours within minutes.
"""


@dataclass(frozen=True, slots=True)
class IdleGaps:
    """The last arrival (None: none yet) and the lengths of former gaps in seconds."""

    last_arrival: float | None = None
    gaps: tuple[float, ...] = ()


def record_arrival(before: IdleGaps, now: float) -> IdleGaps:
    """Returns the gaps with a new arrival, and with the gap that it ends."""
    if before.last_arrival is None or now - before.last_arrival < _MIN_GAP_SECONDS:
        return IdleGaps(now, before.gaps)
    return IdleGaps(now, (*before.gaps, now - before.last_arrival)[-_MAX_GAPS:])


def arrival_hazard(idle: IdleGaps, quiet_seconds: float, ahead_seconds: float) -> float:
    """Returns the expected arrivals per second over `ahead_seconds`, after `quiet_seconds` without
    one.
    """
    ended, at_risk = 1.0, max(1.0, quiet_seconds)
    for gap in idle.gaps:
        if gap > quiet_seconds:
            at_risk += min(gap - quiet_seconds, ahead_seconds)
            ended += gap <= quiet_seconds + ahead_seconds
    return ended / at_risk


def is_worth_keeping(idle: IdleGaps, quiet_seconds: float, cost_seconds: float) -> bool:
    """Whether an idle replica costs less than a cold start for the next request."""
    if quiet_seconds < cost_seconds / 4:
        return True
    return arrival_hazard(idle, quiet_seconds, cost_seconds) * cost_seconds > 1.0
