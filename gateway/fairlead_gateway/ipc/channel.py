"""The private line between the helper process and one worker: messages over a socket pair, each behind its length.

Both ends are of one build and one start, so nothing is versioned. What waits to be read by the other end is bounded: a message
beyond that is dropped, and ``send`` says so; nobody ever waits for the other end.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from fairlead.limits import Limits

T = TypeVar("T")
_LENGTH_BYTES = 4
_encode = msgspec.msgpack.Encoder().encode


class Channel(asyncio.Protocol, Generic[T]):
    """One end. ``received`` gets each message in order; ``closed`` is called once, when the other end is gone or talks nonsense."""

    def __init__(
        self, message_type: Any, on_message: Callable[[T], None], on_closed: Callable[[], None], limits: Limits
    ) -> None:
        self._decoder = msgspec.msgpack.Decoder(message_type)
        self._on_message = on_message
        self._on_closed = on_closed
        self._max_message_bytes = limits.channel_message_bytes
        self._max_unsent_bytes = limits.channel_pending_bytes
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.dropped = 0

    async def open(self, sock: socket.socket) -> None:
        """Begin on this socket, on the running loop; the socket then belongs to the channel."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand over every message that is whole."""
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) - begin >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[begin : begin + _LENGTH_BYTES], "big")
            if size > self._max_message_bytes:
                self.close()
                return
            end = begin + _LENGTH_BYTES + size
            if len(buffer) < end:
                break
            message = bytes(memoryview(buffer)[begin + _LENGTH_BYTES : end])
            begin = end
            try:
                found = self._decoder.decode(message)
            except msgspec.MsgspecError:
                self.close()
                return
            self._on_message(found)
        del buffer[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end is gone."""
        self._transport = None
        self._on_closed()

    @property
    def is_open(self) -> bool:
        """Whether anything can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not read yet, beyond what the system holds."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, message: msgspec.Struct) -> bool:
        """Send it some time soon; False when it was dropped, because the channel is closed or too much waits already."""
        return self.send_encoded(_encode(message))

    def send_encoded(self, message: bytes) -> bool:
        """The same for a message that was encoded once for several channels."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        waiting = transport.get_write_buffer_size()
        if len(message) > self._max_message_bytes or (waiting and waiting + len(message) > self._max_unsent_bytes):
            self.dropped += 1
            return False
        transport.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
        return True

    def close(self) -> None:
        """Close after what was sent has gone out."""
        if self._transport is not None:
            self._transport.close()


def encode_message(message: msgspec.Struct) -> bytes:
    """For ``send_encoded``."""
    return _encode(message)
