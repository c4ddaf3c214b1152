"""The fields of engine responses that Fairlead reads, with their types and decoders.

Why a module of its own: mypyc cannot compile structs, and the modules that use them are compiled.
"""

from msgspec import UNSET, MsgspecError, Raw, Struct, UnsetType
from msgspec.json import Decoder

MEMBERS_DECODER = Decoder(dict[str, Raw])


class PromptTokensDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class UsageFields(Struct, gc=False):
    """`usage`: token counts as the engine reports them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class NamedUsageFields(Struct, gc=False):
    """`usage` in the form of any dialect.

    The two fields of caches count tokens that `input_tokens` of `/v1/messages` leaves out. Some
    engines report `total_tokens` alone for scores.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: PromptTokensDetails | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    total_tokens: int | None = None


class UsageHolder(Struct):
    """A part of an event that holds a usage: the message that begins, or a response.

    error: of a response that has failed.
    """

    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class StoredAnswer(Struct, gc=False):
    """The fields of a response of `/v1/responses` that say how far it is."""

    id: str = ""
    status: str | None = None

    @property
    def is_unfinished(self) -> bool:
        return self.status in ("queued", "in_progress")


class StopDelta(Struct, gc=False):
    """`delta` of the event that ends a message; `stop_reason` is null if the engine gave up."""

    stop_reason: str | UnsetType | None = UNSET


class NamedEvent(Struct):
    """The fields of an event with a name that are read.

    message: an object with a usage, or the text of an error.
    error: of an event that has no name.
    """

    type: str | None = None
    error: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    message: UsageHolder | str | None = None
    response: UsageHolder | None = None
    delta: StopDelta | str | None = None


class TypedPart(Struct, gc=False):
    """A block, an item, or a part or delta of one, of which only type and text are read."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None


class BlockEvent(Struct, gc=False):
    """The fields of an event of messages or responses that tell text from all else.

    delta: the text itself in responses.
    """

    type: str = ""
    delta: TypedPart | str | None = None
    content_block: TypedPart | None = None
    item: TypedPart | None = None
    part: TypedPart | None = None


class ReportedFields(Struct):
    """The fields in which engines report counts and errors."""

    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET


class StreamEvent(ReportedFields):
    """The fields of an event that are read."""

    choices: list[Raw] | None = None


class LongStreamEvent(ReportedFields):
    """The fields of a long event that are read."""

    choices: Raw | UnsetType = UNSET


class PlainResponse(ReportedFields, gc=False):
    """The fields of a plain response that are read."""


USAGE_DECODER = Decoder(UsageFields, strict=False)  # some engines count in floats
NAMED_USAGE_DECODER = Decoder(NamedUsageFields, strict=False)
NAMED_EVENT_DECODER = Decoder(NamedEvent)
BLOCK_EVENT_DECODER = Decoder(BlockEvent)
EVENT_DECODER = Decoder(StreamEvent)
LONG_EVENT_DECODER = Decoder(LongStreamEvent)
PLAIN_RESPONSE_DECODER = Decoder(PlainResponse)
_STORED_ANSWER_DECODER = Decoder(StoredAnswer)


def stored_answer(body: bytes) -> StoredAnswer | None:
    """Returns the fields of a response; None if it cannot be read."""
    try:
        return _STORED_ANSWER_DECODER.decode(body)
    except (MsgspecError, UnicodeDecodeError, RecursionError):
        return None
