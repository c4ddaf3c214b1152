"""Identifies the conversation of a request, so that a route sends all of its turns to one model.

The client's name for the conversation counts first. Without one, a chat is identified by its text
up to the end of the first message of a user: later turns begin with the same bytes. Of any other
request, the whole prompt counts.
"""

from typing import Final

from xxhash import xxh3_64_digest

from fairlead_gateway.native import USER_MESSAGE_END
from fairlead_gateway.worker.openai.json_edit import string_end
from fairlead_gateway.worker.openai.prefix_key import prompt_text
from fairlead_gateway.worker.openai.schemas import CommonFields

_DIGEST: Final = xxh3_64_digest
_USER_MESSAGE_END: Final = USER_MESSAGE_END
_QUOTE: Final = ord('"')
_OPENING: Final = ord("{")
_CLOSING: Final = ord("}")
_ROLE: Final = b'"role"'
_USER: Final = b'"user"'
_COMPACT_OPENING: Final = b'{"role":"user","content":"'
_SPACED_OPENING: Final = b'{"role": "user", "content": "'
"""A message of a user, as most clients begin it."""
_MAX_MESSAGES: Final = 64
MAX_MESSAGE_BYTES: Final = 16_384
"""Bytes of the first message of a user that count; more would only cost time."""


def session_digest(session: bytes, tenant: str | None) -> bytes:
    """Returns the digest of a client's name for a conversation; tenants do not share names."""
    return _DIGEST(session if tenant is None else b"%b\0%b" % (tenant.encode(), session))


def prompt_digest(text: bytes, start: int, end: int) -> bytes:
    """Returns the digest of the part of a prompt that all turns of its conversation begin with.

    start, end: where the prompt lies; of a chat, the text between the brackets of its messages.
    """
    return _DIGEST(text[start : conversation_end(text, start, end)])


def text_digest(fields: CommonFields | None, body: bytes) -> bytes:
    """Returns what identifies the conversation of a request that is no chat.

    fields: of its body; None if they are not known. Without a prompt in them, the body counts.
    """
    text = b"" if fields is None else prompt_text(fields)
    text = text or body
    return prompt_digest(text, 0, len(text))


def conversation_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the first message of a user, or of the part of it that counts.

    It is `end` if none is among the first messages.
    """
    scan = _USER_MESSAGE_END
    usual = usual_end(text, start, end) if scan is None else scan(text, start, end, MAX_MESSAGE_BYTES)
    if usual:
        return usual
    position = start
    for _ in range(_MAX_MESSAGES):
        begin = text.find(b"{", position, end)
        if begin < 0:
            return end
        position, is_user = _read_object(text, begin, end)
        if is_user:
            return min(position, begin + MAX_MESSAGE_BYTES)
    return end


def usual_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the first message of a user, if it is written as most clients do; else 0.

    It is the reference for `native.conversation_scanner`, which replaces it where it is compiled.

    Why: to read all messages before it takes several times as long. Inside texts, quotes are
    escaped, so only an object begins like this. All turns of a conversation have it at one place,
    since no message of a user in another form comes before it.
    """
    opening = _COMPACT_OPENING
    begin = text.find(opening, start, end)
    spaced = text.find(_SPACED_OPENING, start, end if begin < 0 else begin)
    if spaced >= 0:
        begin, opening = spaced, _SPACED_OPENING
    if begin < 0 or text.find(_USER, start, begin) >= 0:
        return 0
    content = begin + len(opening) - 1
    limit = begin + MAX_MESSAGE_BYTES
    close = text.find(b'"', content + 1, limit)
    if close >= 0 and text.find(b"\\", content, close) < 0:
        behind = close + 1
    else:
        behind = limit if close < 0 and limit <= end else string_end(text, content)
    if behind >= limit:
        return limit if limit < end else end
    if behind < end and text[behind] == _CLOSING:
        return behind + 1
    return 0


def _read_object(text: bytes, start: int, end: int) -> tuple[int, bool]:
    """Returns the end of the object that starts at `start`, and whether it is of a user.

    Of a long message of a user, any end beyond the part that counts.
    """
    depth = 0
    position = start
    is_role = is_user = False
    while position < end:
        char = text[position]
        if char == _QUOTE:
            behind = string_end(text, position)
            if is_role:
                is_user = text[position:behind] == _USER
                is_role = False
            elif depth == 1 and behind - position == 6:
                is_role = text[position:behind] == _ROLE
            position = behind
            if is_user and position - start > MAX_MESSAGE_BYTES:
                return position, True
            continue
        position += 1
        if char == _OPENING:
            depth += 1
        elif char == _CLOSING:
            depth -= 1
            if depth == 0:
                return position, is_user
    return end, is_user
