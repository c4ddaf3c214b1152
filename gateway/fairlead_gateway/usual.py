"""A chat of the usual kind, parsed once, and what every request is asked for beside the fields of its body.

A body that may be anything is parsed twice (``body``): all of it, passing over its prompt, and then the prompt. A chat whose messages
hold nothing that is not known is cut at the brackets of its messages instead, and each byte of it is parsed once. Whatever is not as
usual, an error above all, the body is read as any other.
"""

from typing import Final

import msgspec
from msgspec import UNSET
from msgspec.structs import astuple

from fairlead.limits import Limits
from fairlead_gateway.body import check_depth, check_generation, check_priority, parse
from fairlead_gateway.fields import DECODERS, KNOWN_DEPTH, KNOWN_MESSAGES, Chat, Common, Generation, Other

# Constants of this module are found at once by compiled code, those of one that is not compiled by their name.
_CHAT: Final = Chat
_NAMES: Final = Chat.__struct_fields__
_MODEL: Final = _NAMES.index("model")
_USER: Final = _NAMES.index("user")
_SESSION: Final = _NAMES.index("session_id")
_SALT: Final = _NAMES.index("cache_salt")
_PRIORITY: Final = _NAMES.index("priority")
_HANDOFF: Final = _NAMES.index("kv_transfer_params")
_HANDOFF_END: Final = _NAMES.index("vllm_xargs") + 1
_STREAM: Final = _NAMES.index("stream")
_MAX_TOKENS: Final = _NAMES.index("max_tokens")
_RARE: Final = _NAMES.index("n")
_RARE_END: Final = _NAMES.index("tools") + 1
_MAX_COMPLETION_TOKENS: Final = _NAMES.index("max_completion_tokens")
_FORMAT: Final = _NAMES.index("response_format")
_TOOLS: Final = _NAMES.index("tools")
_ABSENT: Final = astuple(Chat(model="", messages=msgspec.Raw(b"[]")))
_NOTHING_RARE: Final = _ABSENT[_RARE:_RARE_END]
_NO_HANDOFF: Final = _ABSENT[_HANDOFF:_HANDOFF_END]
_UNSET: Final = UNSET
_AS_TUPLE: Final = astuple
_DECODE_CHAT: Final = DECODERS[Chat].decode
_DECODE_KNOWN: Final = KNOWN_MESSAGES.decode
_KNOWN_DEPTH: Final = KNOWN_DEPTH
_MESSAGES: Final = b'"messages"'
_ESCAPE: Final = ord("\\")
_SPACE: Final = ord(" ")
_OPENING: Final = ord("[")
_COPIED_BYTES: Final = 4_096
_NOT_USUAL: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Read:
    """A body that was read: its ``fields``, and beside them what every request is asked for, since a struct's are slow to look at.

    ``session`` is what the client calls the conversation. ``special``: more than the model decides what an engine caches of the
    prompt. ``may_hand_over``: a field of ``handoff`` is here, or one that may hold one; the parser knows a name however it is
    escaped. ``opaque``: neither prompt nor answer are understood. ``start`` and ``end`` are where in the body the text between the
    brackets of its messages lies; without them the ``fields`` hold the prompt.
    """

    __slots__ = (
        "end",
        "fields",
        "max_tokens",
        "may_hand_over",
        "model",
        "opaque",
        "session",
        "special",
        "start",
        "stream",
    )

    def __init__(
        self,
        fields: Common,
        model: str,
        session: str | None,
        max_tokens: int | None = None,
        *,
        stream: bool = False,
        special: bool = False,
        may_hand_over: bool = False,
        opaque: bool = False,
    ) -> None:
        self.fields = fields
        self.model = model
        self.session = session
        self.max_tokens = max_tokens
        self.stream = stream
        self.special = special
        self.may_hand_over = may_hand_over
        self.opaque = opaque
        self.start: int = 0
        self.end: int = 0


def read(kind: type[Common], body: bytes, limits: Limits) -> Read:
    """A body as ``kind``. Raises BadRequest naming the field."""
    if kind is _CHAT:
        usual = _usual(body, limits)
        return usual if usual is not None else _beside_chat(parse(kind, body, limits), None)
    return beside(parse(kind, body, limits))


def beside(found: Common) -> Read:
    """What every request is asked for, from fields that are checked."""
    session = found.session_id or found.user
    special = bool(found.cache_salt)
    handed = found.kv_transfer_params, found.ec_transfer_params, found.kv_cache_report_mode, found.vllm_xargs
    may_hand_over = any(value is not _UNSET for value in handed)
    if not isinstance(found, Generation):
        opaque = isinstance(found, Other)
        return Read(found, found.model, session, special=special, may_hand_over=may_hand_over, opaque=opaque)
    special = special or found.response_format is not _UNSET
    return Read(
        found,
        found.model,
        session,
        found.max_tokens,
        stream=bool(found.stream),
        special=special,
        may_hand_over=may_hand_over,
    )


def _usual(body: bytes, limits: Limits) -> Read | None:
    """A chat whose messages have known fields only; None: it is to be read as any other.

    The cut is right when both parts are whole, since an array has one end only, and when the name before it is the only such name,
    in whatever way one may write it. How deep the messages are is bounded by their types.
    """
    size = len(body)
    name = body.find(_MESSAGES)
    start = name + 11  # behind the name and a colon; whatever else stands there is found in the rest
    end = body.rfind(b'"}]') + 3
    if name < 0 or end <= start + 1 or size > limits.json_values or size > 2 * limits.json_containers:
        return None
    if body[start] == _SPACE:
        start += 1
    if body[start] != _OPENING:
        return None
    if body[end : end + 2] == b"}]":  # the last message's text is in parts
        end += 2
    rest = body[:start] + b"0" + body[end:]
    if rest.count(_MESSAGES) != 1 or (_ESCAPE in rest and rest.find(rb"\u") >= 0):
        return None
    try:
        if not rest.isascii():  # the messages' texts are all decoded, which finds what is not UTF-8
            str(rest, "utf-8")
        found = _DECODE_CHAT(rest)
        if not _DECODE_KNOWN(body[start:end] if end - start <= _COPIED_BYTES else memoryview(body)[start:end]):
            return None
    except _NOT_USUAL:
        return None
    if limits.json_depth < _KNOWN_DEPTH:
        return None
    check_depth(rest, limits)
    usual = _beside_chat(found, limits)
    usual.start, usual.end = start + 1, end - 1
    return usual


def _beside_chat(found: Common, limits: Limits | None) -> Read:
    """The same for a chat, from all of its fields at once. With ``limits`` it is checked, too: what most chats have none of only
    where it is there."""
    values = _AS_TUPLE(found)
    rare = values[_RARE:_RARE_END] != _NOTHING_RARE
    most: int | None = values[_MAX_TOKENS]
    if limits is not None:
        priority: int | None = values[_PRIORITY]
        if priority is not None:
            check_priority(priority)
        if (rare or (most is not None and not 1 <= most <= limits.max_tokens)) and isinstance(found, Generation):
            check_generation(found, limits)
    special = bool(values[_SALT])
    if rare:
        special = special or values[_FORMAT] is not _UNSET or values[_TOOLS] is not _UNSET
        most_of_all: int | None = values[_MAX_COMPLETION_TOKENS]
        most = most if most_of_all is None else most_of_all
    return Read(
        found,
        values[_MODEL],
        values[_SESSION] or values[_USER],
        most,
        stream=bool(values[_STREAM]),
        special=special,
        may_hand_over=values[_HANDOFF:_HANDOFF_END] != _NO_HANDOFF,
    )
