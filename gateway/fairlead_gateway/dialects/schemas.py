"""The fields of request bodies that Fairlead reads or checks, with their types and decoders.

Why a module of its own: mypyc cannot compile structs, and the modules that use them are compiled.
"""

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

OptionalText = str | None
OptionalNumber = float | None
OptionalInt = int | None
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
PromptInput = str | list[str | TokenId | list[TokenId]]

PLAIN_MESSAGES_DEPTH = 6
"""Levels of a body whose messages are all `PlainMessage`; other fields may have more."""

MEMBERS_DECODER = msgspec.json.Decoder(dict[str, Raw])
ITEMS_DECODER = msgspec.json.Decoder(list[Raw])
NULLABLE_ITEMS_DECODER = msgspec.json.Decoder(list[Raw] | None)

PROMPT_INPUT_DECODER = msgspec.json.Decoder(PromptInput)
STOP_DECODER = msgspec.json.Decoder(str | list[str] | None)
LOGIT_BIAS_DECODER = msgspec.json.Decoder(dict[str, float] | None)
NUMBER_DECODER = msgspec.json.Decoder(float | None)

LAX_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind, strict=False) for kind in (int, float, bool)
}


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RepetitionDetection(Struct):
    """`repetition_detection` of vLLM."""

    max_pattern_size: OptionalNumber = None


class MessagePart(Struct):
    """One part of a message's content."""

    type: OptionalText = None
    text: OptionalText = None


class ToolCallFunction(Struct):
    """The function of a tool call."""

    name: OptionalText = None
    arguments: str | dict[str, Raw] | None = None


class ToolFunction(Struct):
    """The definition of a tool."""

    name: str


class Tool(Struct):
    """A tool that the model may call."""

    type: OptionalText = None
    function: ToolFunction | None = None


class ToolKind(Struct):
    """The type of a tool; those of providers have one of their own."""

    type: OptionalText = None


class ToolCall(Struct):
    """A call that the model made in an earlier message."""

    id: OptionalText = None
    type: OptionalText = None
    function: ToolCallFunction | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | list[str | MessagePart] | None = None
    name: OptionalText = None
    tool_call_id: OptionalText = None
    tool_calls: list[ToolCall] | None = None


class PlainPart(Struct, forbid_unknown_fields=True, gc=False):
    """A part of a message's content that is only text."""

    type: OptionalText = None
    text: OptionalText = None


class PlainFunction(Struct, forbid_unknown_fields=True, gc=False):
    """The function of a tool call, with known fields only."""

    name: OptionalText = None
    arguments: OptionalText = None


class PlainToolCall(Struct, forbid_unknown_fields=True, gc=False):
    """A tool call with known fields only."""

    id: OptionalText = None
    type: OptionalText = None
    index: OptionalInt = None
    function: PlainFunction | None = None


class PlainMessage(Struct, forbid_unknown_fields=True, gc=False):
    """A message with known fields only: a valid `Message` whose depth is bounded."""

    role: str
    content: str | list[PlainPart] | None = None
    name: OptionalText = None
    tool_call_id: OptionalText = None
    tool_calls: list[PlainToolCall] | None = None
    reasoning_content: OptionalText = None
    refusal: OptionalText = None
    function_call: None = None
    audio: None = None


class CommonFields(Struct, kw_only=True):
    """Fields of every request for a model.

    is_listed: the body has no other fields than those of the class.
    """

    model: str
    user: OptionalText = None
    session_id: OptionalText = None
    prompt_cache_key: OptionalText = None
    safety_identifier: OptionalText = None
    cache_salt: OptionalText = None
    encoding_format: OptionalText = None

    is_listed: ClassVar[bool] = False


class GenerationFields(CommonFields, kw_only=True):
    """Fields of every request that generates."""

    stream: bool | None = None
    max_tokens: OptionalInt = None
    temperature: OptionalNumber = None
    top_p: OptionalNumber = None
    min_p: OptionalNumber = None
    frequency_penalty: OptionalNumber = None
    presence_penalty: OptionalNumber = None
    repetition_penalty: OptionalNumber = None
    n: OptionalInt = None
    top_k: OptionalInt = None
    min_tokens: OptionalInt = None
    seed: OptionalInt = None
    prompt_logprobs: OptionalInt = None
    stream_options: Raw | UnsetType = UNSET
    stop: Raw | UnsetType = UNSET
    logit_bias: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    structured_outputs: Raw | UnsetType = UNSET


MESSAGES_DECODER = msgspec.json.Decoder(list[Message])
PLAIN_MESSAGES_DECODER = msgspec.json.Decoder(list[PlainMessage])
STREAM_OPTIONS_DECODER = msgspec.json.Decoder(StreamOptions | None)
REPETITION_DECODER = msgspec.json.Decoder(RepetitionDetection | None)
TOOL_KINDS_DECODER = msgspec.json.Decoder(list[ToolKind] | None)
TOOLS_DECODER = msgspec.json.Decoder(list[Tool] | None)


def has_value(raw: Raw | UnsetType) -> bool:
    return raw is not UNSET and bytes(raw) != b"null"
