"""Replay requests to engines, and the limit on concurrent replays.

A replay is read as fast as it arrives, up to a bound, and only some run at a time.

Why: an engine answers with all batches that it still has from the requested number, as fast as it
can. It drops those that do not fit into its socket's queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable
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
    """

    model_key: str

    @property
    def is_busy(self) -> bool:
        """Whether no further message may be read now. Then ``mark_ready`` is called later."""
        ...

    def on_replay_message(self, parts: list[bytes]) -> None:
        """Handles one message of a replay, as a list of its parts."""
        ...

    def on_replay_cut(self, reason: str) -> None:
        """Handles a connection that ended; without a replay in progress it does not matter.

        Why also of a replay: the engine closed it, or too much of it is unread.
        """
        ...


class ReplayClient:
    """A connection to one engine's replay endpoint, made with the first request. Raises BadInput
    for an invalid address.
    """

    def __init__(self, endpoint: str, listener: ReplayListener, context: ConnectionContext) -> None:
        host_and_port(endpoint)
        self.model_key = listener.model_key
        self._endpoint = endpoint
        self._listener = listener
        self._context = context
        self._connection: ZmtpConnection | None = None
        self._unsent = b""
        self._opening: asyncio.Task[None] | None = None

    def request(self, start: int) -> None:
        """Requests all batches from ``start`` on."""
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
        """Connects, again and again until the listener gives up: an engine may bind this port after
        the one of its events.
        """
        limits = self._context.limits
        while True:
            try:
                connection, stream = await open_connection(self._endpoint, "DEALER", limits)
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


class ReplaySlot:
    """A granted or queued permission to run a replay for an engine of a namespace."""

    def __init__(self, go: Callable[[], None], given_back: "Callable[[ReplaySlot], None]", namespace: str) -> None:
        self.on_granted = go
        self.namespace = namespace
        self._release = given_back

    def release(self) -> None:
        """Releases the slot, granted or queued; call it once."""
        self._release(self)


class ReplaySlots:
    """The slots for concurrent replays: ``most`` are granted, further ones are queued.

    Namespaces with queued slots get a free one in turn, each for its oldest.

    Why: the replays of one namespace, however many and slow, must not delay all others.
    """

    def __init__(self, most: int) -> None:
        self._max_slots = most
        self._granted: set[ReplaySlot] = set()
        self._queues: dict[str, deque[ReplaySlot]] = {}  # by namespace; the first has the next turn

    @property
    def waiting(self) -> int:
        """The number of queued slots."""
        return sum(map(len, self._queues.values()))

    def acquire(self, go: Callable[[], None], namespace: str) -> ReplaySlot:
        """Returns a slot. ``go`` is called when it is granted, perhaps before this returns."""
        slot = ReplaySlot(go, self._release, namespace)
        self._queues.setdefault(namespace, deque()).append(slot)
        self._grant_next()
        return slot

    def _release(self, slot: ReplaySlot) -> None:
        self._granted.discard(slot)
        queue = self._queues.get(slot.namespace)
        if queue is not None and slot in queue:
            queue.remove(slot)
            if not queue:
                del self._queues[slot.namespace]
        self._grant_next()

    def _grant_next(self) -> None:
        while self._queues and len(self._granted) < self._max_slots:
            namespace = next(iter(self._queues))
            queue = self._queues.pop(namespace)
            slot = queue.popleft()
            if queue:
                self._queues[namespace] = queue  # behind the others
            self._granted.add(slot)
            slot.on_granted()
