"""ZMTP 3, the wire protocol of ZMQ, for a socket that subscribes or requests: the NULL handshake
and frames. Bytes in, messages and bytes out. Pure.

Source: https://rfc.zeromq.org/spec/37 (ZMTP 3.1).

Why not ZMQ's library: its threads read without the event loop, and its limits count whole messages.
It takes 64 bytes for each part of a message, and an empty part takes two bytes on the wire. Here a
message that is not complete is bounded in bytes. A reader that does not read holds the engine back,
by TCP.
"""

import struct
from collections.abc import Sequence
from typing import Final

from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.native import READ_MESSAGES

_VERSION: Final = b"\x03\x01"
_MECHANISM: Final = b"NULL"
_GREETING_BYTES: Final = 64
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + _VERSION + _MECHANISM.ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_FLAGS: Final = _MORE | _LONG | _COMMAND
_LONG_SIZE: Final = struct.Struct(">Q")
_VALUE_SIZE: Final = struct.Struct(">I")
_MAX_SHORT_BYTES: Final = 255
_MAX_COMMAND_BYTES: Final = 4_096
_MAX_FRAMES: Final = 64  # of one call; they take 50 µs
_PEERS: Final = {"SUB": (b"PUB", b"XPUB"), "DEALER": (b"ROUTER", b"DEALER", b"REP")}
_EVENT_PARTS: Final = 3
_NO_MESSAGE: Final[list[bytes]] = []


def message(parts: Sequence[bytes]) -> bytes:
    last = len(parts) - 1
    return b"".join(_frame(part, _MORE if at < last else 0) for at, part in enumerate(parts))


class ZmtpStream:
    """The protocol state of one connection. ``feed`` it the bytes that were read, and write
    ``outgoing`` to the peer after each call.

    kind: the type of this socket, ``SUB`` (to all topics) or ``DEALER``.
    max_bytes: of one message on the wire, all its parts together.
    max_parts: of a message with more, this many and one are returned, so that its receiver sees it.
    is_up: whether the handshake is over.
    """

    def __init__(self, kind: str, *, max_bytes: int, max_parts: int) -> None:
        self.is_up = False
        self.outgoing = bytearray(_GREETING + _ready(kind))
        self.kind = kind
        self._max_bytes, self._max_parts = max_bytes, max_parts
        self._buffer = bytearray()
        self._at = 0
        self._minor_version: int | None = None  # of the peer; None before its greeting
        self._parts: list[bytes] = []
        self._message_bytes = 0  # of these parts, with those dropped, on the wire
        self._held_bytes = 0  # of these parts

    @property
    def held_bytes(self) -> int:
        """The bytes that were read, and that are in no message yet."""
        return len(self._buffer) - self._at + self._held_bytes

    def feed(self, data: bytes) -> None:
        """Takes bytes of the peer."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next_message(self) -> list[bytes] | None:
        """Returns the parts of the next message; None when there is no whole one.

        Empty after a command, which is handled, and after 64 parts of a message that has more.
        Why: one call must not take long.

        Raises ProtocolError.
        """
        if self._minor_version is None and not self._read_greeting():
            return None
        buffer, at, end = self._buffer, self._at, len(self._buffer)
        for _ in range(_MAX_FRAMES):
            if at + 2 > end:
                return None
            flags, size, begin = buffer[at], buffer[at + 1], at + 2
            if flags & _LONG:
                begin = at + 9
                if begin > end:
                    return None
                (size,) = _LONG_SIZE.unpack_from(buffer, at + 1)
            stop = begin + size
            self._check(flags, size, self._message_bytes + stop - at)
            if stop > end:
                return None
            body, self._at = bytes(buffer[begin:stop]), stop
            if flags & _COMMAND:
                self._on_command(body)
                return _NO_MESSAGE
            self._message_bytes += stop - at
            at = stop
            if len(self._parts) <= self._max_parts:
                self._parts.append(body)
                self._held_bytes += size
            if not flags & _MORE:
                parts, self._parts, self._message_bytes, self._held_bytes = self._parts, [], 0, 0
                return parts
        return _NO_MESSAGE

    def read_messages(self, overhead: int, most: int, found: list[list[bytes]]) -> int:
        """Appends messages of three parts to ``found``, up to the first that is anything else, and
        returns their cost in bytes. It does nothing where it is not compiled.

        overhead, most: the fixed cost of a message, and the cost at which to end.
        """
        if READ_MESSAGES is None or not self.is_up or self._parts or self._max_parts < _EVENT_PARTS:
            return 0
        self._at, cost = READ_MESSAGES(self._buffer, self._at, self._max_bytes, overhead, most, found)
        return cost

    def _read_greeting(self) -> bool:
        seen = self._buffer
        wrong_first = len(seen) > 0 and seen[0] != _GREETING[0]
        if wrong_first or (len(seen) > 9 and not seen[9] & 1) or (len(seen) > 10 and seen[10] < _VERSION[0]):
            raise ProtocolError("the peer does not speak ZMTP 3")
        if len(seen) < _GREETING_BYTES:
            return False
        if bytes(seen[12:32]).rstrip(b"\0") != _MECHANISM:
            raise ProtocolError("the peer asks for credentials (a ZMTP mechanism other than NULL)")
        self._minor_version, self._at = seen[11], _GREETING_BYTES
        return True

    def _check(self, flags: int, size: int, message_bytes: int) -> None:
        if flags & ~_FLAGS:
            raise ProtocolError("the peer sent a frame with unknown flags")
        if flags & _COMMAND:
            if size > _MAX_COMMAND_BYTES:
                raise ProtocolError(f"the peer sent a command of more than {_MAX_COMMAND_BYTES} bytes")
        elif message_bytes > self._max_bytes:
            raise ProtocolError(f"the peer sent a message of more than {self._max_bytes} bytes")
        elif not self.is_up:
            raise ProtocolError("the peer sent a message before the handshake was over")

    def _on_command(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if name == b"READY" and not self.is_up:
            self._check_peer(body[6:])
            self.is_up = True
            if self.kind == "SUB":  # to all topics; a message before ZMTP 3.1
                self.outgoing += _frame(b"\x09SUBSCRIBE", _COMMAND) if self._minor_version else _frame(b"\x01", 0)
        elif name == b"ERROR":
            raise ProtocolError("the peer refused the handshake")
        elif name == b"PING":
            self.outgoing += _frame(b"\x04PONG" + body[7:23], _COMMAND)

    def _check_peer(self, properties: bytes) -> None:
        """Raises ProtocolError where the peer is a socket of a type that does not fit."""
        at = 0
        while at < len(properties):
            begin = at + 1 + properties[at]
            name, value_size = properties[at + 1 : begin], properties[begin : begin + 4]
            if len(value_size) < 4:
                raise ProtocolError("the peer sent a READY command that cannot be read")
            at = begin + 4 + _VALUE_SIZE.unpack(value_size)[0]
            value = properties[begin + 4 : at]
            if name.lower() == b"socket-type" and value not in _PEERS[self.kind]:
                raise ProtocolError(f"the peer is a socket of type {value[:16]!r}, for a {self.kind}")


def _frame(body: bytes, flags: int) -> bytes:
    if len(body) <= _MAX_SHORT_BYTES:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + _LONG_SIZE.pack(len(body)) + body


def _ready(kind: str) -> bytes:
    value = kind.encode()
    return _frame(b"\x05READY\x0bSocket-Type" + _VALUE_SIZE.pack(len(value)) + value, _COMMAND)
