"""Decodes objects and lists of the API server, however deep their values are nested, and whatever
text they hold.

Why: the API server stores objects that are nested 10,000 levels deep. Decoders of Python refuse
some 1,000 levels with RecursionError, so that one such object would end the watch of all others.
The `data` of a ControllerRevision is stored byte for byte, also if its text is no UTF-8, or has
half of a surrogate pair. Go reads such text, and decoders of Python refuse it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from fairlead.kube.resources import Manifest, Resource

MAX_NESTING: Final = 100
"""Levels that are kept of a value that is nested too deep. No kind of Kubernetes has 30."""
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*+"|[{}\[\]]', re.DOTALL)
_ESCAPE: Final = re.compile(
    rb"\\(?:u([dD][89abAB][0-9a-fA-F]{2})(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u([dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_Decoded = TypeVar("_Decoded")


def decode_json(data: bytes | msgspec.Raw) -> Any:
    """Returns the value of JSON. What is nested too deep becomes null.

    Raises msgspec.DecodeError for invalid JSON.
    """
    return decode_with(msgspec.json.decode, bytes(data))


def decode_with(decode: Callable[[bytes], _Decoded], data: bytes) -> _Decoded:
    """Returns the value of JSON by this decoder. What is nested too deep becomes null, and invalid
    text U+FFFD.

    Raises msgspec.DecodeError for invalid JSON.
    """
    try:
        return decode(data)
    except RecursionError:
        return decode(replace_invalid_text(cut_nesting(data)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        repaired = replace_invalid_text(data)
        if repaired == data:
            raise
    return decode_with(decode, repaired)


def replace_invalid_text(data: bytes) -> bytes:
    return _ESCAPE.sub(_replace_half_pair, data.decode("utf-8", "replace").encode())


def _replace_half_pair(escape: re.Match[bytes]) -> bytes:
    is_half = (escape[1] and not escape[2]) or escape[3]
    return rb"\ufffd" if is_half else escape[0]


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


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A page of a list."""

    metadata: Manifest
    items: list[Manifest]


class _RawPage(msgspec.Struct):
    """A page of a list, with its objects as JSON."""

    metadata: Manifest = {}
    items: list[msgspec.Raw] | None = None


_PAGE_DECODER: Final = msgspec.json.Decoder(_RawPage)


def decode_page(body: bytes, resource: Resource, trim: Callable[[Manifest], Manifest]) -> ObjectPage:
    """Returns a page. Raises msgspec.DecodeError.

    trim: shortens each object before the next one is decoded.
    """
    page = decode_with(_PAGE_DECODER.decode, body)
    # Lists omit what all objects share.
    shared = {"apiVersion": resource.api_version, "kind": resource.kind}
    return ObjectPage(page.metadata, [trim({**shared, **decode_json(raw)}) for raw in page.items or ()])


def decode_object(body: bytes) -> Manifest:
    """Returns an object. Raises msgspec.DecodeError."""
    found = decode_json(body)
    if not isinstance(found, dict):
        raise msgspec.ValidationError("not an object")
    return found
