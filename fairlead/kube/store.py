"""The copy itself: objects by key, and what is different after a list or a change. No I/O, no clock.

An object that was deleted and made anew under its name is two objects: its users hear of a deletion and an addition, even when both
happened while nobody was watching.
"""

from collections.abc import Callable, Iterable

from fairlead.kube.resources import Manifest, key_of, metadata_of, uid_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType


class ObjectStore:
    """``items`` by ``namespace/name``, as ``trim`` leaves them; they are not to be changed by those who read them."""

    def __init__(self, trim: Callable[[Manifest], Manifest] | None = None) -> None:
        self.items: dict[str, Manifest] = {}
        self._trim = trim or drop_managed_fields

    def replace(self, listed: Iterable[Manifest]) -> Iterable[WatchEvent]:
        """Make ``items`` those; yields each difference after having made it. Objects that did not change are none."""
        found = {key_of(item): item for item in listed}
        for key in [key for key in self.items if key not in found]:
            yield WatchEvent(WatchEventType.DELETED, self.items.pop(key))
        for key, item in found.items():
            yield from self._store(key, item)

    def apply(self, change: WatchEvent) -> Iterable[WatchEvent]:
        """Make one change of a watch; yields what it means for ``items``: nothing, where it is known already."""
        key = key_of(change.object)
        if change.type is not WatchEventType.DELETED:
            yield from self._store(key, change.object)
        elif self.items.pop(key, None) is not None:
            yield WatchEvent(WatchEventType.DELETED, self._trim(change.object))

    def _store(self, key: str, item: Manifest) -> Iterable[WatchEvent]:
        before = self.items.get(key)
        if before is not None and uid_of(before) != uid_of(item):
            del self.items[key]
            yield WatchEvent(WatchEventType.DELETED, before)
            before = None
        if before is not None and _resource_version(before) == _resource_version(item):
            return
        self.items[key] = item = self._trim(item)
        yield WatchEvent(WatchEventType.ADDED if before is None else WatchEventType.MODIFIED, item)


def drop_managed_fields(item: Manifest) -> Manifest:
    """Without ``metadata.managedFields``: who set which field, half of many objects."""
    metadata_of(item).pop("managedFields", None)
    return item


def _resource_version(item: Manifest) -> object:
    return metadata_of(item).get("resourceVersion")
