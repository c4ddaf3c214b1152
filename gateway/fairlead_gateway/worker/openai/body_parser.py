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
from fairlead_gateway.worker.openai.schemas import (
    BODY_DECODERS,
    PLAIN_MESSAGES_DECODER,
    PLAIN_MESSAGES_DEPTH,
    ChatRequest,
    CommonFields,
    GenerationFields,
    GenericRequest,
)
from fairlead_gateway.worker.openai.validation import check_depth, check_generation, check_priority, decode_body

# Constants of this module are found at once by compiled code, those of one that is not compiled by their name.
_CHAT: Final = ChatRequest
_NAMES: Final = ChatRequest.__struct_fields__
_MODEL: Final = _NAMES.index("model")
_USER: Final = _NAMES.index("user")
_SESSION: Final = _NAMES.index("session_id")
_SALT: Final = _NAMES.index("cache_salt")
_PRIORITY: Final = _NAMES.index("priority")
_KV_TRANSFER_START: Final = _NAMES.index("kv_transfer_params")
_KV_TRANSFER_END: Final = _NAMES.index("vllm_xargs") + 1
_STREAM: Final = _NAMES.index("stream")
_MAX_TOKENS: Final = _NAMES.index("max_tokens")
_RARE_START: Final = _NAMES.index("n")
_RARE_END: Final = _NAMES.index("tools") + 1
_MAX_COMPLETION_TOKENS: Final = _NAMES.index("max_completion_tokens")
_FORMAT: Final = _NAMES.index("response_format")
_TOOLS: Final = _NAMES.index("tools")
_ABSENT: Final = astuple(ChatRequest(model="", messages=msgspec.Raw(b"[]")))
_NO_RARE_FIELDS: Final = _ABSENT[_RARE_START:_RARE_END]
_NO_KV_TRANSFER: Final = _ABSENT[_KV_TRANSFER_START:_KV_TRANSFER_END]
_UNSET: Final = UNSET
_AS_TUPLE: Final = astuple
_DECODE_CHAT: Final = BODY_DECODERS[ChatRequest].decode
_DECODE_PLAIN_MESSAGES: Final = PLAIN_MESSAGES_DECODER.decode
_PLAIN_MESSAGES_DEPTH: Final = PLAIN_MESSAGES_DEPTH
_MESSAGES_KEY: Final = b'"messages"'
_ESCAPE: Final = ord("\\")
_SPACE: Final = ord(" ")
_OPENING: Final = ord("[")
_MAX_COPIED_BYTES: Final = 4_096
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ParsedBody:
    """A body that was read: its ``fields``, and beside them what every request is asked for, since a struct's are slow to look at.

    ``session`` is what the client calls the conversation. ``special``: more than the model decides what an engine caches of the
    prompt. ``may_hand_over``: a field of ``handoff`` is here, or one that may hold one; the parser knows a name however it is
    escaped. ``opaque``: neither prompt nor answer are understood. ``start`` and ``end`` are where in the body the text between the
    brackets of its messages lies; without them the ``fields`` hold the prompt.
    """

    __slots__ = (
        "fields",
        "has_cache_variants",
        "is_passthrough",
        "max_tokens",
        "may_carry_kv_transfer",
        "messages_end",
        "messages_start",
        "model",
        "session",
        "stream",
    )

    def __init__(
        self,
        fields: CommonFields,
        model: str,
        session: str | None,
        max_tokens: int | None = None,
        *,
        stream: bool = False,
        has_cache_variants: bool = False,
        may_carry_kv_transfer: bool = False,
        is_passthrough: bool = False,
    ) -> None:
        self.fields = fields
        self.model = model
        self.session = session
        self.max_tokens = max_tokens
        self.stream = stream
        self.has_cache_variants = has_cache_variants
        self.may_carry_kv_transfer = may_carry_kv_transfer
        self.is_passthrough = is_passthrough
        self.messages_start: int = 0
        self.messages_end: int = 0


def parse_body(kind: type[CommonFields], body: bytes, limits: Limits) -> ParsedBody:
    """A body as ``kind``. Raises BadRequest naming the field."""
    if kind is _CHAT:
        usual = _parse_chat_fast(body, limits)
        return usual if usual is not None else _parsed_chat(decode_body(kind, body, limits), None)
    return parsed_body(decode_body(kind, body, limits))


def parsed_body(found: CommonFields) -> ParsedBody:
    """What every request is asked for, from fields that are checked."""
    session = found.session_id or found.user
    special = bool(found.cache_salt)
    handed = found.kv_transfer_params, found.ec_transfer_params, found.kv_cache_report_mode, found.vllm_xargs
    may_hand_over = any(value is not _UNSET for value in handed)
    if not isinstance(found, GenerationFields):
        opaque = isinstance(found, GenericRequest)
        return ParsedBody(
            found,
            found.model,
            session,
            has_cache_variants=special,
            may_carry_kv_transfer=may_hand_over,
            is_passthrough=opaque,
        )
    special = special or found.response_format is not _UNSET
    return ParsedBody(
        found,
        found.model,
        session,
        found.max_tokens,
        stream=bool(found.stream),
        has_cache_variants=special,
        may_carry_kv_transfer=may_hand_over,
    )


def _parse_chat_fast(body: bytes, limits: Limits) -> ParsedBody | None:
    """A chat whose messages have known fields only; None: it is to be read as any other.

    The cut is right when both parts are whole, since an array has one end only, and when the name before it is the only such name,
    in whatever way one may write it. How deep the messages are is bounded by their types.
    """
    size = len(body)
    name = body.find(_MESSAGES_KEY)
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
    if rest.count(_MESSAGES_KEY) != 1 or (_ESCAPE in rest and rest.find(rb"\u") >= 0):
        return None
    try:
        if not rest.isascii():  # the messages' texts are all decoded, which finds what is not UTF-8
            str(rest, "utf-8")
        found = _DECODE_CHAT(rest)
        if not _DECODE_PLAIN_MESSAGES(
            body[start:end] if end - start <= _MAX_COPIED_BYTES else memoryview(body)[start:end]
        ):
            return None
    except _DECODE_ERRORS:
        return None
    if limits.json_depth < _PLAIN_MESSAGES_DEPTH:
        return None
    check_depth(rest, limits)
    usual = _parsed_chat(found, limits)
    usual.messages_start, usual.messages_end = start + 1, end - 1
    return usual


def _parsed_chat(found: CommonFields, limits: Limits | None) -> ParsedBody:
    """The same for a chat, from all of its fields at once. With ``limits`` it is checked, too: what most chats have none of only
    where it is there."""
    values = _AS_TUPLE(found)
    rare = values[_RARE_START:_RARE_END] != _NO_RARE_FIELDS
    most: int | None = values[_MAX_TOKENS]
    if limits is not None:
        priority: int | None = values[_PRIORITY]
        if priority is not None:
            check_priority(priority)
        if (rare or (most is not None and not 1 <= most <= limits.max_tokens)) and isinstance(found, GenerationFields):
            check_generation(found, limits)
    special = bool(values[_SALT])
    if rare:
        special = special or values[_FORMAT] is not _UNSET or values[_TOOLS] is not _UNSET
        most_of_all: int | None = values[_MAX_COMPLETION_TOKENS]
        most = most if most_of_all is None else most_of_all
    return ParsedBody(
        found,
        values[_MODEL],
        values[_SESSION] or values[_USER],
        most,
        stream=bool(values[_STREAM]),
        has_cache_variants=special,
        may_carry_kv_transfer=values[_KV_TRANSFER_START:_KV_TRANSFER_END] != _NO_KV_TRANSFER,
    )
