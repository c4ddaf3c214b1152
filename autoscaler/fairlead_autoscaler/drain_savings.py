"""Drain savings: how much longer removed replicas would have stayed if no stream had moved. Pure.

A removed replica ends with its last stream. Gateways let another instance continue its streams, and
count how long each would still have taken. Without moves, a replica would have stayed for the mean
of these times, or longer. So each removed replica counts as that mean, also an idle one among
others. Streams that a rollout moves meanwhile are in the mean, too. Without moves, nothing counts.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

WINDOW_SECONDS: Final = 300.0
"""Moves later than this after the last removal are not those of its replicas."""


@dataclass(slots=True)
class DrainSavings:
    """The savings of one model's pools.

    seconds: of replicas, by pool, since the start.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _removed: Counter[str] = field(default_factory=Counter)
    _removed_at: float = 0.0

    def on_removed(self, pool: str, replicas: int, now: float) -> None:
        """Notes ready replicas that are removed."""
        if replicas > 0:
            self._removed[pool] += replicas
            self._removed_at = now

    def on_moved(self, streams: float, rest_seconds: float, now: float) -> dict[str, float]:
        """Returns what the moves since the last call have saved, in replica-seconds by pool.

        streams: those that moved and had a forecast; rest_seconds: of all of them.
        """
        if now - self._removed_at > WINDOW_SECONDS:
            self._removed.clear()
        if streams <= 0.0:
            return {}
        saved = {pool: replicas * rest_seconds / streams for pool, replicas in self._removed.items()}
        self._removed.clear()
        for pool, seconds in saved.items():
            self.seconds[pool] = self.seconds.get(pool, 0.0) + seconds
        return saved
