"""The errors of the KV-cache index.

    FairleadError
    ├── UnreadableError     a value in Redis cannot be used
    ├── SnapshotError       the snapshot of an earlier indexer cannot be used
    ├── ProtocolError       a connection to an engine's events does not follow ZMQ's protocol
    └── EventsError         an engine sent bytes that are no batch of KV events
        ├── OversizedEvents  more bytes, events or blocks than the limits allow
        └── MalformedEvents  not msgpack, not the expected shape, or an invalid frame

``reason`` is one word of a closed set, for counters. Engines are the only source of these bytes; no
error contains a token, a salt or a hash.
"""

from fairlead.errors import FairleadError


class _ReasonedError(FairleadError):
    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class UnreadableError(_ReasonedError):
    """Raised when a value in Redis is damaged (``shape``, ``bytes``) or has another layout
    (``schema``).
    """


class SnapshotError(_ReasonedError):
    """Raised when an instance's snapshot is inconsistent; its blocks are then learned from events
    again.
    """


class ProtocolError(FairleadError):
    """Raised when a peer does not speak ZMTP 3, or sends a message above a limit."""


class EventsError(_ReasonedError):
    """Raised when a frame or a payload of an engine's KV events cannot be used."""


class OversizedEvents(EventsError):
    """Raised when a payload exceeds a limit; the message names the limit."""


class MalformedEvents(EventsError):
    """Raised when a frame or a payload does not follow the engines' KV event protocol."""
