"""When to come back: the seconds in a Retry-After, from what is known and not from hope.

No instance ready: when one is starting, how long the model's former starts took, less what this one has had. All full:
how long the least busy instance needs for the work that this gateway has sent there. Whole seconds, at least one.
"""

import math

from fairlead.fleet import Fleet, InstanceState
from fairlead.limits import Limits

_UNKNOWN_SECONDS = 2
_PACE = 0.3


class Starts:
    """How long instances take to start, watched in the snapshots of the fleet."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.retry_after_most_seconds
        self._since: dict[str, float] = {}
        self._usual: dict[str, float] = {}

    def seen(self, fleet: Fleet, now: float) -> None:
        """A new snapshot."""
        since: dict[str, float] = {}
        for key, instances in fleet.instances.items():
            for one in instances:
                begun = self._since.get(one.id)
                if one.state is InstanceState.STARTING:
                    since[one.id] = now if begun is None else begun
                elif one.state is InstanceState.READY and begun is not None:
                    usual = self._usual.get(key, now - begun)
                    self._usual[key] = usual + _PACE * (now - begun - usual)
        self._since = since
        for gone in self._usual.keys() - fleet.models.keys():
            del self._usual[gone]

    def retry_after(self, fleet: Fleet, key: str, now: float) -> int:
        """Seconds until an instance of the model should be ready."""
        begun = [self._since[one.id] for one in fleet.instances.get(key, ()) if one.id in self._since]
        usual = self._usual.get(key)
        if not begun or usual is None:
            return _UNKNOWN_SECONDS
        return whole_seconds(min(begun) + usual - now, self._most)


def drained(backlog_seconds: float, limits: Limits) -> int:
    """Seconds until the least busy instance has done what it was sent: its backlog."""
    return whole_seconds(backlog_seconds, limits.retry_after_most_seconds)


def whole_seconds(value: float, most: float) -> int:
    """As Retry-After wants it."""
    return max(1, min(math.ceil(value), int(most)))
