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
from fairlead_kvstore.reader.zmq_socket import PolledSocket, SocketContext, message_size, receive_message


class ReplayListener(Protocol):
    """The callback of a replay. It must not raise."""

    def on_replay_message(self, parts: list[bytes]) -> None:
        """Handles one message of a replay, as a list of its parts."""
        ...


class ReplayClient:
    """A DEALER socket to one engine's replay endpoint. Raises ZMQError for an invalid address."""

    def __init__(
        self,
        endpoint: str,
        listener: ReplayListener,
        context: SocketContext,
    ) -> None:
        self._listener = listener
        self._limits = context.limits
        self._socket = context.sockets.open(zmq.DEALER, context.limits.kv_replay_pending)
        self._polled = PolledSocket(self, self._socket, partial(self._socket.connect, endpoint), context)

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
        while self._polled.is_open:
            parts = receive_message(self._socket, self._limits.kv_frames)
            if parts is None:
                return used, False
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            self._listener.on_replay_message(parts)
            if used >= most:
                return used, self._polled.is_open
        return used, False

    def close(self) -> None:
        """Closes the socket; pending messages are dropped."""
        self._polled.close()


class ReplaySlot:
    """A granted or queued permission to run a replay."""

    def __init__(self, go: Callable[[], None], given_back: "Callable[[ReplaySlot], None]") -> None:
        self.on_granted = go
        self._release = given_back

    def release(self) -> None:
        """Releases the slot, granted or queued; call it once."""
        self._release(self)


class ReplaySlots:
    """The slots for concurrent replays: ``most`` are granted, further ones are queued in order."""

    def __init__(self, most: int) -> None:
        self._max_slots = most
        self._granted: set[ReplaySlot] = set()
        self._queue: deque[ReplaySlot] = deque()

    @property
    def waiting(self) -> int:
        """The number of queued slots."""
        return len(self._queue)

    def acquire(self, go: Callable[[], None]) -> ReplaySlot:
        """Returns a slot. ``go`` is called when it is granted, perhaps before this returns."""
        slot = ReplaySlot(go, self._release)
        self._queue.append(slot)
        self._grant_next()
        return slot

    def _release(self, slot: ReplaySlot) -> None:
        self._granted.discard(slot)
        if slot in self._queue:
            self._queue.remove(slot)
        self._grant_next()

    def _grant_next(self) -> None:
        while self._queue and len(self._granted) < self._max_slots:
            slot = self._queue.popleft()
            self._granted.add(slot)
            slot.on_granted()
