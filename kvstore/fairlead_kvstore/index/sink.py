"""Consumers of an indexer's changes: the writer to Redis (``writer.py``), or a replica in the same
process (here).

A sink never blocks, never fails and keeps the order; changes that it cannot keep are read again
later from the block store. Changes are offered in the iteration of the event loop in which the
block store changed. A writer that takes a snapshot of the store therefore knows that the waiting
changes are part of it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.index.replica import IndexReplica


class ChangeSink(Protocol):
    """A consumer of the changes of models, in order."""

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Takes the changes of ``batches`` batches of one model (``namespace/name``). Returns at
        once and never raises.
        """

    def is_backlogged(self, model_key: str) -> bool:
        """Returns whether too many changes of a model wait. The caller then must not read its
        events.
        """


class LocalSink:
    """A ``ChangeSink`` that applies changes to replicas in this process, without Redis.

    on_changes: called after the replica has the changes.
    """

    def __init__(self, *, on_changes: Callable[[str, Sequence[Change]], None] | None = None) -> None:
        self._on_changes = on_changes
        self._replicas: dict[str, IndexReplica] = {}

    def replica(self, model_key: str) -> IndexReplica:
        """Returns the replica of a model, always the same object; it is empty before the first
        change.
        """
        known = self._replicas.get(model_key)
        if known is None:
            known = self._replicas[model_key] = IndexReplica()
        return known

    def is_backlogged(self, model_key: str) -> bool:
        """Returns False, since changes are applied at once."""
        return False

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Applies the changes."""
        if changes:
            self.replica(model_key).apply(changes)
            if self._on_changes is not None:
                self._on_changes(model_key, changes)
