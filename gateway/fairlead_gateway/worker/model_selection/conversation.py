"""Identifies the conversation of a request, so that a route sends all of its turns to one model.

The client's name for the conversation counts first. Without one, a chat is identified by its text
up to the end of the first message of a user: later turns begin with the same bytes. Of any other
request, the whole prompt counts.
"""

import re
from typing import Final

import xxhash

_ROLE_FIRST: Final = (b'{"role":"', b'{"role": "')
_USER_FIRST: Final = (b'{"role":"user"', b'{"role": "user"')
_USER: Final = re.compile(rb'"role"[ \t\r\n]*:[ \t\r\n]*"user"')
_OBJECT_PART: Final = re.compile(rb'[^"{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}]*+)*+', re.DOTALL)
_OPENING: Final = ord("{")
_CLOSING: Final = ord("}")
_MAX_MESSAGES: Final = 64
_MAX_TEXT: Final = 1 << 20
"""Bytes of a prompt that are searched; of a longer one without an end in them, these count."""


def session_digest(session: bytes, tenant: str | None) -> bytes:
    """Returns the digest of a client's name for a conversation; tenants do not share names."""
    return xxhash.xxh3_64_digest(session if tenant is None else b"%b\0%b" % (tenant.encode(), session))


def prompt_digest(text: bytes, start: int, end: int) -> bytes:
    """Returns the digest of the part of a prompt that all turns of its conversation begin with.

    start, end: where the prompt lies; of a chat, the text between the brackets of its messages.
    """
    end = min(end, start + _MAX_TEXT)
    return xxhash.xxh3_64_digest(memoryview(text)[start : conversation_end(text, start, end)])


def conversation_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the first message of a user; `end` if there is none.

    Why a search for the next role: most clients write the role of each message first. Inside a
    JSON string quotes are escaped, so these bytes never are a part of what a user wrote.
    """
    if not text.startswith(_ROLE_FIRST, start):
        return _first_user_end(text, start, end)
    user = _first(text, _USER_FIRST, start, end)
    if user < 0:
        return _first_user_end(text, start, end)
    following = _first(text, _ROLE_FIRST, user + 1, end)
    return text.rfind(b"}", user, end if following < 0 else following) + 1 or end


def _first(text: bytes, patterns: tuple[bytes, ...], start: int, end: int) -> int:
    """Returns where the first of the patterns is; -1 without any."""
    found = -1
    for pattern in patterns:
        position = text.find(pattern, start, end if found < 0 else found + len(pattern))
        if position >= 0 and (found < 0 or position < found):
            found = position
    return found


def _first_user_end(text: bytes, start: int, end: int) -> int:
    """Returns the same for messages whose fields stand in any order."""
    position = start
    for _ in range(_MAX_MESSAGES):
        begin = text.find(b"{", position, end)
        if begin < 0:
            return end
        position = _object_end(text, begin, end)
        if _USER.search(text, begin, position):
            return position
    return end


def _object_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the object that starts at `start`."""
    depth, position = 0, start
    while position < end:
        match = _OBJECT_PART.match(text, position, end)
        position = match.end() if match is not None else position
        if position >= end:
            return end
        if text[position] == _OPENING:
            depth += 1
        elif text[position] == _CLOSING:
            depth -= 1
        else:
            return end
        position += 1
        if depth == 0:
            return position
    return end
