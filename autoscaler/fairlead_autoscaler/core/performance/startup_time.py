"""Startup time."""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_autoscaler.core.signals import validation
from fairlead_autoscaler.core.types import PoolObservation, ReplicaState

_MAX_STARTS = 24


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """How long replicas took to become ready (the last ones), and which of those that are there are counted."""

    seconds: tuple[float, ...] = ()
    counted: tuple[str, ...] = ()

    def quantile(self, share: float, prior: float | None, default: float) -> float:
        """Of the starts that were seen, the prior counting as much as four of them."""
        if not self.seconds:
            return default if prior is None else prior
        ordered = sorted(self.seconds)
        seen = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        return seen if prior is None else (seen * len(ordered) + prior * 4) / (len(ordered) + 4)


def update_startup_times(before: StartupTimes, pool: PoolObservation) -> StartupTimes:
    """``before`` with the replicas that became ready since."""
    if pool.replicas is None:
        return before
    ready = [replica for replica in pool.replicas if replica.state is not ReplicaState.PENDING]
    known = set(before.counted)
    if len(ready) == len(known) and all(replica.id in known for replica in ready):
        return before
    new = [validation.startup_seconds(replica) for replica in ready if replica.id not in known]
    seconds = (*before.seconds, *(each for each in new if each is not None))[-_MAX_STARTS:]
    return StartupTimes(seconds, tuple(replica.id for replica in ready))


def update_wake_times(before: Mapping[str, StartupTimes], pool: PoolObservation) -> Mapping[str, StartupTimes]:
    """``before``, by the level of sleep, with the wakings that ended since."""
    if pool.replicas is None:
        return before
    told: dict[str, list[tuple[str, float | None]]] = {}
    for replica in pool.replicas:
        if (woken := replica.woken) is not None:
            once = f"{replica.id} {woken.number}", validation.valid_duration(woken.seconds)
            told.setdefault(str(woken.level), []).append(once)
    found = dict(before)
    for level, ones in told.items():
        was = before.get(level, StartupTimes())
        known = set(was.counted)
        new = [seconds for name, seconds in ones if name not in known and seconds is not None]
        found[level] = StartupTimes((*was.seconds, *new)[-_MAX_STARTS:], tuple(name for name, _ in ones))
    return found
