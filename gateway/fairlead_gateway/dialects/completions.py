"""Text completions, as OpenAI defined them."""

from typing import ClassVar, Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.body_form import ALL_SAMPLING, BodyForm
from fairlead_gateway.dialects.dialect import Dialect, Prompt
from fairlead_gateway.dialects.schemas import GenerationFields, OptionalInt, OptionalText

# Engines answer a completion without a limit with 16 tokens, as OpenAI does.
_FORM: Final = BodyForm(("max_tokens",), ALL_SAMPLING, ("n", "best_of"), absent_limit=16, has_min_tokens=True)


class CompletionRequest(GenerationFields, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Raw
    suffix: OptionalText = None
    echo: bool | None = None
    best_of: OptionalInt = None
    logprobs: OptionalInt = None


class ListedCompletionRequest(CompletionRequest, kw_only=True, forbid_unknown_fields=True):
    """A completion with frequent, harmless fields only; see `ListedChatRequest`."""

    is_listed: ClassVar[bool] = True

    add_special_tokens: Raw | UnsetType = UNSET
    ignore_eos: Raw | UnsetType = UNSET
    include_stop_str_in_output: Raw | UnsetType = UNSET
    return_token_ids: Raw | UnsetType = UNSET
    skip_special_tokens: Raw | UnsetType = UNSET
    use_beam_search: Raw | UnsetType = UNSET


COMPLETIONS: Final[Dialect] = Dialect(
    "completions",
    ("/v1/completions",),
    CompletionRequest,
    ListedCompletionRequest,
    Prompt("prompt", ("suffix",), is_context_first=False),
    _FORM,
    operation="text_completion",
    requests_usage=True,
)
