"""A connection between two sockets of one process, without the delays of a network.

The sockets are Unix sockets, since what one end sends is at the other end at once. They show what
TCP would show: a reset, the end that the peer has sent, and the acknowledged bytes.
"""

import socket
import struct
from typing import Any

Address = tuple[str, int]
"""Host and port."""
_BYTES_ACKED_OFFSET = 120
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_SEND_BUFFER_BYTES = 16_384


class LinkSocket(socket.socket):
    """One end of a link.

    has_sent_eof: it sends no more.
    is_reset: it was closed with a reset.
    recorded: all bytes that it has sent.
    address: its own TCP address; None: it shows none.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
        self.setblocking(False)
        super().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.has_sent_eof = self.is_reset = self._resets_on_close = False
        self.peer: LinkSocket | None = None
        self.recorded = bytearray()
        self.address: Address | None = None

    def getsockname(self) -> Address | str:
        """Returns the address."""
        return self.address or ""

    def getpeername(self) -> Address | str:
        """Returns the address of the other end."""
        return (self.peer and self.peer.address) or ""

    def setsockopt(self, *arguments: object) -> None:
        """Notes that the socket is to be closed with a reset."""
        if arguments[:2] == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._resets_on_close = True
        else:
            super().setsockopt(*arguments)  # type: ignore[call-overload]

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:  # type: ignore[override]
        """Returns what TCP would: the state, and the bytes that the peer's kernel has."""
        peer = self.peer
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            return int(peer is not None and peer.is_reset)
        if level == socket.IPPROTO_TCP:
            state = _CLOSE_WAIT if peer is not None and peer.has_sent_eof else _ESTABLISHED
            info = bytes([state]) + bytes(_BYTES_ACKED_OFFSET - 1) + struct.pack("=Q", len(self.recorded))
            return info[:size]
        return super().getsockopt(level, option, size) if size else super().getsockopt(level, option)

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Sends and counts bytes."""
        sent = super().send(data, flags)
        self.recorded += data[:sent]
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receives bytes. Raises ConnectionResetError after a reset of the peer."""
        if self.peer is not None and self.peer.is_reset:
            raise ConnectionResetError
        return super().recv(size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """Receives bytes like `recv`."""
        if self.peer is not None and self.peer.is_reset:
            raise ConnectionResetError
        return super().recv_into(buffer, size, flags)

    def shutdown(self, how: int) -> None:
        """Ends a direction."""
        self.has_sent_eof = True
        super().shutdown(how)

    def close(self) -> None:
        """Closes the end, with a reset if that was set."""
        self.is_reset = self.is_reset or (self._resets_on_close and self.fileno() >= 0)
        self.has_sent_eof = True
        super().close()

    def reset(self) -> None:
        """Closes the end with a reset."""
        self._resets_on_close = True
        self.close()


class ListeningSocket(socket.socket):
    """A listening socket of the simulated network: it has an address, and the loop connects.

    bound: a TCP socket with that address, which is closed with it.
    """

    def __init__(self, address: Address, bound: socket.socket | None = None) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = address
        self._bound = bound

    def getsockname(self) -> Address:
        """Returns the address."""
        return self.address

    def listen(self, backlog: int = 0) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the socket and `bound`."""
        super().close()
        if self._bound is not None:
            self._bound.close()


def linked_sockets() -> tuple[LinkSocket, LinkSocket]:
    """Returns the two ends of a new connection."""
    first, second = (LinkSocket(end.detach()) for end in socket.socketpair())
    first.peer, second.peer = second, first
    return first, second
