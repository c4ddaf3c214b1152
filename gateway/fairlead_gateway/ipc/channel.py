"""The IPC channel between the supervisor and one worker: length-prefixed messages over a socket
pair.

Both ends are of one build and one start, so messages have no version. Unread messages are bounded:
a message beyond the bound is dropped, and `send` returns False. Neither end waits for the other. A
message whose handling fails is logged and lost; the channel stays open.

Why: a closed channel ends the worker, with all of its requests.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")
_LENGTH_BYTES = 4
CHANNEL_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Limit: one message between supervisor and worker; a fleet has a few MB."""
CHANNEL_PENDING_BYTES: Final = 16 * 1024 * 1024
"""Limit: messages to a worker that does not read; then they are dropped, and the fleet is sent
later.
"""
_encode = msgspec.msgpack.Encoder().encode


class MessageSender(Protocol):
    """A sender of messages to the other process, as `Channel`."""

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message; returns False if it was dropped."""


class Channel(asyncio.Protocol, Generic[T]):
    """One end of a channel.

    - on_message: called with each message, in order.
    - on_closed: called once, after either end closed. Invalid bytes close the channel.
    """

    def __init__(
        self,
        message_type: Any,
        on_message: Callable[[T], None],
        on_closed: Callable[[], None],
        *,
        max_message_bytes: int = CHANNEL_MESSAGE_BYTES,
        max_unsent_bytes: int = CHANNEL_PENDING_BYTES,
    ) -> None:
        self._decoder = msgspec.msgpack.Decoder(message_type)
        self._on_message = on_message
        self._on_closed = on_closed
        self._max_message_bytes, self._max_unsent_bytes = max_message_bytes, max_unsent_bytes
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.dropped = 0

    async def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Calls `on_message` for every complete message. Closes the channel at an invalid one."""
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
            try:
                self._on_message(found)
            except Exception:  # noqa: BLE001  # it is logged
                _log.exception("a defect interrupted the handling of a %s", type(found).__name__)
        del buffer[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_closed()

    @property
    def is_open(self) -> bool:
        """True if messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message. Returns False if it was dropped: the channel is closed, the message is
        too long, or too many bytes are unsent.
        """
        return self.send_encoded(_encode(message))

    def send_encoded(self, message: bytes) -> bool:
        """Like `send`, for a message that was encoded once for several channels."""
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
        if self._transport is not None:
            self._transport.close()


def encode_message(message: msgspec.Struct) -> bytes:
    return _encode(message)
