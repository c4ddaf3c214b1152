"""Asking an engine for what was missed, and how many engines are asked at once.

An engine answers with everything it still has from the number that was asked for, as fast as it can, and drops what does not fit into
the sockets' queues. So the queue of the asking socket is long, and because of that only some engines are asked at a time.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import zmq

from fairlead.limits import Limits
from fairlead_kvstore.events.stream_sequencer import replay_request
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES, FairScheduler
from fairlead_kvstore.reader.timers import ReaderLoop
from fairlead_kvstore.reader.zmq_socket import PolledSocket, ZmqSockets, message_size, receive_message


class ReplayListener(Protocol):
    """Who asked. It may not raise."""

    def on_replay_message(self, parts: list[bytes]) -> None:
        """One message of the answer."""
        ...


class ReplayClient:
    """A DEALER to one engine's replay endpoint. Raises ZMQError when that is no address."""

    def __init__(
        self,
        endpoint: str,
        asker: ReplayListener,
        *,
        sockets: ZmqSockets,
        turns: FairScheduler,
        loop: ReaderLoop,
        limits: Limits,
    ) -> None:
        self._listener = asker
        self._limits = limits
        self._socket = sockets.open(zmq.DEALER, limits.kv_replay_pending)
        self._polled = PolledSocket(self, self._socket, partial(self._socket.connect, endpoint), turns=turns, loop=loop)

    def request(self, start: int) -> bool:
        """Ask for everything from ``start`` on; False when the request cannot even be sent."""
        try:
            self._socket.send_multipart(replay_request(start), flags=zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        self._polled.mark_ready()  # sending may have swallowed the descriptor's report
        return True

    def read(self, most: int) -> tuple[int, bool]:
        """Its turn, see ``Turns``."""
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
        """End it; what still comes is not heard."""
        self._polled.close()


class ReplaySlot:
    """A place among those that may ask, or in the queue for one."""

    def __init__(self, go: Callable[[], None], given_back: "Callable[[ReplaySlot], None]") -> None:
        self.on_granted = go
        self._release = given_back

    def release(self) -> None:
        """Not needed any more; once."""
        self._release(self)


class ReplaySlots:
    """At most ``most`` tickets are good at a time; the others wait in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._max_slots = most
        self._granted: set[ReplaySlot] = set()
        self._queue: deque[ReplaySlot] = deque()

    @property
    def waiting(self) -> int:
        """Tickets that are not good yet."""
        return len(self._queue)

    def acquire(self, go: Callable[[], None]) -> ReplaySlot:
        """``go`` is called when the ticket is good, perhaps before this returns."""
        ticket = ReplaySlot(go, self._release)
        self._queue.append(ticket)
        self._grant_next()
        return ticket

    def _release(self, ticket: ReplaySlot) -> None:
        self._granted.discard(ticket)
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._grant_next()

    def _grant_next(self) -> None:
        while self._queue and len(self._granted) < self._max_slots:
            ticket = self._queue.popleft()
            self._granted.add(ticket)
            ticket.on_granted()
