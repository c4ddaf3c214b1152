"""Decodes watch events: lines of JSON, each with one change of one object."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

from fairlead.kube.errors import Unreachable, error_from_status
from fairlead.kube.json_decoding import decode_json
from fairlead.kube.resources import Manifest

KnownObjectFinder = Callable[[Manifest], Manifest | None]
"""Returns the object if exactly this version is already known, given its kind and metadata."""


class WatchEventType(StrEnum):
    """The type of a watch event. A bookmark has only a resource version."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change of an object. `object` is its new state; for a deleted object, its last state."""

    type: WatchEventType
    object: Manifest


class LineSplitter:
    """A splitter of a byte stream into lines. Raises Unreachable for a line of more than
    `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Returns the lines that `data` completes, without line ends."""
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


_HEAD_DECODER: Final = msgspec.json.Decoder(_EventHead)


def parse_watch_event(line: bytes, request: str, find_known: KnownObjectFinder | None = None) -> WatchEvent:
    """Returns the event in one line of a watch.

    Raises the error of an `ERROR` event (mostly Gone), and Unreachable for an invalid line.

    find_known: returns objects that need not be decoded again.

    Why: most events about a client's own writes arrive after the response, with the same content.
    """
    if find_known is not None and (known_event := _reuse_known(line, find_known)) is not None:
        return known_event
    try:
        event = decode_json(line)
        type_name, content = event["type"], event["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Unreachable(f"{request}: the response line is not a watch event") from error
    if type_name == "ERROR":
        raise error_from_status(content if isinstance(content, dict) else {}, request)
    if not isinstance(content, dict) or type_name not in WatchEventType.__members__:
        raise Unreachable(f"{request}: an event of the kind {str(type_name)[:50]!r} is not known")
    return WatchEvent(WatchEventType(type_name), content)


def _reuse_known(line: bytes, find_known: KnownObjectFinder) -> WatchEvent | None:
    try:
        event = _HEAD_DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # a deletion, a bookmark, or an invalid line
        return None
    metadata = event.object.metadata
    head = {
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "resourceVersion": metadata.resourceVersion,
        "labels": metadata.labels,
    }
    known_object = find_known({"kind": event.object.kind, "metadata": head})
    return None if known_object is None else WatchEvent(WatchEventType(event.type), known_object)
