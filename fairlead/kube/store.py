"""The local copy of objects by key, and the differences after a list or a watch event.

Pure: no I/O, no clock. An object that was deleted and created again under its name is two objects:
the differences are a deletion and an addition, even if both happened while there was no watch.
"""

from collections.abc import Callable, Iterable

from fairlead.kube.resources import Manifest, key_of, metadata_of, uid_of
from fairlead.kube.watch_events import KnownObjectFinder, WatchEvent, WatchEventType


class ObjectStore:
    """Objects by `namespace/name`. Readers must not modify them.

    trim: shortens an object before it is stored; of a shortened one it changes nothing.
    find_known: returns objects that another store has in exactly this version; they are shared.
    """

    def __init__(
        self, trim: Callable[[Manifest], Manifest] | None = None, find_known: KnownObjectFinder | None = None
    ) -> None:
        self.items: dict[str, Manifest] = {}
        self.find_known = find_known
        self.trim = trim or drop_managed_fields

    def replace(self, listed: Iterable[Manifest]) -> Iterable[WatchEvent]:
        """Replaces all objects by a list, and yields each difference after applying it."""
        listed_items = {key_of(item): item for item in listed}
        for key in [key for key in self.items if key not in listed_items]:
            yield WatchEvent(WatchEventType.DELETED, self.items.pop(key))
        for key, item in listed_items.items():
            yield from self._store(key, item)

    def apply(self, event: WatchEvent) -> Iterable[WatchEvent]:
        """Applies a watch event, and yields its effect; nothing if the state is already known."""
        key = key_of(event.object)
        if event.type is not WatchEventType.DELETED:
            yield from self._store(key, event.object)
        elif self.items.pop(key, None) is not None:
            yield WatchEvent(WatchEventType.DELETED, self.trim(event.object))

    def _store(self, key: str, item: Manifest) -> Iterable[WatchEvent]:
        before = self.items.get(key)
        if before is not None and uid_of(before) != uid_of(item):
            del self.items[key]
            yield WatchEvent(WatchEventType.DELETED, before)
            before = None
        if before is not None and _resource_version(before) == _resource_version(item):
            return
        self.items[key] = item = self.trim(item)
        yield WatchEvent(WatchEventType.ADDED if before is None else WatchEventType.MODIFIED, item)


def drop_managed_fields(item: Manifest) -> Manifest:
    """Removes `metadata.managedFields` from the object itself, and returns the object.

    Why: these fields are about half of many objects.
    """
    metadata_of(item).pop("managedFields", None)
    return item


def _resource_version(item: Manifest) -> object:
    return metadata_of(item).get("resourceVersion")
