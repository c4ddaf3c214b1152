"""Changes or removes top-level fields of a JSON body, and leaves every other byte as it is.

The new text replaces exactly the value of a field. The scan knows only strings and brackets, and is
used on bodies that a parser has accepted. A key that occurs twice is replaced twice, so it does not
matter which one an engine reads.

The scan takes one slice at a time, so that other threads get their turn during a long string. One
pattern skips everything without nesting: an array of a million texts costs a few steps, not a
million. Of a value with few strings, each string is skipped by a search for its quote instead: no
pattern reads it.

Why: encoding a body again would cost time, and change numbers, key order and escapes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from typing import Final

import msgspec

from fairlead_gateway.dialects.schemas import MEMBERS_DECODER
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.native import SPLICE

JSON_FIELDS: Final = 4_096
"""Limit: top-level fields of a body that is rewritten; each is scanned."""

_SPLICE: Final = SPLICE
_STRING_PART: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_FLAT: Final = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_STRUCTURE: Final = re.compile(rb'["\[\]{}]')
_SLICE_BYTES: Final = 1 << 18
_MAX_SEARCHES: Final = 64
"""Searches in one value; after them, patterns go on: a search costs as much as a short string."""
_MAX_KEY_BYTES = 1_024  # no field of ours has a longer name, however it is escaped
_MAX_FIELDS = JSON_FIELDS
_SCALAR: Final = re.compile(rb"[^,}\s]+")
_SPACE_BYTES = b" \t\r\n"
_LAST_SPACE: Final = ord(" ")
_COMMA: Final = ord(",")
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_MAX_QUOTES: Final = 16
"""Escaped quotes in one text that are searched; after them, a pattern goes on."""
_OPENING: Final = b"[{"
_BRACE: Final = ord("{")
_SPACE: Final = re.compile(rb"[ \t\r\n]*")

_MAX_DECODED_BYTES = 1 << 20
_DISABLED_VALUES = (b"null", b"false")
_ABSENT_MEMBER = msgspec.Raw(b"null")


def contains_any(body: bytes, patterns: Iterable[bytes]) -> bool:
    """Returns whether one of the short patterns occurs in the body."""
    for pattern in patterns:
        for start in range(0, len(body), _SLICE_BYTES):
            if body.find(pattern, start, start + _SLICE_BYTES + len(pattern)) >= 0:
                return True
    return False


def splice(body: bytes, start: int, end: int, text: bytes) -> bytes:
    """Returns the body with `text` in place of its bytes from `start` to `end`.

    start, end: 0 ≤ start ≤ end ≤ the body's size.
    """
    if _SPLICE is not None:
        return _SPLICE(body, start, end, text)
    return b"".join((body[:start], text, body[end:]))


def prepend_members(body: bytes, fields: Mapping[str, bytes]) -> bytes:
    return prepend_text(body, members_text(fields))


def members_text(fields: Mapping[str, bytes]) -> bytes:
    return b",".join([msgspec.json.encode(key) + b":" + value for key, value in fields.items()])


def prepend_text(body: bytes, text: bytes) -> bytes:
    """Returns the body with members added in front.

    text: of `members_text`, for one field at least.
    """
    size = len(body)
    if 2 < size <= _SLICE_BYTES and body[0] == _BRACE and body[1] == _QUOTE:  # as most clients write it
        return splice(body, 1, 1, text + b",")
    opening = body.index(b"{") + 1
    first = _after_space(body, opening)
    comma = b"" if body[first : first + 1] == b"}" else b","
    source = _source(body)
    return _join([source[:opening], text, comma, source[opening:]], size)


def set_members(body: bytes, changes: Mapping[str, bytes]) -> bytes:
    """Returns the body with top-level fields set to JSON texts; absent fields are added in
    front.
    """
    parts: list[bytes | memoryview] = []
    copied_to = 0
    missing = dict(changes)
    source = _source(body)
    for key, _, start, end in _members(body):
        if key in changes:
            parts += (source[copied_to:start], changes[key])
            copied_to = end
            missing.pop(key, None)
    parts.append(source[copied_to:])
    edited = _join(parts, len(body))
    return prepend_members(edited, missing) if missing else edited


def replace_first_member(
    body: bytes, starts: tuple[bytes, ...], value: bytes, *, is_unique: bool = False
) -> bytes | None:
    """Returns the body with another value of its first member, which is a text; None if the general
    way is needed.

    starts: the member's key as clients write it, up to the quote of its value.
    is_unique: each key is known to be there once.

    Why: most clients write the model first. To look at all members takes ten times as long.
    """
    for start in starts if len(body) <= _SLICE_BYTES else ():
        if body.startswith(start):
            key = start[1 : start.index(b":")]
            end = string_end(body, len(start) - 1)
            # Its key may be there again, in whatever spelling; inside a text quotes are escaped.
            if not is_unique and (body.find(key, end) >= 0 or body.find(b"\\u00", end) >= 0):
                return None
            return splice(body, len(start) - 1, end, value)
    return None


def replace_scanned_text(body: bytes, key: bytes, value: bytes, behind: int) -> bytes | None:
    """Returns the body of a scanned chat with another value of a member behind its messages; None
    if it is not there.

    Why exact: keys of such a body have no escapes and are there once, and a text is no key: a colon
    never follows it.

    key: with its quotes; its value is a text.
    behind: where the messages end.
    """
    at = body.find(key, behind)
    if at < 0:
        return None
    start = _after_space(body, at + len(key))
    if body[start : start + 1] != b":":
        return None
    start = _after_space(body, start + 1)
    return splice(body, start, string_end(body, start), value)


def rewrite_members(body: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """Returns the body with every top-level value replaced by `change(key, value)`; None removes
    it.
    """
    parts: list[bytes | memoryview] = []
    copied_to = 0
    is_removed = False
    source = _source(body)
    for key, name, start, end in _members(body):
        if is_removed:  # the member before was removed; its comma goes too
            copied_to = name
        value = body[start:end] if end - start <= _SLICE_BYTES else _join([source[start:end]], len(body))
        replacement = change(key, value)
        is_removed = replacement is None
        if replacement is None:
            parts.append(source[copied_to:name])
            copied_to = end
        elif replacement != value:
            parts += (source[copied_to:start], replacement)
            copied_to = end
    if is_removed:  # the last member was removed; so is the comma before it
        _strip_comma(parts)
    parts.append(source[copied_to:])
    return _join(parts, len(body))


def _source(body: bytes) -> bytes | memoryview:
    """Returns a body to take parts from; a view of a large one, since its parts are copied once
    more.
    """
    return memoryview(body) if len(body) > _SLICE_BYTES else body


def _strip_comma(parts: list[bytes | memoryview]) -> None:
    """Removes the white space at the end of the parts, and one comma before it."""
    while parts:
        part = parts.pop()
        end = len(part)
        while end and part[end - 1] in _SPACE_BYTES:
            end -= 1
        if end:
            parts.append(part[: end - 1] if part[end - 1] == _COMMA else part[:end])
            return


def _join(parts: list[bytes | memoryview], size: int) -> bytes:
    """Returns the parts of a body of `size` bytes as one text; those of a large one are copied in
    slices.
    """
    if size <= _SLICE_BYTES:
        return b"".join(parts)
    joined = BytesIO()
    for part in parts:
        for start in range(0, len(part), _SLICE_BYTES):
            joined.write(memoryview(part)[start : start + _SLICE_BYTES])
    return joined.getvalue()


def _members(body: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Yields each top-level key, where it starts, and start and end of its value.

    A key that is too long for a known field is yielded as an empty text.
    Raises BadRequest if there are too many.
    """
    position = body.index(b"{") + 1
    for _ in range(_MAX_FIELDS):
        name = _after_space(body, position)
        if body[name : name + 1] != b'"':
            return
        name_end = string_end(body, name)
        colon = _after_space(body, name_end)
        start = _after_space(body, colon + 1)
        end = _value_end(body, start)
        key = msgspec.json.decode(body[name:name_end], type=str) if name_end - name <= _MAX_KEY_BYTES else ""
        yield key, name, start, end
        position = _after_space(body, end)
        if body[position : position + 1] != b",":
            return
        position += 1
    raise BadRequest(f"the body has more than {_MAX_FIELDS} fields", code="invalid_json")


