"""Token counts and errors in the responses of engines."""

from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead_gateway.native import ScannedUsage
from fairlead_gateway.worker.upstream.response_schemas import ERROR_DECODER, UsageFields

_MAX_TOKENS: Final = 1 << 31  # more than the largest `n` times the largest `max_tokens`


class Usage:
    """Token counts of an engine; None where it reported none.

    cached_tokens: of the prompt, found in the engine's cache.
    """

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int | None) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens


@dataclass(slots=True)
class InBandError:
    """An error in an engine's stream or body.

    status: the HTTP status that the engine means.
    """

    status: int
    message: str


def parse_usage(fields: UsageFields | None) -> Usage | None:
    """Returns the counts of an engine; impossible ones become None."""
    if fields is None:
        return None
    details = fields.prompt_tokens_details
    cached = _valid_count(details.cached_tokens) if details is not None else None
    return Usage(_valid_count(fields.prompt_tokens), _valid_count(fields.completion_tokens), cached)


def scanned_usage(found: ScannedUsage) -> Usage | None:
    """Like `parse_usage`, for what a scanner found in a response."""
    is_present, prompt_tokens, completion_tokens, cached_tokens = found
    if not is_present:
        return None
    return Usage(_valid_count(prompt_tokens), _valid_count(completion_tokens), _valid_count(cached_tokens))


def _valid_count(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _MAX_TOKENS else None


def parse_in_band_error(raw: bytes, status: int) -> InBandError:
    """Returns the status and message of an engine's error object.

    The message is empty if the object is malformed.
    status: used unless the error's code is an HTTP status itself.
    """
    try:
        error = ERROR_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InBandError(status, "")
    code = error.code
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    return InBandError(code if isinstance(code, int) and 400 <= code <= 599 else status, error.message)
