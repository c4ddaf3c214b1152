"""Changing or cutting top-level fields of a JSON body without touching a byte of the rest.

Bodies go to engines as the client wrote them: encoding them again would cost time and change numbers, key order and
escapes. So a field that must change is cut out at its exact place and the new text put there. The walk knows strings and
brackets only; it is used on bodies that a parser has already accepted. A key that is given twice is replaced twice, so that it
does not matter which one a reader takes.

The walk takes a slice at a time, so that another thread gets its turn in between however long a string is, and whatever opens
and closes nothing is passed over by one pattern: an array of a million texts costs a few steps, not a million.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest

_STRING_PART = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_FLAT = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_SLICE_BYTES = 1 << 20
_MAX_FIELDS = Limits().json_fields
_SCALAR = re.compile(rb"[^,}\s]+")
_SPACE = re.compile(rb"[ \t\r\n]*")


def prepend_members(body: bytes, fields: Mapping[str, bytes]) -> bytes:
    """``body`` with fields that it does not have yet in front."""
    opening = body.index(b"{") + 1
    text = b",".join(msgspec.json.encode(key) + b":" + value for key, value in fields.items())
    first = _after_space(body, opening)
    comma = b"" if body[first : first + 1] == b"}" else b","
    return b"".join((body[:opening], text, comma, body[opening:]))


def set_members(body: bytes, changes: Mapping[str, bytes]) -> bytes:
    """``body`` with the top-level fields of ``changes`` set to the given JSON text; absent ones are added in front."""
    parts: list[bytes] = []
    done = 0
    missing = dict(changes)
    for key, _, start, end in _members(body):
        if key in changes:
            parts += (body[done:start], changes[key])
            done = end
            missing.pop(key, None)
    parts.append(body[done:])
    text = b"".join(parts)
    return prepend_members(text, missing) if missing else text


def rewrite_members(body: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """``body`` with every top-level value as ``change(key, value)`` says: the same, another, or None for not at all."""
    parts: list[bytes] = []
    done = 0
    cut = False
    for key, name, start, end in _members(body):
        if cut:  # the member before went, and its comma goes with it
            done = name
        value = body[start:end]
        new = change(key, value)
        cut = new is None
        if new is None:
            parts.append(body[done:name])
            done = end
        elif new != value:
            parts += (body[done:start], new)
            done = end
    if cut:  # the last one went: the comma before it has nothing left to separate
        before = b"".join(parts).rstrip(b" \t\r\n")
        parts = [before.removesuffix(b",")]
    return b"".join([*parts, body[done:]])


def _members(body: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Every top-level key with where its name begins and the span of its value. Raises BadRequest when they are too many."""
    position = body.index(b"{") + 1
    for _ in range(_MAX_FIELDS):
        name = _after_space(body, position)
        if body[name : name + 1] != b'"':
            return
        name_end = _string_end(body, name)
        colon = _after_space(body, name_end)
        start = _after_space(body, colon + 1)
        end = _value_end(body, start)
        yield msgspec.json.decode(body[name:name_end], type=str), name, start, end
        position = _after_space(body, end)
        if body[position : position + 1] != b",":
            return
        position += 1
    raise BadRequest(f"the body has more than {_MAX_FIELDS} fields", code="invalid_json")


def _value_end(body: bytes, start: int) -> int:
    mark = body[start : start + 1]
    if mark == b'"':
        return _string_end(body, start)
    if mark not in (b"{", b"["):
        return _scalar_end(body, start)
    depth = 0
    position = start
    while position < len(body):
        found = _FLAT.match(body, position, position + _SLICE_BYTES)
        position = found.end() if found else position
        mark = body[position : position + 1]
        if mark == b'"':  # longer than the slice
            position = _string_end(body, position)
        elif mark in (b"[", b"{"):
            depth += 1
            position += 1
        elif mark in (b"]", b"}"):
            depth -= 1
            position += 1
            if depth == 0:
                return position
    return len(body)


def _string_end(body: bytes, start: int) -> int:
    """Behind the string that begins at ``start``."""
    position = start + 1
    while position < len(body):
        found = _STRING_PART.match(body, position, position + _SLICE_BYTES)
        position = found.end() if found else position
        mark = body[position : position + 1]
        if mark == b'"':
            return position + 1
        if mark == b"\\":  # the slice ended behind it
            position += 2
    return len(body)


def _scalar_end(body: bytes, start: int) -> int:
    position = start
    while found := _SCALAR.match(body, position, position + _SLICE_BYTES):
        position = found.end()
    return position


def _after_space(body: bytes, position: int) -> int:
    found = _SPACE.match(body, position)
    return found.end() if found else position
