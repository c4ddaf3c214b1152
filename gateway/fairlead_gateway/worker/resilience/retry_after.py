"""When to come back: the seconds in a Retry-After, from what is known and not from hope.

No instance ready: when one is starting, how long the model's former starts took, less what this one
has had. All full: how long the least busy instance needs for the work that this gateway has sent
there. Whole seconds, at least one.
"""

import math

from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits

_DEFAULT_SECONDS = 2
_SMOOTHING = 0.3


class StartupTimes:
    """How long instances take to start, watched in the snapshots of the fleet."""

    def __init__(self, limits: Limits) -> None:
        self._max_seconds = limits.max_retry_after_seconds
        self._starting_since: dict[str, float] = {}
        self._mean_seconds: dict[str, float] = {}

    def observe_fleet(self, fleet: Fleet, now: float) -> None:
        """A new snapshot."""
        since: dict[str, float] = {}
        for key, instances in fleet.instances.items():
            for one in instances:
                begun = self._starting_since.get(one.id)
                if one.state is InstanceState.STARTING:
                    since[one.id] = now if begun is None else begun
                elif one.state is InstanceState.READY and begun is not None:
                    usual = self._mean_seconds.get(key, now - begun)
                    self._mean_seconds[key] = usual + _SMOOTHING * (now - begun - usual)
        self._starting_since = since
        for gone in self._mean_seconds.keys() - fleet.models.keys():
            del self._mean_seconds[gone]

    def retry_after(self, fleet: Fleet, key: str, now: float) -> int:
        """Seconds until an instance of the model should be ready."""
        begun = [self._starting_since[one.id] for one in fleet.instances.get(key, ()) if one.id in self._starting_since]
        usual = self._mean_seconds.get(key)
        if not begun or usual is None:
            return _DEFAULT_SECONDS
        return retry_after_seconds(min(begun) + usual - now, self._max_seconds)


def retry_after_for_backlog(backlog_seconds: float, limits: Limits) -> int:
    """Seconds until the least busy instance has done what it was sent: its backlog."""
    return retry_after_seconds(backlog_seconds, limits.max_retry_after_seconds)


def retry_after_seconds(value: float, max_seconds: float) -> int:
    """As Retry-After wants it."""
    return max(1, min(math.ceil(value), int(max_seconds)))
