"""What engines say in their answers as far as Fairlead must understand it: counts, errors,
aborts.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead_gateway.worker.upstream.response_schemas import ERROR_DECODER, UsageFields

_MAX_TOKENS: Final = 1 << 40


class Usage:
    """What an engine counted; None where it does not tell. ``cached_tokens`` are those of the
    prompt that were in its cache.
    """

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int | None) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens


@dataclass(slots=True)
class InBandError:
    """An error that an engine put into its stream; ``status`` is the HTTP status it meant."""

    status: int
    message: str


def parse_usage(told: UsageFields | None) -> Usage | None:
    """What an engine told; a count that cannot be one is not known."""
    if told is None:
        return None
    details = told.prompt_tokens_details
    cached = _valid_count(details.cached_tokens) if details is not None else None
    return Usage(_valid_count(told.prompt_tokens), _valid_count(told.completion_tokens), cached)


def _valid_count(told: int | None) -> int | None:
    return told if told is not None and 0 <= told <= _MAX_TOKENS else None


def parse_in_band_error(raw: bytes, status: int) -> InBandError:
    """An engine's error object as a Fault; its code, where it is an HTTP status, says more than the
    head did.
    """
    try:
        found = ERROR_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InBandError(status, "")
    code = found.code
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    return InBandError(code if isinstance(code, int) and 400 <= code <= 599 else status, found.message)
