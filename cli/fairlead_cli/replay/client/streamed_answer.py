"""One streamed chat answer: the arrival time of each token, and the content of the last events.

Why: thousands of events a second arrive while engines and gateway need the same cores, so a token
costs a count and an append. Events are split by their blank line; only the first (for the first
token) and the last (usage, errors, ``[DONE]``) are parsed.
"""

from array import array
from collections import deque
from typing import Any

import msgspec

_MAX_TAIL_CHUNKS = 16
_MAX_HEAD_BYTES = 1 << 20


class StreamedAnswer:
    """A streamed answer. Feed it the body of a 200 answer; read the results when it is complete."""

    __slots__ = (
        "_has_half_separator",
        "_head",
        "_is_event_complete",
        "_tail",
        "cached_tokens",
        "error",
        "finish_reason",
        "output_tokens",
        "times",
    )

    def __init__(self) -> None:
        self.times: array[float] = array("d")
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._head = b""
        self._tail: deque[bytes] = deque(maxlen=_MAX_TAIL_CHUNKS)
        self._is_event_complete = True  # the last chunk ends with a complete event
        self._has_half_separator = False  # the last chunk ends with half of a blank line

    def feed(self, chunk: bytes, now: float) -> None:
        """Adds a chunk that arrived at ``now``."""
        if not self.times:
            self._feed_head(chunk, now)
            return
        self._tail.append(chunk)
        count = chunk.count(b"\n\n")
        if self._is_event_complete:
            if chunk[:1] == b":":
                count -= 1  # a keep-alive comment
        elif self._has_half_separator and chunk[:1] == b"\n":
            count += 1
        self._update_end(chunk)
        for _ in range(count):
            self.times.append(now)

    def _update_end(self, text: bytes) -> None:
        self._is_event_complete = text[-2:] == b"\n\n" or (self._has_half_separator and text == b"\n")
        self._has_half_separator = not self._is_event_complete and text[-1:] == b"\n"

    def close(self) -> None:
        """Reads usage, finish reason and errors from the last events. Removes the times of events
        that were no tokens.
        """
        if not self.times:
            if self.error is None:
                self._parse_tail(self._head.split(b"\n\n"))
            self.error = self.error or "the stream ended without a token"
            return
        counted = self._parse_tail(b"".join(self._tail).split(b"\n\n"))
        # The first token stays: it was parsed on arrival.
        del self.times[max(1, len(self.times) - counted) :]
        if self.output_tokens is None and self.error is None:
            self.error = "the stream ended without usage"
        elif self.finish_reason in ("abort", "error"):
            self.error = self.error or f"the engine ended the answer: {self.finish_reason}"

    def _feed_head(self, chunk: bytes, now: float) -> None:
        self._head += chunk
        *events, partial_event = self._head.split(b"\n\n")
        for position, event in enumerate(events):
            if _has_text(_parse_event(event)):
                # Events of one chunk share its arrival time. They are also the start of the tail.
                later = events[position + 1 :]
                self.times.extend([now] * (1 + sum(1 for later_event in later if not later_event.startswith(b":"))))
                self._tail.append(b"".join(later_event + b"\n\n" for later_event in (event, *later)) + partial_event)
                self._update_end(partial_event or b"\n\n")
                self._head = b""
                return
        if len(self._head) > _MAX_HEAD_BYTES:
            self._head = self._head[-_MAX_HEAD_BYTES:]

    def _parse_tail(self, events: list[bytes]) -> int:
        """Parses backwards to the last token; returns the number of events after it."""
        events_without_text = 0
        for event in reversed(events):
            if not event.strip() or event.startswith(b":"):
                continue
            if event.strip() == b"data: [DONE]":
                events_without_text += 1
                continue
            value = _parse_event(event)
            if value is None:
                break  # the tail begins inside of this event
            if "error" in value:
                self.error = _error_message(value["error"])
            if isinstance(value.get("usage"), dict):
                self._read_usage(value["usage"])
            for choice in value.get("choices") or ():
                self.finish_reason = self.finish_reason or choice.get("finish_reason")
            if _has_text(value):
                break
            events_without_text += 1
        return events_without_text

    def _read_usage(self, usage: dict[str, Any]) -> None:
        self.output_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):  # an engine without the field may still have hits
            self.cached_tokens = details.get("cached_tokens")


def http_error_text(status: int, body: bytes) -> str:
    """Returns one line for an answer that is not 200."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"HTTP {status}"
    if isinstance(value, dict) and "error" in value:
        return f"HTTP {status}: {_error_message(value['error'])}"
    return f"HTTP {status}"


def _parse_event(event: bytes) -> dict[str, Any] | None:
    _, separator, data = event.partition(b"data: ")
    if not separator:
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _has_text(value: dict[str, Any] | None) -> bool:
    if value is None:
        return False
    return any((choice.get("delta") or {}).get("content") for choice in value.get("choices") or ())


def _error_message(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message", error))[:200]
    return str(error)[:200]
