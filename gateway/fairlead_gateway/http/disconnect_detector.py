"""Detection of clients that disconnected while their request is being answered.

TCP reports a half-closed connection and a closed one alike, with a FIN. If the client has
disconnected, its engine must be freed at once. If it has only closed its sending side (`nc -N`,
some proxies), it must get its response. Writing a byte shows the difference: a closed peer replies
with RST. The connection writes a byte that belongs to its response anyway; the detector polls the
socket for the RST.

While the connection is not read from, even the FIN stays unseen. On Linux, `TCP_INFO` shows it.
"""

import asyncio
import socket
import sys
from collections.abc import Callable

_POLL_DELAYS = (0.001, 0.004, 0.02, 0.1, 0.25, 0.5)
_MAX_POLL_DELAY = 1.0
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_CLOSE_WAIT = 8  # state in the first byte of struct tcp_info: the peer has sent FIN


class DisconnectDetector:
    """The poller of one connection's socket. Its delays grow from 1 ms to 1 s.

    on_disconnect: called once if the socket has an error.
    on_half_close: called once if the client has sent FIN.
    """

    __slots__ = ("_handle", "_loop", "_on_disconnect", "_on_half_close", "_polls", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.BaseTransport,
        on_disconnect: Callable[[], None],
        on_half_close: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._on_disconnect = on_disconnect
        self._on_half_close = on_half_close
        self._polls = 0
        self._handle: asyncio.TimerHandle | None = None
        self._schedule_poll()

    def cancel(self) -> None:
        """Stops polling."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._on_half_close = None

    def _schedule_poll(self) -> None:
        delay = _POLL_DELAYS[self._polls] if self._polls < len(_POLL_DELAYS) else _MAX_POLL_DELAY
        self._polls += 1
        self._handle = self._loop.call_later(delay, self._poll)

    def _poll(self) -> None:
        self._handle = None
        try:
            failed = self._socket is None or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except OSError:
            failed = True
        if failed:
            self._on_disconnect()
        elif self._on_half_close is not None and self._socket is not None and _has_received_fin(self._socket):
            self._on_half_close()
        else:
            self._schedule_poll()


def _has_received_fin(connection: socket.socket) -> bool:
    """Returns True if the client has closed its sending side; False if that is unknown."""
    if _TCP_INFO is None:
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[:1] == bytes([_CLOSE_WAIT])
    except OSError:
        return False
