"""Listener."""

import time
from typing import Protocol

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.http.response_writer import ResponseWriter


class HttpRequest:
    """A whole request; ``received`` is the monotonic time of its last byte, ``wall`` the same for people; ``caller`` the
    name of its key; ``client`` its sender's address, where somebody asked for it."""

    __slots__ = ("body", "caller", "client_address", "head", "id", "received_at", "received_wall")

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
        self.received_at = received_at
        self.received_wall = received_wall
        self.caller = caller
        self.client_address = client_address


class RequestHandler(Protocol):
    """Who answers requests."""

    def check_headers(self, head: RequestHead) -> object:
        """Raise a GatewayError when the body behind this head is not worth waiting for."""
        ...

    def handle(self, request: HttpRequest, response: ResponseWriter) -> None:
        """Answer now, or later through ``reply``."""
        ...

    def on_rejected(self, error: GatewayError, response: ResponseWriter) -> None:
        """Answer something that never became a request."""
        ...


_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(second: int) -> str:
    """A second of Unix time as ``Sun, 06 Nov 1994 08:49:37 GMT``, in whatever language the process runs."""
    time_utc = time.gmtime(second)
    day, month = _DAY_NAMES[time_utc.tm_wday], _MONTH_NAMES[time_utc.tm_mon - 1]
    clock = f"{time_utc.tm_hour:02d}:{time_utc.tm_min:02d}:{time_utc.tm_sec:02d}"
    return f"{day}, {time_utc.tm_mday:02d} {month} {time_utc.tm_year:04d} {clock} GMT"
