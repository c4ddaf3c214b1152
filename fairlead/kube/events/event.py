"""What is told of an object in an event, before it is written: a value that pure functions make."""

from dataclasses import dataclass
from enum import StrEnum

from fairlead.kube.resources import Manifest, name_of, namespace_of, uid_of


class EventType(StrEnum):
    """How bad it is."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class EventDraft:
    """One sentence. ``reason`` and ``action`` are CamelCase words."""

    type: EventType
    reason: str
    action: str
    note: str


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """The object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def __hash__(self) -> int:
        return hash((self.uid, self.name))  # nearly always enough to tell them apart


@dataclass(frozen=True, slots=True)
class EventKey:
    """What one event says: ``reason`` and ``action`` are CamelCase words, ``note`` is a sentence for people."""

    regarding: ObjectReference
    type: EventType
    reason: str
    action: str
    note: str

    def __hash__(self) -> int:
        return hash((self.regarding.uid, self.note))


def object_reference(manifest: Manifest) -> ObjectReference:
    """The object itself, as events name it."""
    return ObjectReference(
        str(manifest.get("apiVersion", "")),
        str(manifest.get("kind", "")),
        namespace_of(manifest) or "",
        name_of(manifest),
        uid_of(manifest),
    )
