"""What the index raises.

FairleadError
├── UnreadableError     a value in Redis cannot be used; ``reason`` is one word for counters, ``schema`` tells of another release
├── KeptError           what an earlier indexer left cannot be used; ``reason`` is one word for counters
└── EventsError         an engine sent something that is no batch of KV events; ``reason`` is one word for counters
    ├── Oversized       more bytes, events or blocks than the limits allow
    └── Malformed       not msgpack, not the shape, or a frame that is none

Engines are the only source of these bytes; no error holds a token, a salt or a hash.
"""

from fairlead.errors import FairleadError


class UnreadableError(FairleadError):
    """Raised when a value in Redis is damaged (``shape``, ``bytes``) or written by a release with another layout (``schema``)."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SnapshotError(FairleadError):
    """Raised when what an earlier indexer left of a slice does not hold together: it is then learned anew."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EventsError(FairleadError):
    """Raised when a frame or a payload cannot be used; ``reason`` is a word of a closed set, for counters and marks."""

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class OversizedEvents(EventsError):
    """Raised when a payload passes a limit; the message names the limit."""


class MalformedEvents(EventsError):
    """Raised when bytes are not what the engines' protocol says."""
