"""Changing or cutting top-level fields of a JSON body without touching a byte of the rest.

Bodies go to engines as the client wrote them: encoding them again would cost time and change numbers, key order and
escapes. So a field that must change is cut out at its exact place and the new text put there. The walk knows strings and
brackets only; it is used on bodies that a parser has already accepted. A key that is given twice is replaced twice, so that it
does not matter which one a reader takes.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb"[^,}\s]+")
_SPACE = re.compile(rb"[ \t\r\n]*")


def splice(body: bytes, changes: Mapping[str, bytes]) -> bytes:
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
    if missing:
        opening = text.index(b"{") + 1
        added = b",".join(msgspec.json.encode(key) + b":" + value for key, value in missing.items())
        empty = text[_after_space(text, opening) :][:1] == b"}"
        text = text[:opening] + added + (b"" if empty else b",") + text[opening:]
    return text


def rewritten(body: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
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
    """Every top-level key with where its name begins and the span of its value."""
    position = body.index(b"{") + 1
    while True:
        position = _after_space(body, position)
        key = _STRING.match(body, position)
        if key is None:
            return
        colon = _after_space(body, key.end())
        start = _after_space(body, colon + 1)
        end = _value_end(body, start)
        yield msgspec.json.decode(key[0], type=str), key.start(), start, end
        position = _after_space(body, end)
        if body[position : position + 1] != b",":
            return
        position += 1


def _value_end(body: bytes, start: int) -> int:
    if body[start : start + 1] not in (b"{", b"["):
        found = (_STRING if body[start : start + 1] == b'"' else _SCALAR).match(body, start)
        return found.end() if found else start
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(body, start):
        mark = found[0][:1]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
            if depth == 0:
                return found.end()
    return len(body)


def _after_space(body: bytes, position: int) -> int:
    found = _SPACE.match(body, position)
    return found.end() if found else position
