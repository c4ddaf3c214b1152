"""What a watch tells: lines of JSON, each one change of one object."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

from fairlead.kube.errors import Unreachable, error_from
from fairlead.kube.resource import Manifest


class ChangeKind(StrEnum):
    """What happened. A bookmark carries only how far the watch has come."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class Change:
    """One change. ``object`` is the object after it; of a deleted one, its last state."""

    kind: ChangeKind
    object: Manifest


class Lines:
    """Cuts bytes as they come into whole lines; a line of more than ``most`` bytes raises Unreachable."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = b""

    def take(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *whole, rest = (self._rest + data if self._rest else data).split(b"\n")
        if len(rest) > self._most:
            raise Unreachable(f"an event of a watch has more than {self._most} bytes")
        self._rest = rest
        return (line for line in whole if line.strip())


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815  # as the API server writes it
    labels: dict[str, str] | None = None


class _Object(msgspec.Struct):
    kind: str
    metadata: _Metadata


class _Event(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED"]
    object: _Object


Known = Callable[[Manifest], Manifest | None]
"""Given an object's kind and metadata (name, namespace, uid, version, labels): the whole of it, where that version is known."""
_LOOK: Final = msgspec.json.Decoder(_Event)


def change_of(line: bytes, asked: str, known: Known | None = None) -> Change:
    """One line of a watch. Raises the error that an ``ERROR`` event holds (Gone, most often), Unreachable for what is no event.

    What is ``known`` is not read a second time: most events of what we write ourselves come after the answer, and say the same.
    """
    if known is not None and (same := _known(line, known)) is not None:
        return same
    try:
        event = msgspec.json.decode(line)
        kind, found = event["type"], event["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Unreachable(f"{asked}: what came is no event of a watch") from error
    if kind == "ERROR":
        raise error_from(found if isinstance(found, dict) else {}, asked)
    if not isinstance(found, dict) or kind not in ChangeKind.__members__:
        raise Unreachable(f"{asked}: an event of the kind {str(kind)[:50]!r} is not known")
    return Change(ChangeKind(kind), found)


def _known(line: bytes, known: Known) -> Change | None:
    try:
        event = _LOOK.decode(line)
    except msgspec.DecodeError:  # a deletion, a bookmark, an error, or nothing at all
        return None
    metadata = event.object.metadata
    named = {
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "resourceVersion": metadata.resourceVersion,
        "labels": metadata.labels,
    }
    found = known({"kind": event.object.kind, "metadata": named})
    return None if found is None else Change(ChangeKind(event.type), found)
