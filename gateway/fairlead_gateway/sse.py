"""What engines say in their answers as far as Fairlead must understand it: counts, errors, aborts."""

from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead_gateway.engine_fields import ERROR, Counts

_MOST_TOKENS: Final = 1 << 40


class Usage:
    """What an engine counted; None where it does not tell. ``cached_tokens`` are those of the prompt that were in its cache."""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int | None) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens


@dataclass(slots=True)
class Fault:
    """An error that an engine put into its stream; ``status`` is the HTTP status it meant."""

    status: int
    message: str


def usage_of(told: Counts | None) -> Usage | None:
    """What an engine told; a count that cannot be one is not known."""
    if told is None:
        return None
    details = told.prompt_tokens_details
    cached = _count(details.cached_tokens) if details is not None else None
    return Usage(_count(told.prompt_tokens), _count(told.completion_tokens), cached)


def _count(told: int | None) -> int | None:
    return told if told is not None and 0 <= told <= _MOST_TOKENS else None


def engine_fault(raw: bytes, status: int) -> Fault:
    """An engine's error object as a Fault; its code, where it is an HTTP status, says more than the head did."""
    try:
        found = ERROR.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Fault(status, "")
    code = found.code
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    return Fault(code if isinstance(code, int) and 400 <= code <= 599 else status, found.message)
