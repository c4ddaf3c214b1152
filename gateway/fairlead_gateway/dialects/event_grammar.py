"""The grammar of event streams whose events have names.

The chunks of OpenAI's chats have no names, so `upstream.sse` reads them by their fields.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventGrammar:
    """The names of the events of a dialect's streams.

    delta: the end of the names of events with a part of the answer.
    finals: of the events that end the answer, or report its counts.
    last: of the events after which nothing follows; each is one of `finals`.
    failed: of the event that reports that the engine has failed, besides `error`.
    closing: the event that ends a whole answer whose stream lacks it; empty if there is none.
    is_numbered: each event has a `sequence_number`.
    """

    delta: bytes
    finals: frozenset[bytes]
    last: frozenset[bytes]
    failed: bytes = b"error"
    closing: bytes = b""
    is_numbered: bool = False
