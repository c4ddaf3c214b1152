"""The share of an engine's memory that may be planned for, from its reports.

The plan counts the tokens of requests. An engine may have less room: it rounds to blocks, reserves
the longest answer, or has other users. That shows: requests wait in it, and less is free than
`SHORT_SHARE`, or than one of the running ones has on average. Then the share falls by `FALL`. With
a report of none waiting it rises by `RISE`, up to the whole.

So a plan that is too large shows in one of three reports. Requests of callers with a small share
wait in engines on purpose (`may_queue_for_memory`); as few of them change nothing.

An engine that does not report its memory has the whole share.
"""

from typing import Final

from fairlead.fleet.model import Fleet
from fairlead.fleet.signals import EngineSignals

FALL: Final = 0.02
RISE: Final = 0.01
MIN_SHARE: Final = 0.5
SHORT_SHARE: Final = 0.15


def next_share(share: float, signals: EngineSignals) -> float:
    """Returns the share after a report. A missing value changes nothing."""
    running, waiting, usage = signals.running, signals.waiting, signals.kv_usage
    if running is None or waiting is None or usage is None:
        return share
    if waiting <= 0.0:
        return min(1.0, share + RISE)
    is_memory_short = running > 0.0 and 1.0 - usage < max(SHORT_SHARE, usage / running)
    return max(MIN_SHARE, share - FALL) if is_memory_short else share


class MemoryShares:
    """The shares of all engines of a fleet, by instance."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Adds and drops instances."""
        present = (instance.id for instances in fleet.instances.values() for instance in instances)
        self.values = {name: self.values.get(name, 1.0) for name in present}

    def observe(self, instance: str, signals: EngineSignals) -> float | None:
        """Returns the share of an instance if the report changes it, else None."""
        before = self.values.get(instance)
        if before is None:
            return None
        share = self.values[instance] = next_share(before, signals)
        return None if share == before else share
