"""The blocks of an engine by its own KV events: all batches that it can replay, applied to an empty
block store.

An engine keeps its last thousands of batches. When they reach back to its start the comparison is
*whole*: absent blocks are known. Otherwise the comparison is a *part*: blocks that the batches
stored and did not remove must be in the index. All other blocks are unknown.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Final, Self

import msgspec

from fairlead.errors import BadInput, Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError, ProtocolError
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import StreamOutcome
from fairlead_kvstore.events.zmtp import message
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_kvstore.reader.zmtp_connection import host_and_port, new_stream

INDEX_ENGINE_SECONDS: Final = 30.0
"""Limit: `fairlead index verify` waits this long for all that one engine can replay."""
INDEX_ENGINE_BYTES: Final = 1024 * 1024 * 1024
"""Limit: bytes of one engine's replay that `fairlead index verify` reads."""

Content = frozenset[tuple[int, StorageTier]]
_READ_BYTES: Final = 65_536


class ReplayedContent(msgspec.Struct, frozen=True):
    """Blocks by an engine's replay. ``whole``: ``content`` has all blocks since the engine's start,
    else only those from batch ``first`` on.
    """

    content: Content
    whole: bool
    first: int | None
    batches: int


def replay_engine(
    endpoint: str, instance: str, model_key: str, secret: bytes, clock: Clock, limits: Limits
) -> ReplayedContent:
    """Requests a replay and returns the blocks by it. Raises Unavailable.

    The call blocks for up to `INDEX_ENGINE_SECONDS`, so call it in a thread.
    """
    truth, stream = BlockStore(secret=secret, limits=limits), EventSequencer(replayable=True, limits=limits)
    truth.attach(instance, model_key, clock.now())

    def apply(outcomes: Iterable[StreamOutcome]) -> None:
        apply_outcomes(truth, instance, outcomes, clock.now(), limits)

    apply(stream.on_connected())
    try:
        with _Connection(endpoint, clock, limits) as connection:
            connection.request_replay()
            first, batches = _follow_replay(connection, stream, apply)
    except (OSError, BadInput, ProtocolError, UnicodeError) as error:
        raise Unavailable(f"{endpoint} cannot be queried: {error}") from None
    except EventsError as error:
        raise Unavailable(f"{endpoint} sent an unexpected reply: {error.message}") from None
    return ReplayedContent(frozenset(truth.content(instance)), truth.state(instance).complete, first, batches)


class _Connection:
    """A connection to a replay endpoint, whose calls block. Raises OSError, ProtocolError, and
    Unavailable when the engine sends too much or too long.
    """

    def __init__(self, endpoint: str, clock: Clock, limits: Limits) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self._until = clock.now() + INDEX_ENGINE_SECONDS
        self._stream = new_stream("DEALER", limits)
        self._socket = socket.create_connection(host_and_port(endpoint), INDEX_ENGINE_SECONDS)
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request_replay(self) -> None:
        """Requests all batches, after the handshake."""
        while not self._stream.is_up:
            if self._stream.next_message() is None:
                self._exchange()
        self._stream.outgoing += message(replay_request(0))

    def next_message(self) -> list[bytes]:
        """Returns the parts of the next message."""
        while not (parts := self._stream.next_message()):
            if parts is None:
                self._exchange()
        return parts

    def _exchange(self) -> None:
        """Sends what is to be sent, and takes some bytes of the engine."""
        left = self._until - self._clock.now()
        if left <= 0 or self._received > INDEX_ENGINE_BYTES:
            raise Unavailable(f"{self.endpoint} does not end its replay ({self._received} bytes)")
        self._socket.settimeout(left)
        self._socket.sendall(self._stream.outgoing)
        self._stream.outgoing.clear()
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return
        if not data:
            raise ConnectionResetError("the engine closed the connection")
        self._received += len(data)
        self._stream.feed(data)


def _follow_replay(
    connection: _Connection, stream: EventSequencer, apply: Callable[[Iterable[StreamOutcome]], None]
) -> tuple[int | None, int]:
    """Applies a replay; returns the first batch's number, None without any, and the count of
    batches.
    """
    first: int | None = None
    batches = 0
    while (frame := parse_replay_frame(connection.next_message())) is not None:
        apply(stream.on_replayed_frame(frame))
        first = frame.number if first is None else first
        batches += 1
    apply(stream.on_replayed_frame(None))
    return first, batches
