"""What of engines' answers is read, with its types, and what decodes it.

Apart from what is done with it, since the modules that do it are compiled, and structs cannot be.
"""

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder


class PromptTokensDetails(Struct, gc=False):
    """``usage.prompt_tokens_details``."""

    cached_tokens: int | None = None


class UsageFields(Struct, gc=False):
    """``usage``: what an engine counted, or says that it did."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class StreamEvent(Struct):
    """The part of an event that matters here."""

    usage: UsageFields | None = None
    error: Raw | UnsetType = UNSET
    choices: list[Raw] | None = None


class PlainResponse(Struct, gc=False):
    """The part of a whole answer that matters here."""

    usage: UsageFields | None = None
    error: Raw | UnsetType = UNSET


class EngineError(Struct):
    """An OpenAI error object, or something like it."""

    message: str = ""
    type: str | None = None
    code: int | str | None = None


USAGE_DECODER = Decoder(UsageFields)
EVENT_DECODER = Decoder(StreamEvent)
ERROR_DECODER = Decoder(EngineError)
PLAIN_RESPONSE_DECODER = Decoder(PlainResponse)
