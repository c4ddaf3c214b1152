"""One HTTP/1.1 connection to the gateway: an asyncio protocol with httptools, one request at a
time.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

import httptools

from fairlead_cli.replay.client.streamed_answer import StreamedAnswer, http_error_text

_MAX_ERROR_BYTES = 16_384


class Exchange:
    """A request and its answer so far; ``on_done`` is called once, when it ends."""

    __slots__ = ("answer", "body", "error", "headers", "on_done", "sent", "status", "wire")

    def __init__(self, wire: bytes, on_done: "Callable[[Exchange], None]") -> None:
        self.wire = wire
        self.on_done = on_done
        self.sent: float | None = None
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.answer = StreamedAnswer()
        self.body = b""
        self.error: str | None = None


class ReplayConnection(asyncio.Protocol):
    """A connection to the gateway, for one request at a time.

    on_idle: called when the connection can take the next exchange.
    """

    def __init__(
        self, on_idle: "Callable[[ReplayConnection], None]", on_closed: "Callable[[ReplayConnection], None]"
    ) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._now = 0.0
        self.idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open and not in use."""
        return self._transport is not None and not self._transport.is_closing() and self._exchange is None

    def send(self, exchange: Exchange) -> None:
        """Sends the request of an exchange. The connection must be idle."""
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        exchange.sent = perf_counter()
        self._transport.write(exchange.wire)

    def close(self) -> None:
        """Closes the connection at once; its exchange ends with an error."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Parses bytes of an answer; without a request they end the connection."""
        if self._exchange is None:
            self.close()
            return
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"no HTTP answer: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_closed(self)
        self._finish("the connection was lost" if exc is None else f"the connection was lost: {exc}")

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, chunk: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status == 200:
            exchange.answer.feed(chunk, self._now)
        elif len(exchange.body) < _MAX_ERROR_BYTES:
            exchange.body += chunk

    def on_message_complete(self) -> None:
        """Ends the exchange; keeps the connection for the next one if the gateway allows it."""
        is_reusable = self._parser.should_keep_alive()
        self._finish(None)
        if is_reusable and self.is_idle:
            self.idle_since = self._now
            self._on_idle(self)
        else:
            self.close()

    def _finish(self, error: str | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.error = error
        if error is None and exchange.status == 200:
            exchange.answer.close()
            exchange.error = exchange.answer.error
        elif error is None:
            exchange.error = http_error_text(exchange.status or 0, exchange.body)
        exchange.on_done(exchange)
