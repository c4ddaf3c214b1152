"""Is the operator alive: not whether its process runs, but whether it hears the cluster. Pure.

A process is dead when a watch has been silent for long although the API server answers others: an operator that is restarted
because the API server is away gains nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SILENCE_SECONDS = 180.0
"""No event and no bookmark (the API server sends one a minute) for this long: the watch is dead."""
MAX_ANSWER_AGE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class HealthState:
    """Ages in seconds, None for never. ``watches``: since each was last heard of. ``answered``: since the API server answered a list.

    ``overdue``: for how long a change that was listed has not come by the watch of models.
    """

    leading: bool = False
    synced: bool = False
    watch_ages: Mapping[str, float | None] = field(default_factory=dict)
    answer_age_seconds: float | None = None
    overdue_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``why`` names what is wrong, or says that all is well."""

    ok: bool
    reason: str


def check_liveness(health: HealthState) -> ProbeResult:
    """False when only a restart helps."""
    if not health.leading:
        return ProbeResult(True, "another replica leads")
    if health.answer_age_seconds is None or health.answer_age_seconds > MAX_ANSWER_AGE_SECONDS:
        return ProbeResult(True, "the API server does not answer; a restart would not help")
    if health.overdue_seconds is not None and health.overdue_seconds > MAX_SILENCE_SECONDS:
        return ProbeResult(False, f"the watch of models has missed a change for {health.overdue_seconds:.0f} s")
    for kind, age in sorted(health.watch_ages.items()):
        if age is not None and age > MAX_SILENCE_SECONDS:
            return ProbeResult(False, f"the watch of {kind} has been silent for {age:.0f} s")
    return ProbeResult(True, "every watch is heard")


def check_readiness(health: HealthState) -> ProbeResult:
    """A replica that waits is ready too: it can take over."""
    if health.leading and not health.synced:
        return ProbeResult(False, "not everything has been listed yet")
    return ProbeResult(True, "leading" if health.leading else "waiting to lead")


def staleness(health: HealthState) -> str:
    """Why what is known may be old, in words; empty when it is fresh. Nothing is deleted while it is not."""
    if not health.synced:
        return "not everything has been listed yet"
    if health.answer_age_seconds is None or health.answer_age_seconds > MAX_SILENCE_SECONDS:
        return "the API server has not answered for a while"
    old = sorted(kind for kind, age in health.watch_ages.items() if age is None or age > MAX_SILENCE_SECONDS)
    return f"nothing has been heard of {', '.join(old)} for a while" if old else ""
