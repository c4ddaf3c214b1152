"""What engines say in their answers as far as Fairlead must understand it: counts, errors, aborts."""

from dataclasses import dataclass

import msgspec

_MOST_TOKENS = 1 << 40


class PromptDetails(msgspec.Struct):
    """``usage.prompt_tokens_details``."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What an engine counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    def __post_init__(self) -> None:
        """A count that cannot be one is not known."""
        self.prompt_tokens = _count(self.prompt_tokens)
        self.completion_tokens = _count(self.completion_tokens)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that the engine found in its cache; None when it does not tell."""
        return _count(self.prompt_tokens_details.cached_tokens) if self.prompt_tokens_details else None


class Event(msgspec.Struct):
    """The part of an event that matters here."""

    usage: Usage | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    choices: list[msgspec.Raw] | None = None


class PlainAnswer(msgspec.Struct):
    """The part of a whole answer that matters here."""

    usage: Usage | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class EngineError(msgspec.Struct):
    """An OpenAI error object, or something like it."""

    message: str = ""
    type: str | None = None
    code: int | str | None = None


EVENT = msgspec.json.Decoder(Event)
_ERROR = msgspec.json.Decoder(EngineError)


@dataclass(slots=True)
class Fault:
    """An error that an engine put into its stream; ``status`` is the HTTP status it meant."""

    status: int
    message: str


def _count(told: int | None) -> int | None:
    return told if told is not None and 0 <= told <= _MOST_TOKENS else None


def engine_fault(raw: bytes, status: int) -> Fault:
    """An engine's error object as a Fault; its code, where it is an HTTP status, says more than the head did."""
    try:
        found = _ERROR.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Fault(status, "")
    code = found.code
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    return Fault(code if isinstance(code, int) and 400 <= code <= 599 else status, found.message)
