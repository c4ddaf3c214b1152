"""Messages, as Anthropic defined them, and as vLLM, SGLang and others serve them.

Source: docs.anthropic.com/en/api/messages and messages-streaming.
"""

from typing import ClassVar, Final

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from fairlead_gateway.dialects.body_form import SAMPLING, BodyForm
from fairlead_gateway.dialects.dialect import Dialect, Prompt
from fairlead_gateway.dialects.error_shape import ANTHROPIC_ERRORS
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.dialects.volatile_text import without_marks


class MessagesMetadata(Struct, gc=False):
    """`metadata`: the name of a user, for the provider."""

    user_id: str | None = None


class MessagesRequest(GenerationFields, kw_only=True, gc=False):
    """`POST /v1/messages`."""

    messages: Raw
    system: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    stop_sequences: Raw | UnsetType = UNSET
    thinking: Raw | UnsetType = UNSET
    output_config: Raw | UnsetType = UNSET


class ListedMessagesRequest(MessagesRequest, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A request with frequent, harmless fields only; see `ListedChatRequest`."""

    is_listed: ClassVar[bool] = True

    betas: Raw | UnsetType = UNSET
    context_management: Raw | UnsetType = UNSET
    inference_geo: Raw | UnsetType = UNSET
    service_tier: Raw | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET


METADATA_DECODER: Final = Decoder(MessagesMetadata)
MESSAGES: Final[Dialect] = Dialect(
    "messages",
    ("/v1/messages",),
    MessagesRequest,
    ListedMessagesRequest,
    Prompt("messages", ("system", "tools"), is_open=True, without_marks=without_marks),
    BodyForm(("max_tokens",), SAMPLING),
    EventGrammar(
        b"content_block_delta",
        frozenset((b"message_start", b"message_delta", b"message_stop")),
        frozenset((b"message_stop",)),
        closing=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
    operation="chat",
    errors=ANTHROPIC_ERRORS,
)
