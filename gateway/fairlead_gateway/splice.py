"""Changing one top-level field of a JSON body without touching a byte of the rest.

Bodies go to engines as the client wrote them: encoding them again would cost time and change numbers, key order and
escapes. So a field that must change is cut out at its exact place and the new text put there. The walk knows strings and
brackets only; it is used on bodies that a parser has already accepted. A key that is given twice is replaced twice, so that it
does not matter which one a reader takes.
"""

import re
from collections.abc import Iterator, Mapping

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
    for key, start, end in _members(body):
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


def _members(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Every top-level key with the span of its value."""
    position = body.index(b"{") + 1
    while True:
        position = _after_space(body, position)
        key = _STRING.match(body, position)
        if key is None:
            return
        colon = _after_space(body, key.end())
        start = _after_space(body, colon + 1)
        end = _value_end(body, start)
        yield msgspec.json.decode(key[0], type=str), start, end
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
