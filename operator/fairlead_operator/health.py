"""The operator's health: whether it is in contact with the cluster, not just whether it runs. Pure.

A process fails its liveness probe if a watch is silent although the API server answers other
requests. A restart does not help if the API server is unavailable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.runtime.aiohttp_server import ProbeResult

MAX_SILENCE_SECONDS = 180.0
"""A watch without event or bookmark for this long is dead. The API server sends one bookmark a
minute.
"""
MAX_ANSWER_AGE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class HealthState:
    """Contact with the cluster. Ages are in seconds; None means never.

    watch_ages: age of the last event of each watch.
    answer_age_seconds: age of the API server's last answer to a list.
    overdue_seconds: how long the watch of models has missed a listed change.
    """

    leading: bool = False
    synced: bool = False
    watch_ages: Mapping[str, float | None] = field(default_factory=dict)
    answer_age_seconds: float | None = None
    overdue_seconds: float | None = None


def check_liveness(health: HealthState) -> ProbeResult:
    """Returns the liveness. It is False if only a restart helps."""
    if not health.leading:
        return ProbeResult(True, "another replica leads")
    if health.answer_age_seconds is None or health.answer_age_seconds > MAX_ANSWER_AGE_SECONDS:
        return ProbeResult(True, "the API server does not answer; a restart would not help")
    if health.overdue_seconds is not None and health.overdue_seconds > MAX_SILENCE_SECONDS:
        return ProbeResult(False, f"the watch of models has missed a change for {health.overdue_seconds:.0f} s")
    for kind, age in sorted(health.watch_ages.items()):
        if age is not None and age > MAX_SILENCE_SECONDS:
            return ProbeResult(False, f"the watch of {kind} has been silent for {age:.0f} s")
    return ProbeResult(True, "every watch delivers")


def check_readiness(health: HealthState) -> ProbeResult:
    """Returns the readiness. A replica that waits to lead is ready to take over."""
    if health.leading and not health.synced:
        return ProbeResult(False, "not everything has been listed yet")
    return ProbeResult(True, "leading" if health.leading else "waiting to lead")


def stale_cache_reason(health: HealthState) -> str:
    """Returns why the observed state may be out of date; empty if it is fresh.

    Nothing is deleted while it may be out of date.
    """
    if not health.synced:
        return "not everything has been listed yet"
    if health.answer_age_seconds is None or health.answer_age_seconds > MAX_SILENCE_SECONDS:
        return "the API server has not answered for a while"
    silent_kinds = sorted(kind for kind, age in health.watch_ages.items() if age is None or age > MAX_SILENCE_SECONDS)
    return f"the watch of {', '.join(silent_kinds)} is silent" if silent_kinds else ""
