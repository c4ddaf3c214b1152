"""Chat completions, as OpenAI defined them."""

from typing import ClassVar, Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.body_form import ALL_SAMPLING, BodyForm
from fairlead_gateway.dialects.dialect import Dialect, Prompt
from fairlead_gateway.dialects.schemas import GenerationFields, OptionalInt

CHAT_FORM: Final[BodyForm] = BodyForm(
    ("max_completion_tokens", "max_tokens"), ALL_SAMPLING, ("n",), has_min_tokens=True
)


class ChatRequest(GenerationFields, kw_only=True, gc=False):
    """`POST /v1/chat/completions`. Most chats set none of the fields from `n` to `tools`."""

    max_completion_tokens: OptionalInt = None
    top_logprobs: OptionalInt = None
    tools: Raw | UnsetType = UNSET
    messages: Raw
    logprobs: bool | None = None
    tool_choice: str | dict[str, Raw] | None = None


class ListedChatRequest(ChatRequest, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A chat with frequent, harmless fields only; none of them may be in `field_policy`.

    Why: the decoder finds any other field at no cost. Only then are the names of all fields read.
    """

    is_listed: ClassVar[bool] = True

    add_generation_prompt: Raw | UnsetType = UNSET
    continue_final_message: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET
    functions: Raw | UnsetType = UNSET
    ignore_eos: Raw | UnsetType = UNSET
    include_reasoning: Raw | UnsetType = UNSET
    include_stop_str_in_output: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    modalities: Raw | UnsetType = UNSET
    parallel_tool_calls: Raw | UnsetType = UNSET
    reasoning_effort: Raw | UnsetType = UNSET
    return_token_ids: Raw | UnsetType = UNSET
    service_tier: Raw | UnsetType = UNSET
    skip_special_tokens: Raw | UnsetType = UNSET
    store: Raw | UnsetType = UNSET
    verbosity: Raw | UnsetType = UNSET


CHAT: Final[Dialect] = Dialect(
    "chat",
    ("/v1/chat/completions",),
    ChatRequest,
    ListedChatRequest,
    Prompt("messages", ("tools", "functions", "documents")),
    CHAT_FORM,
    operation="chat",
    requests_usage=True,
)
