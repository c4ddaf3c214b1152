"""One connection to an engine's event publisher. It connects once and does not reconnect.

Why: all messages of one TCP connection come from one process. Unread ones at a break are dropped;
if the process lives, the following replay contains them.
"""

import asyncio
from typing import Protocol

from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.reader.zmtp_connection import (
    ConnectionContext,
    ZmtpConnection,
    describe,
    host_and_port,
    open_connection,
)


class ConnectionListener(Protocol):
    """The callbacks of a connection. They must not raise.

    model_key: the model (``namespace/name``) of the engine.
    """

    model_key: str

    @property
    def is_busy(self) -> bool:
        """Whether no further message may be read now. Then ``mark_ready`` is called later."""
        ...

    def on_connected(self) -> None:
        """Handles the end of the handshake."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """Handles a connection that ended or could not be made; it is closed already."""
        ...

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles the messages of one turn, in order; each is a list of its parts."""
        ...

    def on_overflow(self, reason: str) -> None:
        """Handles the end of a connection of which too much is unread; it is closed already."""
        ...


class EventConnection:
    """A subscription to all topics at ``endpoint``. Raises BadInput for an invalid address."""

    def __init__(self, endpoint: str, listener: ConnectionListener, context: ConnectionContext) -> None:
        host, port = host_and_port(endpoint)
        self.model_key = listener.model_key
        self._listener = listener
        self._context = context
        self._connection: ZmtpConnection | None = None
        self._opening = asyncio.get_running_loop().create_task(self._open(host, port))

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        if self._connection is None:
            return 0, False
        found: list[list[bytes]] = []
        turn = (0, False) if self._listener.is_busy else self._connection.read_list(most, found)
        if found and self._connection.is_open:
            self._listener.on_messages(found)
        return turn

    def mark_ready(self) -> None:
        """Schedules a read."""
        if self._connection is not None:
            self._connection.mark_ready()

    def close(self) -> None:
        """Closes the connection without a callback."""
        self._opening.cancel()
        if self._connection is not None:
            self._connection.close()

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection."""
        if is_overflow:
            self._listener.on_overflow(reason)
        else:
            self._listener.on_disconnected(reason)

    async def _open(self, host: str, port: int) -> None:
        try:
            connection, stream = await open_connection(host, port, "SUB", self._context.limits)
        except (OSError, ProtocolError) as error:
            self._listener.on_disconnected(describe(error))
            return
        namespace = self.model_key.partition("/")[0]
        self._connection = ZmtpConnection(connection, stream, self, self._context, namespace=namespace)
        self._listener.on_connected()
