"""Parses request bodies, and the usual kind of chat in one pass.

In general, a body is parsed twice (`validation`): once as a whole, without its prompt, and then the
prompt. A chat whose messages hold only known fields is cut at their brackets instead, so each byte
is parsed once. Everything else takes the general way, in particular every invalid body.
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

# Why constants: compiled code reads those of its own module directly, and looks up others.
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
    """A parsed body, with copies of the fields that every request needs.

    session: the client's name for the conversation.
    has_cache_variants: more than the model decides what an engine caches for the prompt.
    may_carry_kv_transfer: the body may hold fields of `kv_transfer_fields`; escaped names count.
    is_passthrough: the gateway reads neither prompt nor response.
    messages_start, messages_end: where the text between the brackets of the messages lies in the
        body; both 0 if `fields` holds the prompt.

    Why 8 parameters: they are the fields of one record. Attributes of a msgspec struct are slow to
    read, so those that every request needs are copied here.
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
    """Parses a body as `kind`. Raises BadRequest, which names the field."""
    if kind is _CHAT:
        parsed = _parse_chat_fast(body, limits)
        return parsed if parsed is not None else _parsed_chat(decode_body(kind, body, limits), None)
    return parsed_body(decode_body(kind, body, limits))


def parsed_body(fields: CommonFields) -> ParsedBody:
    """Returns the parsed body for checked fields."""
    session = fields.session_id or fields.user
    has_cache_variants = bool(fields.cache_salt)
    transfer_values = (
        fields.kv_transfer_params,
        fields.ec_transfer_params,
        fields.kv_cache_report_mode,
        fields.vllm_xargs,
    )
    may_carry_kv_transfer = any(value is not _UNSET for value in transfer_values)
    if not isinstance(fields, GenerationFields):
        is_passthrough = isinstance(fields, GenericRequest)
        return ParsedBody(
            fields,
            fields.model,
            session,
            has_cache_variants=has_cache_variants,
            may_carry_kv_transfer=may_carry_kv_transfer,
            is_passthrough=is_passthrough,
        )
    has_cache_variants = has_cache_variants or fields.response_format is not _UNSET
    return ParsedBody(
        fields,
        fields.model,
        session,
        fields.max_tokens,
        stream=bool(fields.stream),
        has_cache_variants=has_cache_variants,
        may_carry_kv_transfer=may_carry_kv_transfer,
    )


def _parse_chat_fast(body: bytes, limits: Limits) -> ParsedBody | None:
    """Parses a chat whose messages hold only known fields.

    Returns None if it must be parsed in the general way. Raises BadRequest if a value is out of
    range or the body is nested too deep.

    Why the cut is right: an array ends only once, so both parts are complete. The key before it
    occurs only once, in whatever spelling. Types bound the depth of the messages.
    """
    size = len(body)
    key_start = body.find(_MESSAGES_KEY)
    start = key_start + 11  # behind the key and a colon; anything else there makes the rest invalid
    end = body.rfind(b'"}]') + 3
    if key_start < 0 or end <= start + 1 or size > limits.json_values or size > 2 * limits.json_containers:
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
        if not rest.isascii():  # the decoder of the messages finds what is not UTF-8 in them
            str(rest, "utf-8")
        fields = _DECODE_CHAT(rest)
        if not _DECODE_PLAIN_MESSAGES(
            body[start:end] if end - start <= _MAX_COPIED_BYTES else memoryview(body)[start:end]
        ):
            return None
    except _DECODE_ERRORS:
        return None
    if limits.json_depth < _PLAIN_MESSAGES_DEPTH:
        return None
    check_depth(rest, limits)
    parsed = _parsed_chat(fields, limits)
    parsed.messages_start, parsed.messages_end = start + 1, end - 1
    return parsed


def _parsed_chat(fields: CommonFields, limits: Limits | None) -> ParsedBody:
    """Returns the parsed body of a chat, as `parsed_body` does, but reads all fields in one step.

    limits: the fields are checked against these; None: the fields are already checked.
    Raises BadRequest, which names the field.
    """
    values = _AS_TUPLE(fields)
    has_rare_fields = values[_RARE_START:_RARE_END] != _NO_RARE_FIELDS
    max_tokens: int | None = values[_MAX_TOKENS]
    if limits is not None:
        priority: int | None = values[_PRIORITY]
        if priority is not None:
            check_priority(priority)
        if (has_rare_fields or (max_tokens is not None and not 1 <= max_tokens <= limits.max_tokens)) and isinstance(
            fields, GenerationFields
        ):
            check_generation(fields, limits)
    has_cache_variants = bool(values[_SALT])
    if has_rare_fields:
        has_cache_variants = has_cache_variants or values[_FORMAT] is not _UNSET or values[_TOOLS] is not _UNSET
        max_completion_tokens: int | None = values[_MAX_COMPLETION_TOKENS]
        max_tokens = max_tokens if max_completion_tokens is None else max_completion_tokens
    return ParsedBody(
        fields,
        values[_MODEL],
        values[_SESSION] or values[_USER],
        max_tokens,
        stream=bool(values[_STREAM]),
        has_cache_variants=has_cache_variants,
        may_carry_kv_transfer=values[_KV_TRANSFER_START:_KV_TRANSFER_END] != _NO_KV_TRANSFER,
    )
