"""Responses, as OpenAI defined them, and as vLLM, SGLang and others serve them.

Source: platform.openai.com/docs/api-reference/responses and responses-streaming.
"""

from typing import ClassVar, Final

from msgspec import UNSET, Raw, UnsetType

from fairlead_gateway.dialects.body_form import BodyForm
from fairlead_gateway.dialects.dialect import Dialect, Prompt
from fairlead_gateway.dialects.error_shape import RESPONSES_ERRORS
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.schemas import GenerationFields, OptionalInt, OptionalText

_ENDS: Final = frozenset((b"response.completed", b"response.incomplete"))


class ResponsesRequest(GenerationFields, kw_only=True, gc=False):
    """`POST /v1/responses`."""

    input: Raw | UnsetType = UNSET
    instructions: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    max_output_tokens: OptionalInt = None
    top_logprobs: OptionalInt = None
    background: bool | None = None
    previous_response_id: OptionalText = None
    reasoning: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET


class ListedResponsesRequest(ResponsesRequest, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A request with frequent, harmless fields only; see `ListedChatRequest`."""

    is_listed: ClassVar[bool] = True

    client_metadata: Raw | UnsetType = UNSET
    include: Raw | UnsetType = UNSET
    max_tool_calls: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    parallel_tool_calls: Raw | UnsetType = UNSET
    service_tier: Raw | UnsetType = UNSET
    store: Raw | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    truncation: Raw | UnsetType = UNSET


RESPONSES: Final[Dialect] = Dialect(
    "responses",
    ("/v1/responses",),
    ResponsesRequest,
    ListedResponsesRequest,
    Prompt("input", ("instructions", "tools"), is_open=True),
    BodyForm(("max_output_tokens",), ("temperature", "top_p")),
    EventGrammar(b".delta", _ENDS, _ENDS, failed=b"response.failed", is_numbered=True),
    operation="chat",
    errors=RESPONSES_ERRORS,
)
