"""An engine's answer, held back until it is clear that it is one, then passed on as it comes.

Nothing is sent to the client before the *verdict*: a plain answer is whole, or too long to hold; a stream has produced its
first event, and that is no error (an engine that is full answers a stream with 200 and an error event). Until then the
request can go elsewhere. From then on pieces pass straight from connection to connection, and ``ended`` says how it ended.
"""

import asyncio
from collections.abc import Callable

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.sse import SseScanner, filter_first_chunks


class EngineResponse:
    """One engine's answer to one request; the ``Sink`` of its connection. What only streams need, or only who waits, is made when it
    is asked for: most answers are plain, and told to ``decided``."""

    def __init__(
        self,
        *,
        stream_requested: bool,
        strip_usage: bool,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        on_silence: Callable[[], float],
        on_verdict: Callable[[UpstreamError | None], None] | None = None,
    ) -> None:
        self._stream_requested = stream_requested
        self._strip_usage = strip_usage
        self._now = clock.now
        self._limits = limits
        self._loop = loop
        self.on_silence = on_silence
        self.rewrite_events: Callable[[list[bytes]], list[bytes]] | None = None
        self.rewrite_chunks: Callable[[list[bytes], bool], list[bytes]] | None = None
        self.on_relayed: Callable[[list[bytes]], None] | None = None
        self._buffer: list[bytes] = []
        self._size = 0
        self._response: ResponseWriter | None = None
        self._on_gap: Callable[[float], None] | None = None
        self.is_complete = False
        self.is_paused = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_stream = self._is_passthrough_stream = False
        self.is_passthrough = False  # not read here: a stream in a language of its own is passed on as it comes
        self._scanner: SseScanner | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._on_verdict = on_verdict
        self._awaits_verdict = True
        self._verdict: asyncio.Future[UpstreamError | None] | None = (
            None if on_verdict is not None else loop.create_future()
        )
        self._is_finished = False
        self._error: str | None = None
        self._finished: asyncio.Future[str | None] | None = None

    @property
    def scanner(self) -> SseScanner:
        """What is known of its stream."""
        events = self._scanner
        if events is None:
            events = self._scanner = SseScanner(
                strip_usage=self._strip_usage, max_event_bytes=self._limits.sse_event_bytes
            )
        return events

    @property
    def finished(self) -> "asyncio.Future[str | None]":
        """Done when everything has been passed on, or nothing more will be: None or what went wrong."""
        ended = self._finished
        if ended is None:
            ended = self._finished = self._loop.create_future()
            if self._is_finished:
                ended.set_result(self._error)
        return ended

    @property
    def verdict(self) -> "asyncio.Future[UpstreamError | None]":
        """None when the answer can be passed on, else what went wrong; only where nobody else is told."""
        assert self._verdict is not None
        return self._verdict

    @property
    def buffered_body(self) -> bytes:
        """What is held of a plain answer."""
        return b"".join(self._buffer)

    def relay_to(self, response: ResponseWriter, on_gap: Callable[[float], None]) -> None:
        """Send what is held and everything that follows; ``gap`` is told the seconds between pieces of a stream."""
        held, self._buffer = self._buffer, []
        self._response = response
        self._on_gap = on_gap
        if self.is_stream:
            self._send_events(held)
        else:
            self._send_plain(held)

    # What the connection to the engine calls.

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The head decides whether this is a stream."""
        self.status = status
        self.headers = fields
        if status == 200 and (self._stream_requested or self.is_passthrough):
            events = fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
            self.is_stream = self._stream_requested and events
            self._is_passthrough_stream = events and self.is_passthrough

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Hold, or pass on."""
        if self._is_finished or (
            self._finished is not None and self._finished.done()
        ):  # whoever waited may have been cancelled
            return
        self.is_complete = complete
        now = self._now()
        if not self.is_stream:
            self._on_plain_chunks(chunks, now)
        elif self._response is not None:
            out = self.scanner.filter_chunks(chunks)
            if out and self._on_gap is not None and self.last_at is not None:
                self._on_gap(now - self.last_at)
                self.last_at = now
            self._send_events(out)
        else:
            self._buffer += (
                self.scanner.filter_chunks(chunks) if self._buffer else filter_first_chunks(self.scanner, chunks)
            )
            if self._buffer or self.scanner.is_finished or complete:
                self._on_first_chunk(now)

    def on_error(self, error: UpstreamError) -> None:
        """The connection broke: before the verdict that is the verdict, after it the end."""
        if self._awaits_verdict:
            self._finish_verdict(error)
        else:
            self._finish(error.cause)

    # Passing on.

    def _on_plain_chunks(self, pieces: list[bytes], now: float) -> None:
        if self._response is not None:
            self._send_plain(pieces)
            return
        self._buffer += pieces
        for piece in pieces:
            self._size += len(piece)
        if self.status != 200 and self._size > self._limits.response_buffer_bytes:
            self._buffer = []
            self.on_error(UpstreamError("garbage"))  # no error is that long, and what is held must have an end
        elif self.is_complete or self._is_passthrough_stream or self._size > self._limits.response_buffer_bytes:
            self._on_first_chunk(now)

    def _on_first_chunk(self, now: float) -> None:
        if self._awaits_verdict:
            self.first_at = self.last_at = now
            self._finish_verdict(None)

    def _finish_verdict(self, error: UpstreamError | None) -> None:
        self._awaits_verdict = False
        if self._verdict is None:
            assert self._on_verdict is not None
            decided, self._on_verdict = self._on_verdict, None
            decided(error)
        elif not self._verdict.done():
            self._verdict.set_result(error)

    def _send_plain(self, pieces: list[bytes]) -> None:
        assert self._response is not None
        if self.rewrite_chunks is not None:
            pieces = self.rewrite_chunks(pieces, self.is_complete)
        self._response.write_chunks(pieces, final=self.is_complete)
        if self.is_complete:
            self._finish(None)

    def _send_events(self, events: list[bytes]) -> None:
        assert self._response is not None
        state = self.scanner
        if self.rewrite_events is not None:
            events = self.rewrite_events(events)
        if self.on_relayed is not None:
            self.on_relayed(events)
        if state.is_done:
            self._response.write_chunks(events, final=True)
            self._finish(None)
            return
        if events:
            self._response.write_chunks(events)
        if state.error is not None:
            self._finish("error-event")
        elif state.is_aborted:
            self._finish("aborted")
        elif self.is_complete:
            self._finish("cut")

    def _finish(self, why: str | None) -> None:
        if not self._is_finished:
            self._is_finished = True
            self._error = why
            if self._finished is not None and not self._finished.done():
                self._finished.set_result(why)
