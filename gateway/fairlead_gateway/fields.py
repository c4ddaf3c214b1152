"""The fields of requests' bodies that Fairlead or an engine's safety depends on, with their types, and what decodes them.

Apart from what is done with them, since the modules that do it are compiled, and structs cannot be.
"""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

Text = str | None
Number = float | None
Whole = int | None
Tokens = str | list[str | int | list[int]]


_NO_JSON = Raw(b"null")


class StreamOptions(Struct):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Part(Struct):
    """One part of a message's content."""

    type: Text = None
    text: Text = None


class Function(Struct):
    """The function of a tool call."""

    name: Text = None
    arguments: str | dict[str, Raw] | None = None


class ToolFunction(Struct):
    """What a tool is."""

    name: str


class Tool(Struct):
    """One thing that the model may call."""

    type: Text = None
    function: ToolFunction | None = None


class ToolCall(Struct):
    """A call that the assistant made."""

    id: Text = None
    type: Text = None
    function: Function | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | list[str | Part] | None = None
    name: Text = None
    tool_call_id: Text = None
    tool_calls: list[ToolCall] | None = None


class KnownPart(Struct, forbid_unknown_fields=True, gc=False):
    """One part of a message's content that is nothing but text."""

    type: Text = None
    text: Text = None


class KnownFunction(Struct, forbid_unknown_fields=True, gc=False):
    """The function of a tool call with nothing in it that is not known."""

    name: Text = None
    arguments: Text = None


class KnownToolCall(Struct, forbid_unknown_fields=True, gc=False):
    """A call that the assistant made, likewise."""

    id: Text = None
    type: Text = None
    index: Whole = None
    function: KnownFunction | None = None


class KnownMessage(Struct, forbid_unknown_fields=True, gc=False):
    """A message with nothing in it that is not known: it is a ``Message``, too, and no deeper than this."""

    role: str
    content: str | list[KnownPart] | None = None
    name: Text = None
    tool_call_id: Text = None
    tool_calls: list[KnownToolCall] | None = None
    reasoning_content: Text = None
    refusal: Text = None
    function_call: None = None
    audio: None = None


class Common(Struct, kw_only=True):
    """Fields of every request for a model."""

    model: str
    user: Text = None
    session_id: Text = None
    request_id: Text = None
    cache_salt: Text = None
    priority: Whole = None
    encoding_format: Text = None
    kv_transfer_params: Raw | UnsetType = UNSET
    ec_transfer_params: Raw | UnsetType = UNSET
    kv_cache_report_mode: Raw | UnsetType = UNSET
    vllm_xargs: Raw | UnsetType = UNSET

    def forget(self) -> None:
        """Let go what refers to the body's bytes."""
        for name in self.__struct_fields__:
            if isinstance(getattr(self, name), Raw):
                setattr(self, name, _NO_JSON)


class Generation(Common, kw_only=True):
    """Fields of every request that generates."""

    stream: bool | None = None
    max_tokens: Whole = None
    temperature: Number = None
    top_p: Number = None
    min_p: Number = None
    frequency_penalty: Number = None
    presence_penalty: Number = None
    repetition_penalty: Number = None
    n: Whole = None
    top_k: Whole = None
    min_tokens: Whole = None
    seed: Whole = None
    prompt_logprobs: Whole = None
    stream_options: Raw | UnsetType = UNSET
    stop: Raw | UnsetType = UNSET
    logit_bias: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    structured_outputs: Raw | UnsetType = UNSET


class Chat(Generation, kw_only=True, gc=False):
    """``POST /v1/chat/completions``. The fields from ``n`` to ``tools`` are those that most conversations have none of."""

    max_completion_tokens: Whole = None
    top_logprobs: Whole = None
    tools: Raw | UnsetType = UNSET
    messages: Raw
    logprobs: bool | None = None
    tool_choice: str | dict[str, Raw] | None = None


class Completion(Generation, kw_only=True):
    """``POST /v1/completions``."""

    prompt: Raw
    suffix: Text = None
    echo: bool | None = None
    best_of: Whole = None
    logprobs: Whole = None


class Embedding(Common, kw_only=True):
    """``POST /v1/embeddings``."""

    input: Raw
    dimensions: Whole = None


class Other(Common, kw_only=True):
    """A request for a model that is neither read nor changed any further: counts that have killed engines are bounded."""

    n: Whole = None
    best_of: Whole = None
    max_tokens: Whole = None
    max_completion_tokens: Whole = None
    max_output_tokens: Whole = None
    top_logprobs: Whole = None


KNOWN_DEPTH = 6
"""Levels of a body whose messages are all ``KnownMessage``; its other fields may have more."""

DECODERS: dict[type[Common], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Chat, Completion, Embedding, Other)
}
MESSAGES = msgspec.json.Decoder(list[Message])
KNOWN_MESSAGES = msgspec.json.Decoder(list[KnownMessage])
STREAM_OPTIONS = msgspec.json.Decoder(StreamOptions | None)
TOKENS = msgspec.json.Decoder(Tokens)
STOP = msgspec.json.Decoder(str | list[str] | None)
LOGIT_BIAS = msgspec.json.Decoder(dict[str, float] | None)
TOOLS = msgspec.json.Decoder(list[Tool] | None)
