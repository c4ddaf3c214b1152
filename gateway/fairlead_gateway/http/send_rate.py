"""The monitor of the clients that take their responses: too slowly, or with too much unsent.

Once a second the monitor of a port looks at every connection that has unsent bytes. A client has
`body_idle_seconds` to take as many bytes as `min_read_rate` makes in that time; its time begins
again as soon as it has. Else its connection is reset, whether a response is running, is complete,
or is the last one of its connection.

Why again at once: the kernels take the first bytes of a response, also for a client that reads
nothing. In fixed windows, those bytes would earn it a second one.

The unsent bytes of all connections are bounded too. Above `unsent_bytes`, connections are reset
until three quarters of that are left. Each time, it is the connection with the most unsent bytes of
the caller that has most. While memory is short, a quarter of the unsent bytes is freed each second
in the same way, at 64 KiB and more a connection.

Why a reset: without it, the kernel keeps its own send buffer for a client that reads no byte.
"""

import asyncio
import heapq
import logging
import socket
import struct
import sys
from collections.abc import Callable, Set
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead_gateway.caller_key import CallerKey

MIN_READ_RATE: Final = 1_024
"""Limit: bytes a second that a client reads, averaged over `body_idle_seconds`; a slower
connection is closed.
"""

_log = logging.getLogger("fairlead.gateway")
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_BYTES_ACKED_OFFSET: Final = 120  # of tcpi_bytes_acked in struct tcp_info, Linux 4.1
_UINT64: Final = struct.Struct("=Q")
_CLOSED_ERRORS: Final = (OSError, ValueError, OverflowError)
"""Errors of a socket that has just been closed: its descriptor is -1."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_MAX_UNSENT_SHARE: Final = 0.75  # kept when connections are reset, so that it is not due again at once


class SendingConnection(Protocol):
    """A connection as the monitor sees it.

    caller: of its last request; anonymous before the first.
    """

    caller: CallerKey

    def unsent_bytes(self) -> int:
        """Returns the bytes that wait in this process for the client to read."""

    def acknowledged_bytes(self) -> int | None:
        """Returns the bytes that the client has received so far; None if the system does not
        report them.
        """

    def reset(self) -> None:
        """Closes the connection at once and drops what is unsent."""


class SendRateMonitor:
    """The monitor of the connections of one port. It runs while there are connections.

    connections: those of the port, which the owner keeps up to date.
    """

    def __init__(
        self,
        connections: Set[SendingConnection],
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._limits = limits
        self._loop = loop
        self._now = now
        self.is_running = False
        self._windows: dict[SendingConnection, tuple[float, int | None, int]] = {}
        self._paused_bytes = 0
        self._is_check_due = False
        self.under_memory_pressure = False
        self.unsent_bytes = 0
        """Unsent bytes of all connections at the last check."""

    def start(self) -> None:
        self.is_running = True
        self._loop.call_later(self._limits.unsent_check_seconds, self._on_timer)

    def on_write_paused(self, unsent_bytes: int) -> None:
        """Called when a client falls behind. Checks at once if clients do so faster than checks
        come.
        """
        self._paused_bytes += unsent_bytes
        if self.unsent_bytes + self._paused_bytes > self._limits.unsent_bytes and not self._is_check_due:
            self._is_check_due = True
            self._loop.call_soon(self.check)

    def check(self) -> None:
        """Resets connections that read too slowly, and those with the most unsent bytes above
        the limit.
        """
        now, windows = self._now(), self._windows
        self._windows = {}
        self._is_check_due = False
        self._paused_bytes = total = slow = 0
        waiting: list[tuple[int, int, SendingConnection]] = []
        for connection in list(self._connections):
            unsent = connection.unsent_bytes()
            if not unsent:
                continue
            window = windows.get(connection)
            if window is None:
                window = (now, connection.acknowledged_bytes(), unsent)
            else:
                window = self._next_window(connection, window, unsent, now)
                if window is None:
                    slow += 1
                    connection.reset()
                    continue
            self._windows[connection] = window
            waiting.append((unsent, len(waiting), connection))
            total += unsent
        self.unsent_bytes, shed = self._shed(waiting, total)
        if slow or shed:
            _log.warning(
                "closed client connections: %d that read less than %d bytes a second, %d with the most unsent bytes",
                *(slow, MIN_READ_RATE, shed),
            )

    def _next_window(
        self, connection: SendingConnection, window: tuple[float, int | None, int], unsent: int, now: float
    ) -> tuple[float, int | None, int] | None:
        """Returns the window of a client, a new one if it has read enough in the last one.

        None if it has read too little in a window that is over.
        Where the system does not report what was received, the fall of the unsent bytes counts.
        """
        started_at, acknowledged_before, unsent_before = window
        acknowledged = connection.acknowledged_bytes()
        read = unsent_before - unsent
        if acknowledged is not None and acknowledged_before is not None:
            read = acknowledged - acknowledged_before
        if read >= MIN_READ_RATE * self._limits.body_idle_seconds:
            return now, acknowledged, unsent
        return None if now - started_at >= self._limits.body_idle_seconds else window

    def _shed(self, waiting: list[tuple[int, int, SendingConnection]], total: int) -> tuple[int, int]:
        """Resets connections above the limit, or if memory is short: of the caller with the most
        unsent bytes, the connection with the most.

        Returns the unsent bytes that are left, and the number of connections that were reset.
        """
        is_over = total > self._limits.unsent_bytes
        if not is_over and not self.under_memory_pressure:
            return total, 0
        bound, shed = int(min(total, self._limits.unsent_bytes) * _MAX_UNSENT_SHARE), 0
        least = 1 if is_over else self._limits.write_high_bytes // 4  # little is gained from others
        by_caller: dict[CallerKey, list[tuple[int, int, SendingConnection]]] = {}
        for entry in sorted(waiting):  # the most unsent bytes of each caller last
            by_caller.setdefault(entry[2].caller, []).append(entry)
        callers = [(-sum([entry[0] for entry in entries]), caller) for caller, entries in by_caller.items()]
        heapq.heapify(callers)
        while total > bound and callers:
            negative, caller = heapq.heappop(callers)
            entries = by_caller[caller]
            if not entries or entries[-1][0] < least:
                continue
            unsent, _, connection = entries.pop()
            heapq.heappush(callers, (negative + unsent, caller))
            total -= unsent
            shed += 1
            self._windows.pop(connection, None)
            connection.reset()
        return total, shed

    def _on_timer(self) -> None:
        self.is_running = False
        try:
            self.check()
        finally:
            if self._connections:
                self.start()


def acknowledged_bytes(transport: asyncio.BaseTransport) -> int | None:
    """Returns the bytes that the peer of a TCP connection has received.

    None without a socket, or if the system does not report them.
    """
    connected = transport.get_extra_info("socket")
    if connected is None or _TCP_INFO is None:
        return None
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_ACKED_OFFSET + _UINT64.size)
    except _CLOSED_ERRORS:
        return None
    if len(info) < _BYTES_ACKED_OFFSET + _UINT64.size:
        return None
    count: int = _UINT64.unpack_from(info, _BYTES_ACKED_OFFSET)[0]
    return count or None  # some sandboxes report zero for all connections


def reset_transport(transport: asyncio.Transport) -> None:
    """Aborts a connection. The kernel drops its own unsent bytes too."""
    connected = transport.get_extra_info("socket")
    if connected is not None:
        try:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except _CLOSED_ERRORS:
            pass
    transport.abort()