def _value_end(body: bytes, start: int) -> int:
    char = body[start : start + 1]
    if char == b'"':
        return string_end(body, start)
    if char not in (b"{", b"["):
        return _scalar_end(body, start)
    depth = 0
    position = start
    if len(body) <= _SLICE_BYTES:
        for _ in range(_MAX_SEARCHES):
            match = _STRUCTURE.search(body, position)
            if match is None:
                return len(body)
            position = match.start()
            found = body[position]
            if found == _QUOTE:
                position = string_end(body, position)
                continue
            position += 1
            depth += 1 if found in _OPENING else -1
            if depth == 0:
                return position
    while position < len(body):
        match = _FLAT.match(body, position, position + _SLICE_BYTES)
        position = match.end() if match else position
        char = body[position : position + 1]
        if char == b'"':  # a string longer than the slice
            position = string_end(body, position)
        elif char in (b"[", b"{"):
            depth += 1
            position += 1
        elif char in (b"]", b"}"):
            depth -= 1
            position += 1
            if depth == 0:
                return position
    return len(body)


def string_end(body: bytes, start: int) -> int:
    """Returns the position behind the string that starts at `start`."""
    position = start + 1
    if len(body) <= _SLICE_BYTES:
        quote = body.find(b'"', position)
        if quote < 0:
            return len(body)
        for _ in range(_MAX_QUOTES):
            escapes = quote - 1
            while escapes >= position and body[escapes] == _BACKSLASH:
                escapes -= 1
            if (quote - escapes) % 2 == 1:
                return quote + 1
            position = quote + 1
            quote = body.find(b'"', position)
            if quote < 0:
                return len(body)
    while position < len(body):
        match = _STRING_PART.match(body, position, position + _SLICE_BYTES)
        position = match.end() if match else position
        char = body[position : position + 1]
        if char == b'"':
            return position + 1
        if char == b"\\":  # the slice ended between it and the escaped byte
            position += 2
    return len(body)


def _scalar_end(body: bytes, start: int) -> int:
    position = start
    while match := _SCALAR.match(body, position, position + _SLICE_BYTES):
        position = match.end()
    return position


def _after_space(body: bytes, position: int) -> int:
    if position < len(body) and body[position] > _LAST_SPACE:
        return position
    match = _SPACE.match(body, position)
    return match.end() if match else position


def is_any_enabled(quoted_names: Iterable[bytes], body: bytes) -> bool:
    """Whether a body that was parsed before has one of the fields with a value.

    `null` and `false` are no values here.

    quoted_names: searched for first, since most bodies hold none of them. In a body over 1 MiB, a
        name anywhere counts: decoding that body would stall the other requests.
    """
    if len(body) > _MAX_DECODED_BYTES:
        return contains_any(body, quoted_names)
    present = [name for name in quoted_names if name in body]
    if not present:
        return False
    members = MEMBERS_DECODER.decode(body)
    return any(bytes(members.get(name[1:-1].decode(), _ABSENT_MEMBER)) not in _DISABLED_VALUES for name in present)
