"""Requests whose bodies and answers are passed on: scores, token ids, and whatever engines add."""

from dataclasses import replace
from typing import Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.chat import CHAT_FORM
from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.error_shape import ANTHROPIC_ERRORS, RESPONSES_ERRORS
from fairlead_gateway.dialects.schemas import CommonFields, OptionalInt


class GenericRequest(CommonFields, kw_only=True):
    """A request whose other fields are neither read nor changed.

    Only what has crashed engines, or occupied them for all, is bounded: counts, stop strings, and
    the number of conversations, documents and other inputs.
    """

    stream: bool | None = None
    n: OptionalInt = None
    best_of: OptionalInt = None
    max_tokens: OptionalInt = None
    max_completion_tokens: OptionalInt = None
    max_output_tokens: OptionalInt = None
    top_logprobs: OptionalInt = None
    stop: Raw | UnsetType = UNSET
    stop_sequences: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    documents: Raw | UnsetType = UNSET
    items: Raw | UnsetType = UNSET
    queries: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    text_1: Raw | UnsetType = UNSET
    text_2: Raw | UnsetType = UNSET
    data_1: Raw | UnsetType = UNSET
    data_2: Raw | UnsetType = UNSET


TOKENIZE: Final[Dialect] = Dialect(
    "tokenize", ("/tokenize", "/detokenize"), GenericRequest, is_computed=False, has_early_answer=True
)
SCORES: Final[Dialect] = Dialect(
    "scores",
    ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/classify", "/v1/classify"),
    GenericRequest,
    is_measured=True,
    has_early_answer=True,
)
POOLING: Final[Dialect] = replace(SCORES, name="pooling", paths=("/v1/pooling",))
CHAT_BATCH: Final[Dialect] = Dialect("chat-batch", ("/v1/chat/completions/batch",), GenericRequest, form=CHAT_FORM)
TOKENIZE_V1: Final[Dialect] = replace(TOKENIZE, paths=("/v1/tokenize", "/v1/detokenize"))
COUNT_TOKENS: Final[Dialect] = replace(
    TOKENIZE, name="count-tokens", paths=("/v1/messages/count_tokens",), errors=ANTHROPIC_ERRORS
)
STORED_RESPONSE: Final[Dialect] = replace(TOKENIZE, name="stored-response", paths=(), errors=RESPONSES_ERRORS)
OTHER: Final[Dialect] = Dialect("other", (), GenericRequest)
"""Whatever path a dialect of the table does not have."""
OTHER_MESSAGES: Final[Dialect] = replace(OTHER, errors=ANTHROPIC_ERRORS)
