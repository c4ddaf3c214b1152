"""Embeddings, as OpenAI defined them."""

from typing import ClassVar, Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.dialect import Dialect, Prompt
from fairlead_gateway.dialects.schemas import CommonFields, OptionalInt


class EmbeddingRequest(CommonFields, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Raw
    dimensions: OptionalInt = None


class ListedEmbeddingRequest(EmbeddingRequest, kw_only=True, forbid_unknown_fields=True):
    """Embeddings with frequent, harmless fields only; see `ListedChatRequest`."""

    is_listed: ClassVar[bool] = True

    add_special_tokens: Raw | UnsetType = UNSET
    truncate_prompt_tokens: Raw | UnsetType = UNSET


EMBEDDINGS: Final[Dialect] = Dialect(
    "embeddings",
    ("/v1/embeddings",),
    EmbeddingRequest,
    ListedEmbeddingRequest,
    Prompt("input"),
    operation="embeddings",
    has_early_answer=True,
)
