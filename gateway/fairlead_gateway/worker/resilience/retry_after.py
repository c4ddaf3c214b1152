"""Computes `Retry-After`, in whole seconds from 1.

- No instance is ready, but one is starting: the mean startup time of the model, less the time since
  that instance began to start.
- All instances are full: the backlog of the least busy one.
"""

import math

from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits

_DEFAULT_SECONDS = 2
_SMOOTHING = 0.3


class StartupTimes:
    """The mean startup time of each model's instances, observed in fleet updates."""

    def __init__(self, limits: Limits) -> None:
        self._max_seconds = limits.max_retry_after_seconds
        self._starting_since: dict[str, float] = {}
        self._mean_seconds: dict[str, float] = {}

    def observe_fleet(self, fleet: Fleet, now: float) -> None:
        """Records which instances are starting, and how long newly ready ones have taken."""
        since: dict[str, float] = {}
        for key, instances in fleet.instances.items():
            for instance in instances:
                started_at = self._starting_since.get(instance.id)
                if instance.state is InstanceState.STARTING:
                    since[instance.id] = now if started_at is None else started_at
                elif instance.state is InstanceState.READY and started_at is not None:
                    mean = self._mean_seconds.get(key, now - started_at)
                    self._mean_seconds[key] = mean + _SMOOTHING * (now - started_at - mean)
        self._starting_since = since
        for departed in self._mean_seconds.keys() - fleet.models.keys():
            del self._mean_seconds[departed]

    def retry_after(self, fleet: Fleet, key: str, now: float) -> int:
        """Returns the seconds until an instance of the model should be ready; 2 if unknown."""
        start_times = [
            self._starting_since[instance.id]
            for instance in fleet.instances.get(key, ())
            if instance.id in self._starting_since
        ]
        mean = self._mean_seconds.get(key)
        if not start_times or mean is None:
            return _DEFAULT_SECONDS
        return retry_after_seconds(min(start_times) + mean - now, self._max_seconds)


def retry_after_for_backlog(backlog_seconds: float, limits: Limits) -> int:
    """Returns `Retry-After` for the backlog of the least busy instance, in whole seconds from 1 to
    `max_retry_after_seconds`.
    """
    return retry_after_seconds(backlog_seconds, limits.max_retry_after_seconds)


def retry_after_seconds(value: float, max_seconds: float) -> int:
    """Returns the seconds for the header: rounded up, from 1 to `max_seconds`."""
    return max(1, min(math.ceil(value), int(max_seconds)))
