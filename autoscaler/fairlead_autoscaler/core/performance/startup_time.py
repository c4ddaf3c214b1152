"""Learned startup times and wake times of replicas."""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_autoscaler.core.signals import validation
from fairlead_autoscaler.core.types import PoolObservation, PoolSpec, ReplicaState, SleepTier

DEFAULT_STARTUP_SECONDS = 120.0
"""The startup time without a measured start and without a prior."""
_MAX_STARTS = 24
_WAKE_SHARE = {1: 0.1, 2: 0.5}
"""The expected wake time as a share of the startup time, by sleep level.

Level 1 copies the weights back from memory, level 2 loads them; the process runs already."""
_MAX_WAKE_SECONDS = {1: 5.0, 2: 30.0}
"""The longest expected wake time without a measured wake, by sleep level."""


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """The seconds of the last starts, and the replicas that are counted already."""

    seconds: tuple[float, ...] = ()
    counted: tuple[str, ...] = ()

    def quantile(self, share: float, prior: float | None, default: float) -> float:
        """Returns a quantile of the startup times in seconds; the prior counts as four starts.

        Without any start it is the prior, and without a prior `default`.
        """
        if not self.seconds:
            return default if prior is None else prior
        ordered = sorted(self.seconds)
        measured = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        return measured if prior is None else (measured * len(ordered) + prior * 4) / (len(ordered) + 4)


def update_startup_times(before: StartupTimes, pool: PoolObservation) -> StartupTimes:
    """Returns the startup times with those of replicas that became ready since the last tick."""
    if pool.replicas is None:
        return before
    ready = [replica for replica in pool.replicas if replica.state is not ReplicaState.PENDING]
    known = set(before.counted)
    if len(ready) == len(known) and all(replica.id in known for replica in ready):
        return before
    starts = [validation.valid_duration(replica.startup_seconds) for replica in ready if replica.id not in known]
    seconds = (*before.seconds, *(start for start in starts if start is not None))[-_MAX_STARTS:]
    return StartupTimes(seconds, tuple(replica.id for replica in ready))


def update_wake_times(before: Mapping[str, StartupTimes], pool: PoolObservation) -> Mapping[str, StartupTimes]:
    """Returns the wake times by sleep level, with the wakes that finished since the last tick."""
    if pool.replicas is None:
        return before
    wakes_by_level: dict[str, list[tuple[str, float | None]]] = {}
    for replica in pool.replicas:
        if (wake := replica.woken) is not None:
            named = f"{replica.id} {wake.number}", validation.valid_duration(wake.seconds)
            wakes_by_level.setdefault(str(wake.level), []).append(named)
    times = dict(before)
    for level, wakes in wakes_by_level.items():
        former = before.get(level, StartupTimes())
        known = set(former.counted)
        new = [seconds for name, seconds in wakes if name not in known and seconds is not None]
        times[level] = StartupTimes((*former.seconds, *new)[-_MAX_STARTS:], tuple(name for name, _ in wakes))
    return times


def median_startup_seconds(starts: StartupTimes, pool: PoolSpec) -> float:
    """Returns the median startup time of a pool in seconds."""
    return starts.quantile(0.5, pool.startup_p50_seconds, DEFAULT_STARTUP_SECONDS)


def wake_seconds(
    wakes: Mapping[str, StartupTimes], starts: StartupTimes, pool: PoolSpec, tier: SleepTier, share: float
) -> float:
    """Returns the seconds within which `share` of the wakes finish."""
    level = 1 if tier.level == 1 else 2
    guess = min(_MAX_WAKE_SECONDS[level], _WAKE_SHARE[level] * median_startup_seconds(starts, pool))
    return wakes.get(str(tier.level), StartupTimes()).quantile(share, tier.wake_seconds, guess)
