"""A ZMTP 3.0 peer on a plain socket, which sends what a ZMQ library does not send."""

import socket
import struct
from typing import Final

_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


class ZmtpPeer:
    """One side of a connection that has been made. All calls block.

    kind: the type of ZMQ socket that it pretends to be.
    """

    def __init__(self, connection: socket.socket, kind: bytes) -> None:
        self._connection = connection
        connection.settimeout(30)
        connection.sendall(_GREETING)
        self._read(len(_GREETING))
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
