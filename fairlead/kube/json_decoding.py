"""Decodes objects and lists of the API server, however deep their values are nested.

Why: the API server stores objects that are nested 10,000 levels deep. Decoders of Python refuse
some 1,000 levels with RecursionError, so that one such object would end the watch of all others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead.kube.resources import Manifest

MAX_NESTING: Final = 100
"""Levels that are kept of a value that is nested too deep. No kind of Kubernetes has 30."""
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)


def decode_json(data: bytes | msgspec.Raw) -> Any:
    """Returns the value of JSON. What is nested too deep becomes null.

    Raises msgspec.DecodeError for invalid JSON.
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        return msgspec.json.decode(cut_nesting(bytes(data)))


def cut_nesting(data: bytes, max_nesting: int = MAX_NESTING) -> bytes:
    """Returns JSON in which null replaces all objects and lists below `max_nesting` levels."""
    kept: list[bytes] = []
    depth = start = 0
    for token in _TOKEN.finditer(data):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
            if depth == max_nesting + 1:
                kept += (data[start : token.start()], b"null")
        elif mark in (b"}", b"]"):
            if depth == max_nesting + 1:
                start = token.end()
            depth -= 1
    return b"".join((*kept, data[start:]))


@dataclass(frozen=True, slots=True)
class ObjectList:
    """All objects of a kind at one moment. A watch continues from `resource_version`."""

    items: list[Manifest]
    resource_version: str


class ListPage(msgspec.Struct):
    """A page of a list, with its objects as JSON."""

    metadata: Manifest = {}
    items: list[msgspec.Raw] | None = None

    def decode_items(self, api_version: str, kind: str) -> Iterator[Manifest]:
        """Yields the objects, one decoded at a time. Lists omit what all objects share."""
        for raw in self.items or ():
            yield {"apiVersion": api_version, "kind": kind, **decode_json(raw)}


_PAGE_DECODER: Final = msgspec.json.Decoder(ListPage)


def decode_page(body: bytes) -> ListPage:
    """Returns a page. Raises msgspec.DecodeError."""
    try:
        return _PAGE_DECODER.decode(body)
    except RecursionError:
        return _PAGE_DECODER.decode(cut_nesting(body))


def decode_object(body: bytes) -> Manifest:
    """Returns an object. Raises msgspec.DecodeError."""
    found = decode_json(body)
    if not isinstance(found, dict):
        raise msgspec.ValidationError("not an object")
    return found
