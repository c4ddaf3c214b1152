"""A cluster in memory, with the writer of the status of routes and adapters."""

import asyncio
from typing import Any

from fairlead.fleet.client_names import ClaimKind
from fairlead.kube.watch_events import WatchEvent
from fairlead.runtime.clock import ManualClock
from fairlead_operator.controller.status_writer import NameStatusWriter
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.writer import WriteCounts
from fairlead_testing.kube.in_memory import InMemoryKube

API = "serving.fairlead.io/v1alpha1"


class NameStatusCluster:
    """A cluster whose objects of one kind get their status, step by step.

    kind, claim_kind: of these objects.
    queued: the keys that the last change has queued.
    """

    def __init__(self, kind: str, claim_kind: ClaimKind) -> None:
        self.kube = InMemoryKube()
        self.cache = ObjectCache()
        self.queued: set[str] = set()
        self.kube.listeners.append(self._on_change)
        self.counts = WriteCounts()
        self._kind = kind
        self._claim_kind = claim_kind
        self._writer = NameStatusWriter(self.kube, self.cache, ManualClock(wall=1_800_000_000.0), self.counts)

    def put(self, kind: str, name: str, namespace: str = "chat", **parts: Any) -> None:
        """Creates or replaces an object."""
        self.queued = set()
        metadata = {"name": name, "namespace": namespace, **parts.pop("metadata", {})}
        self.kube.put({"apiVersion": API, "kind": kind, "metadata": metadata, **parts})

    def reconcile(self, name: str) -> float | None:
        """Writes the status of one object, and returns the seconds until the next pass."""
        return asyncio.run(self._writer.reconcile(f"{self._claim_kind}:chat/{name}"))

    def status(self, name: str) -> dict[str, Any]:
        """Returns the status of one object, after writing it."""
        self.reconcile(name)
        (found,) = [one for one in self.kube.objects_of(self._kind) if one["metadata"]["name"] == name]
        status: dict[str, Any] = found["status"]
        return status

    def conditions(self, name: str) -> dict[str, tuple[str, str, str]]:
        """Returns status, reason and message of each condition by type."""
        listed = self.status(name)["conditions"]
        return {one["type"]: (one["status"], one["reason"], one["message"]) for one in listed}

    def _on_change(self, event: WatchEvent) -> None:
        self.queued |= set(self.cache.apply(event))
