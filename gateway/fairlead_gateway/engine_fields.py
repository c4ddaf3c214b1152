"""What of engines' answers is read, with its types, and what decodes it.

Apart from what is done with it, since the modules that do it are compiled, and structs cannot be.
"""

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder


class PromptDetails(Struct, gc=False):
    """``usage.prompt_tokens_details``."""

    cached_tokens: int | None = None


class Counts(Struct, gc=False):
    """``usage``: what an engine counted, or says that it did."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Event(Struct):
    """The part of an event that matters here."""

    usage: Counts | None = None
    error: Raw | UnsetType = UNSET
    choices: list[Raw] | None = None


class PlainAnswer(Struct, gc=False):
    """The part of a whole answer that matters here."""

    usage: Counts | None = None
    error: Raw | UnsetType = UNSET


class EngineError(Struct):
    """An OpenAI error object, or something like it."""

    message: str = ""
    type: str | None = None
    code: int | str | None = None


COUNTS = Decoder(Counts)
EVENT = Decoder(Event)
ERROR = Decoder(EngineError)
PLAIN_ANSWER = Decoder(PlainAnswer)
