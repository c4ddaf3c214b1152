"""Queries for the tokens of a prompt, and the decoding of an engine's replies.

vLLM's `/tokenize` applies the chat template that a request would go through, tools included. So its
tokens are those that the engine caches. Some fields of a request may change its prompt and cannot
be sent to `/tokenize`. A request with one of them gets no query.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fairlead.errors import Unavailable
from fairlead_gateway.dialects.chat_forms import CHAT_FORMS, chat_form
from fairlead_gateway.kv_index.messages import CHAT_SAMPLE

TOKENIZE_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Limit: a response with the tokens of a prompt; a token takes some 7 bytes."""

TOKENIZE_PATH: Final = "/tokenize"
MODELS_PATH: Final = "/v1/models"
_MEDIA_PATTERN: Final = re.compile(rb'"(?:image|audio|video|file)[a-z_]*"|"input_(?:image|audio|file)"')


_CHAT_FIELDS: Final = (
    *("messages", "tools", "chat_template", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message", "add_special_tokens"),
)
"""The fields of a chat that the engine's template uses; sent to `/tokenize` unchanged."""
_TEXT_FIELDS: Final = ("prompt", "add_special_tokens")
_UNSUPPORTED_CHAT_FIELDS: Final = ("documents", "reasoning_effort", "truncate_prompt_tokens", "kv_transfer_params")
_UNSUPPORTED_TEXT_FIELDS: Final = ("suffix", "truncate_prompt_tokens", "prompt_embeds", "kv_transfer_params")
"""Fields that change a prompt, and that `/tokenize` does not know."""
_ALL_FIELDS: Final = {*_CHAT_FIELDS, *_TEXT_FIELDS, *_UNSUPPORTED_CHAT_FIELDS, *_UNSUPPORTED_TEXT_FIELDS}
_Prompt: Final = msgspec.defstruct(
    "_Prompt", [("cache_salt", str | None, None), *((name, Raw | UnsetType, UNSET) for name in sorted(_ALL_FIELDS))]
)
"""The body of a request, without all other fields."""

_PROMPT_DECODER: Final = msgspec.json.Decoder(_Prompt)
_TOKEN_IDS_DECODER: Final = msgspec.json.Decoder(list[int])

_TEMPLATE_RESPONSE_BYTES: Final = 256 * 1024
_TOKEN_RESPONSE_BYTES: Final = 16


class _TokenizeResponse(msgspec.Struct):
    tokens: list[int]


class _ModelCard(msgspec.Struct):
    id: str
    parent: str | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


@dataclass(frozen=True, slots=True)
class TokenizeQuery:
    """A request to an engine for the tokens of a prompt, or the tokens themselves.

    - engine_request: None if the prompt consists of token ids.
    - tokens, text: the token ids, and the text between the brackets of their JSON array.
    - salt: the cache salt.
    """

    engine_request: bytes | None
    tokens: tuple[int, ...] = ()
    text: bytes = b""
    salt: str | None = None


_TOKENIZE_RESPONSE_DECODER: Final = msgspec.json.Decoder(_TokenizeResponse)
_MODEL_LIST_DECODER: Final = msgspec.json.Decoder(_ModelList)
_encode = msgspec.json.Encoder().encode


def tokenize_query(kind: str, body: bytes, model: str) -> TokenizeQuery | None:
    """Returns the query for a request's body; None if its tokens cannot be queried.

    model: the name of the model at the engine.
    """
    if kind in CHAT_FORMS:
        chat = chat_form(kind, body)
        if chat is None:
            return None
        kind, body = CHAT_SAMPLE, chat
    try:
        return _query(_PROMPT_DECODER.decode(body), model, is_chat=kind == CHAT_SAMPLE)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def parse_tokens(response: bytes) -> list[int]:
    """Returns the tokens of an engine's `/tokenize` response. Raises Unavailable."""
    try:
        return _TOKENIZE_RESPONSE_DECODER.decode(response).tokens
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("the engine's /tokenize response has no tokens") from None


def max_tokenize_response_bytes(engine_request: bytes, limit: int) -> int:
    """Returns the size of the largest response that an engine may have to this request.

    A token has at least one byte of the prompt and takes up to 12. Templates add tokens of their
    own.

    Why: an engine could otherwise answer many small prompts with millions of tokens each. The
    supervisor has neither the time nor the memory for them.
    """
    return min(limit, _TEMPLATE_RESPONSE_BYTES + _TOKEN_RESPONSE_BYTES * len(engine_request))


def adapter_names(response: bytes) -> frozenset[str]:
    """Returns the names of LoRA adapters in a `/v1/models` response. Raises Unavailable.

    An adapter is an entry with a parent.
    """
    try:
        return frozenset(card.id for card in _MODEL_LIST_DECODER.decode(response).data if card.parent is not None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("the engine's /v1/models response cannot be read") from None


def numbers_before(text: bytes, ends: Sequence[int]) -> list[int]:
    """Returns, for each byte offset in `ends`, how many numbers of a JSON array end before it.

    text: the array without its brackets.
    """
    counts, start, count = [], 0, 0
    for end in ends:
        count += text.count(b",", start, end)
        start = end
        counts.append(count)
    return counts


def _query(body: Any, model: str, *, is_chat: bool) -> TokenizeQuery | None:
    """Returns the query of a request; None if `/tokenize` would not give the tokens of its prompt.

    It knows no pictures.
    """
    known, unsupported = (
        (_CHAT_FIELDS, _UNSUPPORTED_CHAT_FIELDS) if is_chat else (_TEXT_FIELDS, _UNSUPPORTED_TEXT_FIELDS)
    )
    fields = {name: value for name in known if (value := getattr(body, name)) is not UNSET}
    if known[0] not in fields or any(getattr(body, name) is not UNSET for name in unsupported):
        return None
    request, salt, prompt = _encode({"model": model, **fields}), body.cache_salt or None, bytes(fields[known[0]])
    if is_chat:
        return None if _MEDIA_PATTERN.search(prompt) else TokenizeQuery(request, salt=salt)
    if prompt[:1] != b'"':
        return TokenizeQuery(None, tuple(_TOKEN_IDS_DECODER.decode(prompt)), prompt[1:-1], salt)
    return TokenizeQuery(request, salt=salt)
