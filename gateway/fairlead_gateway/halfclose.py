"""A client that has stopped sending: has it gone, or does it still listen?

TCP says the same in both cases (FIN). A client that is gone must free its engine at once; one that only closed its sending
side (``nc -N``, a few proxies) must get its answer. A byte tells: a closed peer answers it with RST. So the connection
writes something that belongs to its answer anyway, and this asks the socket for the RST, first often, then once a second.
"""

import asyncio
import socket
from collections.abc import Callable

_DELAYS = (0.001, 0.004, 0.02, 0.1, 0.25, 0.5)
_LAST_DELAY = 1.0


class HalfClosed:
    """Calls ``gone`` when the socket has met an error; ``cancel`` when the answer is out."""

    __slots__ = ("_gone", "_handle", "_loop", "_rounds", "_socket")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.BaseTransport, gone: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._gone = gone
        self._rounds = 0
        self._handle: asyncio.TimerHandle | None = None
        self._wait()

    def cancel(self) -> None:
        """Stop asking."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _wait(self) -> None:
        delay = _DELAYS[self._rounds] if self._rounds < len(_DELAYS) else _LAST_DELAY
        self._rounds += 1
        self._handle = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._handle = None
        try:
            failed = self._socket is None or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except OSError:
            failed = True
        if failed:
            self._gone()
        else:
            self._wait()
