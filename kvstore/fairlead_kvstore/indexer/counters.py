"""Counters of an indexer by model, over present and departed instances.

Counters only grow, so the counts of an instance stay when it leaves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from fairlead_kvstore.indexer.engine_member import EngineStatus

COUNTER_FAMILIES: Final[Mapping[str, tuple[str, Callable[[EngineStatus], int]]]] = MappingProxyType(
    {
        "batches": ("applied batches of events", lambda status: status.counters.batches),
        "bytes": ("bytes of messages from engines", lambda status: status.counters.bytes),
        "duplicates": ("batches that were read before", lambda status: status.counters.duplicates),
        "gaps": ("gaps in the numbers of batches", lambda status: status.counters.gaps),
        "replays": ("requested replays", lambda status: status.counters.replays),
        "replays_failed": ("replays that did not arrive completely", lambda status: status.counters.replays_failed),
        "lost": ("losses of batches, each of which drops an instance's blocks", lambda status: status.counters.lost),
        "restarts": ("engine processes that replaced another", lambda status: status.counters.restarts),
        "connects": ("connections to engines' events", lambda status: status.counters.connects),
        "disconnects": ("connections that broke", lambda status: status.counters.disconnects),
        "defects": ("messages that revealed a defect of the indexer", lambda status: status.counters.defects),
        "orphans": ("blocks that arrived before their parent", lambda status: status.state.counts.orphans),
        "linked": ("orphan blocks whose parent arrived later", lambda status: status.state.counts.linked),
        "dropped": ("blocks dropped for lack of memory", lambda status: status.state.counts.dropped),
        "unknown_events": ("events of an unknown kind", lambda status: status.state.counts.unknown_events),
        "refused_events": ("inconsistent stored events", lambda status: status.state.counts.refused_events),
    }
)
"""Counter → its description, and how to read it from one instance."""


class ModelCounters:
    """The sums of all counters by model."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.unreadable: dict[str, Counter[str]] = {}

    def add(self, status: EngineStatus) -> None:
        """Adds the counters of one instance."""
        counts = self.counts.setdefault(status.model_key, Counter())
        for name, (_, read) in COUNTER_FAMILIES.items():
            counts[name] += read(status)
        self.unreadable.setdefault(status.model_key, Counter()).update(status.counters.unreadable)

    def with_current(self, present: Iterable[EngineStatus]) -> "ModelCounters":
        """Returns these sums plus the counters of present instances."""
        found = ModelCounters()
        for model_key, counts in self.counts.items():
            found.counts[model_key] = Counter(counts)
            found.unreadable[model_key] = Counter(self.unreadable[model_key])
        for status in present:
            found.add(status)
        return found
