"""A ZMTP 3.0 peer on a plain socket, which sends what a ZMQ library does not send."""

import contextlib
import socket
import struct
from typing import Final

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


class ZmtpPeer:
    """One side of a connection that has been made. All calls block.

    kind: the type of ZMQ socket that it pretends to be.
    """

    def __init__(self, connection: socket.socket, kind: bytes) -> None:
        self._connection = connection
        connection.settimeout(30)
        connection.sendall(GREETING)
        self._read(len(GREETING))
        body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        connection.sendall(bytes([_COMMAND, len(body)]) + body)
        self.read_frame()

    def read_frame(self) -> bytes:
        """Returns the body of the next frame."""
        flags = self._read(1)[0]
        size = struct.unpack(">Q", self._read(8))[0] if flags & _LONG else self._read(1)[0]
        return self._read(size)

    def send_part(self, data: bytes, *, more: bool) -> None:
        """Sends one part of a message. Raises OSError when the other side has closed."""
        flags = (_MORE if more else 0) | _LONG
        self._connection.sendall(bytes([flags]) + struct.pack(">Q", len(data)) + data)

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._connection.sendall(data)

    def send_until_closed(self, data: bytes) -> None:
        """Sends bytes again and again, and reads nothing, until the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._connection.sendall(data)

    def send_what_fits(self, size: int) -> int:
        """Sends up to ``size`` bytes while the kernel takes them; returns how many it took."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self._connection.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < size:
                sent += self._connection.send(bytes(16_384))
        return sent

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._connection.recv(size - len(found))
            if not data:
                raise ConnectionResetError("closed")
            found += data
        return found
