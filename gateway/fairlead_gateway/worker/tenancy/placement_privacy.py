"""Removes from responses what shows where a prompt was cached, and how busy engines are.

A tenant that shares its cache with others could read from these numbers which prompts they sent.
Numbers of cached tokens become null; null is not zero, and says that they are not known. Headers
with the instance, the reason and the times are left out. How long a response takes stays visible.

Inside a JSON string quotes are escaped, so the bytes that are replaced are always a field. Every
other byte stays, and nothing is parsed.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

_COUNT: Final = re.compile(
    rb'("(?:prompt_cached_tokens|num_cached_tokens|cached_tokens|cache_read_input_tokens|cache_creation_input_tokens'
    rb'|prompt_cache_hit_tokens|prompt_cache_miss_tokens|tokens_cached|cache_n|prompt_n)"'
    rb"[ \t]{0,4}:[ \t]{0,4})[0-9]{1,20}"
)
"""The last three are llama.cpp's: of `timings`, what was cached and what was computed."""
_DETAILS: Final = re.compile(rb'("(?:cached_tokens_details|prompt_progress)"[ \t]{0,4}:[ \t]{0,4})\{[^{}]{0,256}\}')
_LONGEST: Final = 320
"""No field that is replaced is longer, in bytes."""
_HIDDEN: Final = rb"\1null"
_HIDDEN_HEADERS: Final = (b"endpoint-load-metrics", b"openai-processing-ms")


class BodyRewriter(Protocol):
    """Another rewriter of the same response."""

    def rewrite(self, data: bytes) -> bytes: ...

    def rewrite_events(self, events: list[bytes]) -> list[bytes]: ...

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]: ...


def hide_cached_tokens(data: bytes) -> bytes:
    """Returns a body or an event without numbers of cached tokens."""
    if data.find(b"cache") < 0 and data.find(b'"prompt_n"') < 0:
        return data
    return _DETAILS.sub(_HIDDEN, _COUNT.sub(_HIDDEN, data))


def shown_headers(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns an engine's headers without those about its load and time."""
    return {name: value for name, value in fields.items() if name not in _HIDDEN_HEADERS}


class CachedTokensFilter:
    """The rewriter that hides cached tokens in one response, after another rewriter."""

    def __init__(self, before: BodyRewriter | None = None) -> None:
        self._before = before
        self._pending = b""

    def rewrite(self, data: bytes) -> bytes:
        """Returns a whole body without them."""
        return hide_cached_tokens(data if self._before is None else self._before.rewrite(data))

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        """Returns whole events without them."""
        events = events if self._before is None else self._before.rewrite_events(events)
        return [hide_cached_tokens(event) for event in events]

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]:
        """Returns chunks, as the network cut them, without them.

        What may be the start of a field waits for the next chunk. A line that is complete does not.

        last: no chunk follows.
        """
        chunks = chunks if self._before is None else self._before.rewrite_chunks(chunks, last)
        data = self._pending + b"".join(chunks)
        end = len(data) if last or data.endswith(b"\n") else _complete_end(data)
        self._pending = data[end:]
        complete = hide_cached_tokens(data[:end])
        return [complete] if complete else []


def hide_in_events(rewrite: Callable[[list[bytes]], list[bytes]], events: list[bytes]) -> list[bytes]:
    """Returns the events that `rewrite` makes, without cached tokens."""
    return [hide_cached_tokens(event) for event in rewrite(events)]


def _complete_end(data: bytes) -> int:
    """Returns the end of the part in which no field is cut."""
    end = max(0, len(data) - _LONGEST)
    for pattern in (_COUNT, _DETAILS):
        for match in pattern.finditer(data, max(0, end - _LONGEST)):
            if match.start() < end < match.end():
                end = match.start()
    return end
