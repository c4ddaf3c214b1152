"""What a prompt is in tokens: how an engine is asked for it, and how its answer is read.

vLLM's ``/tokenize`` applies the very chat template that a request would go through, tools and all, so its tokens are those that the
engine caches. What may change the prompt and is not passed on there makes a prompt one that nobody is asked about.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fairlead.errors import Unavailable
from fairlead_gateway.ipc.messages import CHAT_SAMPLE

TOKENIZE_PATH: Final = "/tokenize"
MODELS_PATH: Final = "/v1/models"
_MEDIA_PATTERN: Final = re.compile(rb'"(?:image|audio|video|file)[a-z_]*"|"input_(?:image|audio|file)"')


class _TemplateFields(msgspec.Struct, kw_only=True):
    """What of a chat goes through the engine's template: passed on as it is."""

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
    """A prompt as far as it is understood: a ``question`` for an engine, or its ``tokens`` already, in which case ``text`` is what
    stands between the brackets. ``salt``: the cache salt. ``prompt``: of a prompt of text its JSON string, and whether ``special``
    tokens go around it."""

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


def tokenize_query(kind: str, body: bytes, model: str) -> TokenizeQuery | None:
    """What to ask for a request's body, of an engine that calls the model so; None where its tokens cannot be asked for."""
    try:
        return (
            _chat_query(_CHAT_DECODER.decode(body), model)
            if kind == CHAT_SAMPLE
            else _completion_query(_COMPLETION_DECODER.decode(body), model)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def parse_tokens(response: bytes) -> list[int]:
    """The tokens of an engine's answer. Raises Unavailable when there are none in it."""
    try:
        return _TOKENIZE_RESPONSE_DECODER.decode(response).tokens
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("its answer holds no tokens") from None


def adapter_names(response: bytes) -> frozenset[str]:
    """The names in an engine's ``/v1/models`` that are LoRA adapters: those with a parent. Raises Unavailable."""
    try:
        return frozenset(one.id for one in _MODEL_LIST_DECODER.decode(response).data if one.parent is not None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("its list of models cannot be read") from None


def numbers_before(text: bytes, ends: Sequence[int]) -> list[int]:
    """How many of the numbers of a JSON array's text lie wholly before each end."""
    found, at, count = [], 0, 0
    for end in ends:
        count += text.count(b",", at, end)
        at = end
        found.append(count)
    return found


def _chat_query(chat: _ChatPrompt, model: str) -> TokenizeQuery | None:
    unknown = (chat.documents, chat.reasoning_effort, chat.truncate_prompt_tokens, chat.kv_transfer_params)
    if any(one is not UNSET for one in unknown):
        return None
    if _MEDIA_PATTERN.search(bytes(chat.messages)):
        return None
    passed = {name: getattr(chat, name) for name in _TemplateFields.__struct_fields__}
    question = _ChatTokenizeRequest(model=model, **passed)
    return TokenizeQuery(_encode(question), salt=chat.cache_salt or None)


def _completion_query(completion: _CompletionPrompt, model: str) -> TokenizeQuery | None:
    unknown = (
        completion.suffix,
        completion.truncate_prompt_tokens,
        completion.prompt_embeds,
        completion.kv_transfer_params,
    )
    if any(one is not UNSET for one in unknown):
        return None
    prompt, salt = bytes(completion.prompt), completion.cache_salt or None
    if prompt[:1] == b'"':
        question = _encode(_TextTokenizeRequest(model, completion.prompt, completion.add_special_tokens))
        special = completion.add_special_tokens
        return TokenizeQuery(
            question, salt=salt, prompt=prompt, add_special_tokens=special is UNSET or bytes(special) == b"true"
        )
    return TokenizeQuery(None, tuple(_TOKEN_IDS_DECODER.decode(prompt)), prompt[1:-1], salt)
