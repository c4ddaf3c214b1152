"""Model index: the objects of informers by the model that their label names."""

from collections.abc import Sequence

from fairlead.fleet.labels import MODEL_LABEL
from fairlead.kube.resources import Manifest, key_of, labels_of, namespace_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType


class ModelIndex:
    """Objects by the key of their model. It follows the changes of one or more informers.

    Why: each write of a tick looks up the objects of one model, among those of all models.
    """

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], Manifest]] = {}
        self._models: dict[tuple[str, str], str] = {}

    def apply(self, event: WatchEvent) -> None:
        """Applies the difference that an informer reports."""
        found = event.object
        key = (str(found.get("kind", "")), key_of(found))
        before = self._models.pop(key, None)
        if before is not None:
            del self._objects[before][key]
            if not self._objects[before]:
                del self._objects[before]
        if event.type is not WatchEventType.DELETED:
            model = f"{namespace_of(found)}/{labels_of(found).get(MODEL_LABEL)}"
            self._models[key] = model
            self._objects.setdefault(model, {})[key] = found

    def of_model(self, model: str) -> Sequence[Manifest]:
        """Returns the objects of one model."""
        return tuple(self._objects.get(model, {}).values())

    def by_model(self) -> dict[str, Sequence[Manifest]]:
        """Returns all objects, by the key of their model."""
        return {model: tuple(objects.values()) for model, objects in self._objects.items()}
