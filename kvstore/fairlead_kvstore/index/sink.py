"""Where an indexer's changes go: to Redis (``writer.py``), or straight to a mirror in the same process (here).

A sink takes and returns. It never blocks, never fails and never loses the order; what it cannot keep it makes good later, from the
truth itself. Changes are offered in the same turn of the event loop in which the truth changed: whoever looks at the truth to
write all of it down may then be sure that what is waiting in the sink is in what it sees.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.index.replica import IndexReplica

_LIMITS: Final = Limits()


class ChangeSink(Protocol):
    """Takes the changes of one model, in order."""

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Keep them, of so many batches, for whoever follows this model (``namespace/name``). Returns at once and never raises."""
        ...

    def is_backlogged(self) -> bool:
        """Returns whether more changes wait than should, so that no events are to be read."""
        ...


class LocalSink:
    """Mirrors in this process, without Redis. ``on_changes`` hears of every batch after the mirror has it."""

    def __init__(
        self, *, limits: Limits = _LIMITS, on_changes: Callable[[str, Sequence[Change]], None] | None = None
    ) -> None:
        self._limits = limits
        self._on_changes = on_changes
        self._replicas: dict[str, IndexReplica] = {}

    def replica(self, model_key: str) -> IndexReplica:
        """What is known of a model; an empty mirror when nothing was offered yet. The same object every time."""
        known = self._replicas.get(model_key)
        if known is None:
            known = self._replicas[model_key] = IndexReplica(limits=self._limits)
        return known

    def is_backlogged(self) -> bool:
        """Returns False, since changes are applied at once."""
        return False

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Apply them."""
        if changes:
            self.replica(model_key).apply(changes)
            if self._on_changes is not None:
                self._on_changes(model_key, changes)
