"""The values that describe Kubernetes Events."""

from dataclasses import dataclass
from enum import StrEnum

from fairlead.kube.resources import Manifest, name_of, namespace_of, uid_of


class EventType(StrEnum):
    """The severity of an event."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event before it is recorded, without its object. Pure functions return it."""

    type: EventType
    reason: str
    action: str
    note: str


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """A reference to the object of an event."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def __hash__(self) -> int:
        return hash((self.uid, self.name))  # nearly always sufficient


@dataclass(frozen=True, slots=True)
class EventKey:
    """The content of an event. Events with equal content are counted together.

    reason, action: CamelCase words.
    note: a sentence for people.
    """

    regarding: ObjectReference
    type: EventType
    reason: str
    action: str
    note: str

    def __hash__(self) -> int:
        return hash((self.regarding.uid, self.note))


def object_reference(manifest: Manifest) -> ObjectReference:
    """Returns a reference to an object."""
    return ObjectReference(
        str(manifest.get("apiVersion", "")),
        str(manifest.get("kind", "")),
        namespace_of(manifest) or "",
        name_of(manifest),
        uid_of(manifest),
    )
