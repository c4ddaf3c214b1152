"""Replay requests to engines, and the limit on concurrent replays.

The requesting socket has a long queue, and only some replays run at a time.

Why: an engine answers with all batches that it still has from the requested number, as fast as it
can. It drops those that do not fit into the sockets' queues.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import zmq

from fairlead_kvstore.events.stream_sequencer import replay_request
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.unread_bytes import UnreadBytes, endpoint_port
from fairlead_kvstore.reader.zmq_socket import PolledSocket, SocketContext, message_size, receive_message


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
        """Handles a replay of which too much is unread; its messages are to be dropped."""
        ...


class ReplayClient:
    """A DEALER socket to one engine's replay endpoint. Raises ZMQError for an invalid address."""

    def __init__(
        self,
        endpoint: str,
        listener: ReplayListener,
        context: SocketContext,
    ) -> None:
        self.model_key = listener.model_key
        self._listener = listener
        self._limits = context.limits
        self._watch = context.unread
        self._unread: UnreadBytes | None = None
        self._port = endpoint_port(endpoint)
        self._socket = context.sockets.open(zmq.DEALER, context.limits.kv_replay_pending)
        self._monitor = context.sockets.monitor(self._socket)
        self._monitor.on_connected = self._on_descriptor
        connect = partial(self._socket.connect, endpoint)
        self._polled = PolledSocket(self, self._socket, connect, context, self._monitor)

    def request(self, start: int) -> bool:
        """Requests all batches from ``start`` on. Returns False when the request cannot be sent."""
        try:
            self._socket.send_multipart(replay_request(start), flags=zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        self._polled.mark_ready()  # sending may consume the descriptor's report
        return True

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        used = 0
        self._monitor.events()
        while self._polled.is_open:
            if self._listener.is_busy:
                return used, False
            received = receive_message(self._socket, self._limits.kv_frames)
            if received is None:
                return used, False
            parts, size = received
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            if self._unread is not None:
                self._unread.on_read(size)
            self._listener.on_replay_message(parts)
            if used >= most:
                return used, self._polled.is_open
        return used, False

    def mark_ready(self) -> None:
        """Schedules a read."""
        self._polled.mark_ready()

    def close(self) -> None:
        """Closes the socket; pending messages are dropped."""
        if self._unread is not None:
            self._unread.close()
        self._polled.close()

    def _on_descriptor(self, descriptor: int) -> None:
        if self._unread is not None:
            self._unread.close()
        limit = self._limits.kv_replay_unread_bytes
        self._unread = self._watch.add(descriptor, self._port, limit, self._on_overflow)
        if self._unread is not None:
            self._unread.set_namespace(self.model_key.partition("/")[0])

    def _on_overflow(self, reason: str) -> None:
        self.close()
        self._listener.on_replay_cut(reason)


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
