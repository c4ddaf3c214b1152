"""What a watch tells: lines of JSON, each one change of one object."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

from fairlead.kube.errors import Unreachable, error_from_status
from fairlead.kube.resources import Manifest


class WatchEventType(StrEnum):
    """What happened. A bookmark carries only how far the watch has come."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. ``object`` is the object after it; of a deleted one, its last state."""

    type: WatchEventType
    object: Manifest


class LineSplitter:
    """Cuts bytes as they come into whole lines; a line of more than ``most`` bytes raises Unreachable."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *whole, rest = (self._rest + data if self._rest else data).split(b"\n")
        if len(rest) > self._max_bytes:
            raise Unreachable(f"an event of a watch has more than {self._max_bytes} bytes")
        self._rest = rest
        return (line for line in whole if line.strip())


class _MetadataHead(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815  # as the API server writes it
    labels: dict[str, str] | None = None


class _ObjectHead(msgspec.Struct):
    kind: str
    metadata: _MetadataHead


class _EventHead(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED"]
    object: _ObjectHead


KnownObjectFinder = Callable[[Manifest], Manifest | None]
"""Given an object's kind and metadata (name, namespace, uid, version, labels): the whole of it, where that version is known."""
_HEAD_DECODER: Final = msgspec.json.Decoder(_EventHead)


def parse_watch_event(line: bytes, request: str, find_known: KnownObjectFinder | None = None) -> WatchEvent:
    """One line of a watch. Raises the error that an ``ERROR`` event holds (Gone, most often), Unreachable for what is no event.

    What is ``known`` is not read a second time: most events of what we write ourselves come after the answer, and say the same.
    """
    if find_known is not None and (same := _reuse_known(line, find_known)) is not None:
        return same
    try:
        event = msgspec.json.decode(line)
        kind, found = event["type"], event["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Unreachable(f"{request}: what came is no event of a watch") from error
    if kind == "ERROR":
        raise error_from_status(found if isinstance(found, dict) else {}, request)
    if not isinstance(found, dict) or kind not in WatchEventType.__members__:
        raise Unreachable(f"{request}: an event of the kind {str(kind)[:50]!r} is not known")
    return WatchEvent(WatchEventType(kind), found)


def _reuse_known(line: bytes, find_known: KnownObjectFinder) -> WatchEvent | None:
    try:
        event = _HEAD_DECODER.decode(line)
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
    found = find_known({"kind": event.object.kind, "metadata": named})
    return None if found is None else WatchEvent(WatchEventType(event.type), found)
