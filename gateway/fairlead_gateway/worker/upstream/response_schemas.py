"""The fields of engine responses that Fairlead reads, with their types and decoders.

Why a module of its own: mypyc cannot compile structs, and the modules that use them are compiled.
"""

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder


class PromptTokensDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class UsageFields(Struct, gc=False):
    """`usage`: token counts as the engine reports them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class StreamEvent(Struct):
    """The fields of an event that are read."""

    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET
    choices: list[Raw] | None = None


class PlainResponse(Struct, gc=False):
    """The fields of a plain response that are read."""

    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET


USAGE_DECODER = Decoder(UsageFields, strict=False)  # some engines count in floats
EVENT_DECODER = Decoder(StreamEvent)
PLAIN_RESPONSE_DECODER = Decoder(PlainResponse)
