"""Requests whose bodies and answers are passed on: scores, token ids, and whatever engines add."""

from typing import Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.chat import CHAT_FORM
from fairlead_gateway.dialects.dialect import Answer, Dialect
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


_BODIES: Final = (GenericRequest, None)
_EARLY: Final = Answer(is_early=True)
_NOT_COMPUTED: Final = Answer(is_computed=False)
TOKENIZE: Final = Dialect("tokenize", ("/tokenize", "/detokenize"), _BODIES, answer=_NOT_COMPUTED)
SCORES: Final = Dialect(
    "scores",
    ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/classify", "/v1/classify"),
    _BODIES,
    answer=_EARLY,
)
POOLING: Final = Dialect("pooling", ("/v1/pooling",), _BODIES, answer=_EARLY)
CHAT_BATCH: Final = Dialect("chat-batch", ("/v1/chat/completions/batch",), _BODIES, answer=Answer(CHAT_FORM))
TOKENIZE_V1: Final = Dialect("tokenize", ("/v1/tokenize", "/v1/detokenize"), _BODIES, answer=_NOT_COMPUTED)
COUNT_TOKENS: Final = Dialect(
    "count-tokens",
    ("/v1/messages/count_tokens",),
    _BODIES,
    answer=_NOT_COMPUTED,
    errors=ANTHROPIC_ERRORS,
)
STORED_RESPONSE: Final = Dialect("stored-response", (), _BODIES, answer=_NOT_COMPUTED, errors=RESPONSES_ERRORS)
OTHER_MESSAGES: Final = Dialect("other", (), _BODIES, errors=ANTHROPIC_ERRORS)
OTHER: Final = Dialect("other", (), _BODIES)
"""Whatever path a dialect of the table does not have."""
