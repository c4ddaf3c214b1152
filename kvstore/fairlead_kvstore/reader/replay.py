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
from fairlead_kvstore.events.sequence import replay_request
from fairlead_kvstore.reader.sockets import OnLoop, Sockets, message, size
from fairlead_kvstore.reader.timers import Loop
from fairlead_kvstore.reader.turns import MESSAGE_BYTES, Turns


class Answered(Protocol):
    """Who asked. It may not raise."""

    def answered(self, parts: list[bytes]) -> None:
        """One message of the answer."""
        ...


class Asking:
    """A DEALER to one engine's replay endpoint. Raises ZMQError when that is no address."""

    def __init__(
        self, endpoint: str, asker: Answered, *, sockets: Sockets, turns: Turns, loop: Loop, limits: Limits
    ) -> None:
        self._asker = asker
        self._limits = limits
        self._socket = sockets.open(zmq.DEALER, limits.kv_replay_waiting)
        self._held = OnLoop(self, self._socket, partial(self._socket.connect, endpoint), turns=turns, loop=loop)

    def ask(self, start: int) -> bool:
        """Ask for everything from ``start`` on; False when the request cannot even be sent."""
        try:
            self._socket.send_multipart(replay_request(start), flags=zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        self._held.ready()  # sending may have swallowed the descriptor's report
        return True

    def read(self, most: int) -> tuple[int, bool]:
        """Its turn, see ``Turns``."""
        used = 0
        while self._held.open:
            parts = message(self._socket, self._limits.kv_frames)
            if parts is None:
                return used, False
            used += size(parts) + MESSAGE_BYTES
            self._asker.answered(parts)
            if used >= most:
                return used, self._held.open
        return used, False

    def close(self) -> None:
        """End it; what still comes is not heard."""
        self._held.close()


class Ticket:
    """A place among those that may ask, or in the queue for one."""

    def __init__(self, go: Callable[[], None], given_back: "Callable[[Ticket], None]") -> None:
        self.go = go
        self._given_back = given_back

    def give_back(self) -> None:
        """Not needed any more; once."""
        self._given_back(self)


class Places:
    """At most ``most`` tickets are good at a time; the others wait in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._good: set[Ticket] = set()
        self._queue: deque[Ticket] = deque()

    @property
    def waiting(self) -> int:
        """Tickets that are not good yet."""
        return len(self._queue)

    def ticket(self, go: Callable[[], None]) -> Ticket:
        """``go`` is called when the ticket is good, perhaps before this returns."""
        ticket = Ticket(go, self._give_back)
        self._queue.append(ticket)
        self._next()
        return ticket

    def _give_back(self, ticket: Ticket) -> None:
        self._good.discard(ticket)
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._next()

    def _next(self) -> None:
        while self._queue and len(self._good) < self._most:
            ticket = self._queue.popleft()
            self._good.add(ticket)
            ticket.go()
