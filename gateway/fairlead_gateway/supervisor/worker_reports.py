"""Merges the reports of several workers: health states, loads, counters and loop lag.

Each worker runs its own outlier detection. The merged health state of an instance is the worst,
with the number of workers that report it. An ejection record is reported if no worker had an answer
since.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from fairlead.fleet.hung_engines import EjectionReport
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.ipc import messages as say
from fairlead_gateway.telemetry.snapshot import ModelSnapshot
from fairlead_gateway.telemetry.status_types import HealthState

_HEALTHY = (HealthState.HEALTHY.value, "")
_WORST_FIRST = (HealthState.EJECTED.value, HealthState.PROBING.value, HealthState.WARMING.value)


def merge_health_states(reported: Sequence[Mapping[str, tuple[str, str]]]) -> Callable[[str], tuple[str, str]]:
    """Returns a function that maps an instance to (health state, reason).

    reported: each worker's (health state, reason) by instance, without healthy instances.
    """

    def health_of(instance: str) -> tuple[str, str]:
        reports = [report[instance] for report in reported if instance in report]
        if not reports:
            return _HEALTHY
        state, reason = min(reports, key=lambda report: _WORST_FIRST.index(report[0]))
        agreeing = sum(report[0] == state for report in reports)
        return state, reason if len(reported) == 1 else f"{reason} ({agreeing} of {len(reported)} workers)"

    return health_of


def merge_ejections(
    states: Sequence[say.WorkerState], now: float, progress_times: Mapping[str, float] | None = None
) -> dict[str, EjectionReport]:
    """Returns the ejection of each instance that has answered no worker since.

    The time is that of the latest ejection, the failed probes are those of all workers.

    progress_times: when each instance was last seen to compute tokens. The time counts from there.

    Why: a full engine can keep probes waiting while it works for plain requests, which show
    nothing before their end. It does not hang.
    """
    progressed = progress_times or {}
    merged: dict[str, EjectionReport] = {}
    for instance in dict.fromkeys(name for state in states for name in state.ejections):
        found = [state.ejections[instance] for state in states if instance in state.ejections]
        latest = max(found, key=lambda ejection: ejection.since)
        if all(state.answer_times.get(instance, latest.since) <= latest.since for state in states):
            failed_probes = sum(ejection.failed_probes for ejection in found)
            since = max(latest.since, progressed.get(instance, latest.since))
            merged[instance] = EjectionReport(max(0.0, now - since), latest.cause, failed_probes, len(found))
    return merged


def merge_answer_times(states: Sequence[say.WorkerState]) -> dict[str, float]:
    """Returns when each instance answered any worker last, in monotonic seconds."""
    merged: dict[str, float] = {}
    for state in states:
        for instance, answered_at in state.answer_times.items():
            merged[instance] = max(answered_at, merged.get(instance, answered_at))
    return merged


def merge_adapters(workers: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, frozenset[str]]:
    """Returns the LoRA adapters of each instance that any worker knows to be loaded."""
    merged: dict[str, frozenset[str]] = {}
    for adapters in workers:
        for instance, names in adapters.items():
            merged[instance] = merged.get(instance, frozenset()).union(names)
    return merged


def merge_loads(workers: Iterable[Mapping[str, say.EncodedLoad]]) -> dict[str, say.EncodedLoad]:
    """Returns the loads of all workers, added up by instance."""
    totals: dict[str, say.EncodedLoad] = {}
    for loads in workers:
        for instance, load in loads.items():
            known = totals.get(instance)
            totals[instance] = load if known is None else _add_loads(known, load)
    return totals


def merge_counts(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Returns the counts of all workers, added up by name."""
    totals: dict[str, int] = {}
    for counts in workers:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def _add_loads(one: say.EncodedLoad, other: say.EncodedLoad) -> say.EncodedLoad:
    return say.EncodedLoad(
        one.inflight + other.inflight,
        one.waiting + other.waiting,
        one.backlog_seconds + other.backlog_seconds,
        one.inflight_tokens + other.inflight_tokens,
        one.queued + other.queued,
    )


def _without_windows(models: dict[str, ModelSnapshot]) -> dict[str, ModelSnapshot]:
    """Removes the counts of the last minute from the snapshots, and returns the same snapshots.

    Why: these counts would not age, since only the worker itself moves its window on.
    """
    for part in models.values():
        part.window = None
        for instance in part.instances.values():
            instance.window = None
    return models


class MaxLoopLag(LoopLag):
    """The lag of the slowest of several event loops, by quantile."""

    def __init__(self, reported: Sequence[Sequence[tuple[float, float]]]) -> None:
        super().__init__(max_samples=1)
        self._reported = [dict(quantiles) for quantiles in reported]

    def quantile(self, share: float) -> float | None:
        """Returns the lag in seconds; None when no worker has reported this quantile."""
        return max((quantiles[share] for quantiles in self._reported if share in quantiles), default=None)
