"""Sends comments into silent streams, so that no proxy or client in between closes them.

A comment goes out only after the head and between two whole events. A client that does not read
gets none.
"""

import asyncio

from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.worker.upstream.response import EngineResponse

COMMENT = b": keep-alive\n\n"


class SseKeepAlive:
    """The sender of the comments of one stream, from `start` to `stop`."""

    __slots__ = ("_engine_response", "_handle", "_last", "_loop", "_response", "_seconds")

    def __init__(self, response: ResponseWriter, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._response = response
        self._seconds = seconds
        self._loop = loop
        self._engine_response: EngineResponse | None = None
        self._last: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self, engine_response: EngineResponse) -> None:
        """Starts the comments of a stream, or continues them with another engine's response."""
        self._engine_response = engine_response
        self._last = engine_response.last_at
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._on_timer)

    def stop(self) -> None:
        """Ends the comments."""
        self._engine_response = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _on_timer(self) -> None:
        engine_response, self._handle = self._engine_response, None
        if engine_response is None or self._response.finished:
            return
        if engine_response.last_at == self._last and not engine_response.is_paused:
            self._response.write_chunks([COMMENT])
        self._last = engine_response.last_at
        self._handle = self._loop.call_later(self._seconds, self._on_timer)
