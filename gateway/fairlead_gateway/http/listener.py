"""The listener of a port: its handler, and what its connections share."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.http.response_writer import ResponseWriter


class HttpRequest:
    """A complete request.

    id: in the answer and in logs; the client's own, if it sent one.
    internal_id: the gateway's own; engines and the decision log know the request by it.
    received_at: monotonic seconds at which its last byte arrived.
    received_wall: the same as Unix time.
    caller: name of the client's API key; None without one.
    client_address: address of the client, set only if a log or a trace needs it.
    """

    __slots__ = ("body", "caller", "client_address", "head", "id", "internal_id", "received_at", "received_wall")

    def __init__(
        self,
        head: RequestHead,
        body: bytes,
        id: str,
        received_at: float,
        received_wall: float,
        caller: str | None = None,
        client_address: str | None = None,
    ) -> None:
        self.head = head
        self.body = body
        self.id = id
        self.internal_id = id
        self.received_at = received_at
        self.received_wall = received_wall
        self.caller = caller
        self.client_address = client_address


class RequestHandler(Protocol):
    """The application behind a listener: it checks heads, and answers requests and errors."""

    def check_headers(self, head: RequestHead) -> object:
        """Raises GatewayError if the body behind this head is not worth waiting for."""
        ...

    def handle(self, request: HttpRequest, response: ResponseWriter) -> None:
        """Answers the request, now or later, through `response`."""
        ...

    def on_rejected(self, error: GatewayError, response: ResponseWriter) -> None:
        """Sends `error` as the response to bytes that never became a request."""
        ...


class OpenConnection(Protocol):
    """A connection as the listener sees it."""

    @property
    def is_busy(self) -> bool:
        """True while a request is read or answered."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...


class Listener:
    """The state that the connections of one port share."""

    def __init__(
        self,
        handler: RequestHandler,
        *,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        create_request_id: Callable[[], str],
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = loop
        self.create_request_id = create_request_id
        self.now = clock.now
        self.wall = clock.wall
        self.max_pipelined = limits.pipelined_requests
        self.idle_seconds = limits.keepalive_idle_seconds
        self.connections: set[OpenConnection] = set()
        self.draining = False
        self.buffered_bytes = 0
        self.under_memory_pressure = False
        self._cached_date = (0, "")

    def set_memory_pressure(self, under_pressure: bool) -> None:
        """Sets whether memory is short. While it is, large bodies are refused."""
        self.under_memory_pressure = under_pressure

    def date(self) -> str:
        """Returns the value of the Date header, computed once a second."""
        second = int(self.wall())
        if second != self._cached_date[0]:
            self._cached_date = (second, http_date(second))
        return self._cached_date[1]

    def drain(self) -> None:
        """Makes every response the last of its connection.

        Idle connections stay open, so that a request that is already on its way is answered.
        """
        self.draining = True

    def count_busy(self) -> int:
        """Returns the number of connections that read or answer a request."""
        return sum(connection.is_busy for connection in self.connections)

    def close(self) -> None:
        """Closes every connection."""
        for connection in list(self.connections):
            connection.close()


_DAY_NAMES: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(second: int) -> str:
    """Returns a second of Unix time as `Sun, 06 Nov 1994 08:49:37 GMT`, in any locale.

    Why: the standard library's function imports its e-mail parser.
    """
    time_utc = time.gmtime(second)
    day, month = _DAY_NAMES[time_utc.tm_wday], _MONTH_NAMES[time_utc.tm_mon - 1]
    clock = f"{time_utc.tm_hour:02d}:{time_utc.tm_min:02d}:{time_utc.tm_sec:02d}"
    return f"{day}, {time_utc.tm_mday:02d} {month} {time_utc.tm_year:04d} {clock} GMT"
