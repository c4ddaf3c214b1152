"""Queries for the tokens of a prompt, and the decoding of an engine's replies.

vLLM's `/tokenize` applies the chat template that a request would go through, tools included. So its
tokens are those that the engine caches. Some fields of a request may change its prompt and cannot
be sent to `/tokenize`. A request with one of them gets no query.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fairlead.errors import Unavailable
from fairlead_gateway.ipc.messages import CHAT_SAMPLE

TOKENIZE_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Limit: a response with the tokens of a prompt; a token takes some 7 bytes."""

TOKENIZE_PATH: Final = "/tokenize"
MODELS_PATH: Final = "/v1/models"
_MEDIA_PATTERN: Final = re.compile(rb'"(?:image|audio|video|file)[a-z_]*"|"input_(?:image|audio|file)"')


class _TemplateFields(msgspec.Struct, kw_only=True):
    """The fields of a chat that the engine's template uses; sent to `/tokenize` unchanged."""

    messages: Raw
    tools: Raw | UnsetType = UNSET
    chat_template: Raw | UnsetType = UNSET
    chat_template_kwargs: Raw | UnsetType = UNSET
    add_generation_prompt: Raw | UnsetType = UNSET
    continue_final_message: Raw | UnsetType = UNSET
    add_special_tokens: Raw | UnsetType = UNSET


class _ChatPrompt(_TemplateFields, kw_only=True):
    cache_salt: str | None = None
    documents: Raw | UnsetType = UNSET
    reasoning_effort: Raw | UnsetType = UNSET
    truncate_prompt_tokens: Raw | UnsetType = UNSET
    kv_transfer_params: Raw | UnsetType = UNSET


class _CompletionPrompt(msgspec.Struct):
    prompt: Raw
    add_special_tokens: Raw | UnsetType = UNSET
    cache_salt: str | None = None
    suffix: Raw | UnsetType = UNSET
    truncate_prompt_tokens: Raw | UnsetType = UNSET
    prompt_embeds: Raw | UnsetType = UNSET
    kv_transfer_params: Raw | UnsetType = UNSET


class _ChatTokenizeRequest(_TemplateFields, kw_only=True):
    model: str


class _TextTokenizeRequest(msgspec.Struct):
    model: str
    prompt: Raw
    add_special_tokens: Raw | UnsetType = UNSET


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
    - prompt: the JSON string of a text prompt.
    - add_special_tokens: whether special tokens are put around a text prompt.
    """

    engine_request: bytes | None
    tokens: tuple[int, ...] = ()
    text: bytes = b""
    salt: str | None = None
    prompt: bytes | None = None
    add_special_tokens: bool = True


_CHAT_DECODER: Final = msgspec.json.Decoder(_ChatPrompt)
_COMPLETION_DECODER: Final = msgspec.json.Decoder(_CompletionPrompt)
_TOKEN_IDS_DECODER: Final = msgspec.json.Decoder(list[int])
_TOKENIZE_RESPONSE_DECODER: Final = msgspec.json.Decoder(_TokenizeResponse)
_MODEL_LIST_DECODER: Final = msgspec.json.Decoder(_ModelList)
_encode = msgspec.json.Encoder().encode
_TEMPLATE_RESPONSE_BYTES: Final = 256 * 1024
_TOKEN_RESPONSE_BYTES: Final = 16


def tokenize_query(kind: str, body: bytes, model: str) -> TokenizeQuery | None:
    """Returns the query for a request's body; None if its tokens cannot be queried.

    model: the name of the model at the engine.
    """
    try:
        return (
            _chat_query(_CHAT_DECODER.decode(body), model)
            if kind == CHAT_SAMPLE
            else _completion_query(_COMPLETION_DECODER.decode(body), model)
        )
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


def _chat_query(chat: _ChatPrompt, model: str) -> TokenizeQuery | None:
    """Returns the query of a chat; None if `/tokenize` would not give the tokens of its prompt.

    It knows none of the fields in `unsupported`, and no pictures.
    """
    unsupported = (chat.documents, chat.reasoning_effort, chat.truncate_prompt_tokens, chat.kv_transfer_params)
    if any(field is not UNSET for field in unsupported):
        return None
    if _MEDIA_PATTERN.search(bytes(chat.messages)):
        return None
    fields = {name: getattr(chat, name) for name in _TemplateFields.__struct_fields__}
    request = _ChatTokenizeRequest(model=model, **fields)
    return TokenizeQuery(_encode(request), salt=chat.cache_salt or None)


def _completion_query(completion: _CompletionPrompt, model: str) -> TokenizeQuery | None:
    unsupported = (
        completion.suffix,
        completion.truncate_prompt_tokens,
        completion.prompt_embeds,
        completion.kv_transfer_params,
    )
    if any(field is not UNSET for field in unsupported):
        return None
    prompt, salt = bytes(completion.prompt), completion.cache_salt or None
    if prompt[:1] == b'"':
        request = _encode(_TextTokenizeRequest(model, completion.prompt, completion.add_special_tokens))
        special = completion.add_special_tokens
        return TokenizeQuery(
            request, salt=salt, prompt=prompt, add_special_tokens=special is UNSET or bytes(special) == b"true"
        )
    return TokenizeQuery(None, tuple(_TOKEN_IDS_DECODER.decode(prompt)), prompt[1:-1], salt)
