"""Replay requests to engines.

A replay is read as fast as it arrives, up to a bound.

Why: an engine answers with all batches that it still has from the requested number, as fast as it
can. It drops those that do not fit into its socket's queue.
"""

import asyncio
from typing import Protocol

from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.events.stream_sequencer import replay_request
from fairlead_kvstore.events.zmtp import message
from fairlead_kvstore.reader.zmtp_connection import (
    ConnectionContext,
    ZmtpConnection,
    host_and_port,
    open_connection,
)


class ReplayListener(Protocol):
    """The callbacks of a replay. They must not raise.

    model_key: the model (``namespace/name``) of the engine.
    next_replay_connection_at: in seconds of the event loop; kept here, since clients are replaced.
    """

    model_key: str
    next_replay_connection_at: float

    @property
    def is_busy(self) -> bool:
        """Whether no further message may be read now. Then ``mark_ready`` is called later."""
        ...

    def on_replay_message(self, parts: list[bytes]) -> None:
        """Handles one message of a replay, as a list of its parts."""
        ...

    def on_replay_cut(self, reason: str) -> None:
        """Handles the end of the connection: the engine closed it, or too much of it is unread. May
        be called without a replay in progress.
        """
        ...


class ReplayClient:
    """A connection to one engine's replay endpoint, made with the first request. Raises BadInput
    for an invalid address.
    """

    def __init__(self, endpoint: str, listener: ReplayListener, context: ConnectionContext) -> None:
        self._host, self._port = host_and_port(endpoint)
        self.model_key = listener.model_key
        self._listener = listener
        self._context = context
        self._connection: ZmtpConnection | None = None
        self._unsent = b""
        self._opening: asyncio.Task[None] | None = None

    def request(self, start: int) -> None:
        """Requests all batches from ``start`` on. While it connects, a later request replaces an
        earlier one.
        """
        request = message(replay_request(start))
        if self._connection is not None and self._connection.is_open:
            self._connection.send(request)
            return
        self._unsent = request
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        if self._connection is None:
            return 0, False
        return self._connection.read(most, lambda: self._listener.is_busy, self._listener.on_replay_message)

    def mark_ready(self) -> None:
        """Schedules a read."""
        if self._connection is not None:
            self._connection.mark_ready()

    def close(self) -> None:
        """Closes the connection; pending messages are dropped."""
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.close()

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection."""
        self._listener.on_replay_cut(reason)

    async def _open(self) -> None:
        """Connects and sends the request. Tries until ``close``: an engine may bind this port after
        the one of its events.

        The first try is at least ``kv_reconnect_seconds`` after that of the connection before.
        Why: an engine may close each one after a single batch.
        """
        limits, now = self._context.limits, asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._listener.next_replay_connection_at - now()))
        self._listener.next_replay_connection_at = now() + limits.kv_reconnect_seconds
        while True:
            try:
                connection, stream = await open_connection(self._host, self._port, "DEALER", limits)
            except (OSError, ProtocolError):
                await asyncio.sleep(limits.kv_reconnect_seconds)
                continue
            break
        self._opening = None
        self._connection = ZmtpConnection(
            connection,
            stream,
            self,
            self._context,
            namespace=self.model_key.partition("/")[0],
            max_unread=limits.kv_replay_unread_bytes,
        )
        self._connection.send(self._unsent)
