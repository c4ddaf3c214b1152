"""What an indexer has counted, by model: of the instances that are there, and of those that have been.

Counters only grow; so what an instance counted stays counted when it leaves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from fairlead_kvstore.indexer.engine_member import EngineStatus

COUNTER_FAMILIES: Final[Mapping[str, tuple[str, Callable[[EngineStatus], int]]]] = MappingProxyType(
    {
        "batches": ("batches of events that were applied", lambda seen: seen.counters.batches),
        "bytes": ("bytes of messages from engines", lambda seen: seen.counters.bytes),
        "duplicates": ("batches that were known already", lambda seen: seen.counters.duplicates),
        "gaps": ("holes in the numbers of batches", lambda seen: seen.counters.gaps),
        "replays": ("replays that were asked for", lambda seen: seen.counters.replays),
        "replays_failed": ("replays that did not come, or not to their end", lambda seen: seen.counters.replays_failed),
        "lost": ("times that batches were lost, and with them an instance's slice", lambda seen: seen.counters.lost),
        "restarts": ("engine processes that took another's place", lambda seen: seen.counters.restarts),
        "connects": ("connections to engines' events", lambda seen: seen.counters.connects),
        "disconnects": ("connections that broke", lambda seen: seen.counters.disconnects),
        "defects": ("messages that brought a defect of the indexer to light", lambda seen: seen.counters.defects),
        "orphans": ("blocks whose parent was not known when they came", lambda seen: seen.state.counts.orphans),
        "linked": ("such blocks whose parent came", lambda seen: seen.state.counts.linked),
        "dropped": ("blocks forgotten for lack of memory", lambda seen: seen.state.counts.dropped),
        "unknown_events": ("events of kinds that are not known", lambda seen: seen.state.counts.unknown_events),
        "refused_events": ("stored events that did not hold together", lambda seen: seen.state.counts.refused_events),
    }
)
"""Counter → what it means, and where it is of one instance."""


class ModelCounters:
    """Sums by model."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.unreadable: dict[str, Counter[str]] = {}

    def add(self, status: EngineStatus) -> None:
        """Add what one instance counted."""
        counts = self.counts.setdefault(status.model_key, Counter())
        for name, (_, read) in COUNTER_FAMILIES.items():
            counts[name] += read(status)
        self.unreadable.setdefault(status.model_key, Counter()).update(status.counters.unreadable)

    def with_current(self, there: Iterable[EngineStatus]) -> "ModelCounters":
        """These, and what the instances that are there have counted so far."""
        found = ModelCounters()
        for model_key, counts in self.counts.items():
            found.counts[model_key] = Counter(counts)
            found.unreadable[model_key] = Counter(self.unreadable[model_key])
        for seen in there:
            found.add(seen)
        return found
