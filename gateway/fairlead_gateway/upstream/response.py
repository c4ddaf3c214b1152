"""The response of an engine: buffered until its verdict is known, then relayed as it comes.

Nothing is sent to the client before the verdict. A plain response has its verdict when it is whole,
or too long to buffer. A stream has it with its first event, which must be no error: a full engine
answers a stream with 200 and an error event. What is passed on and is no JSON, such as speech, has
it with its first bytes. Events that only open an answer wait for its first part, since an engine
can still fail on the prompt. Of an error that is too long, only the start is kept.
Until the verdict, the request can go to another instance. From then on, chunks pass from connection
to connection, and `finished` says how it ended.
"""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.http.listener import ResponseWriter
from fairlead_gateway.runtime import BufferedBytes, WorkerRuntime
from fairlead_gateway.upstream.connection import REPLAY, ResponseSink, UpstreamError
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.request_encoder import retry_after_of
from fairlead_gateway.upstream.sse import SseScanner, filter_first_chunks
from fairlead_gateway.upstream.stream_record import TokenTap
from fairlead_gateway.upstream.usage import GARBAGE, InBandError, LongAnswerCounts, Usage

_OUT_OF_MEMORY: Final = "gateway-full"  # a local cause: the engine is not to blame
CLIENT_SILENT: Final = "client-silent"
"""The client has not read for so long that its engine was paused until its time was over."""
_ERROR_EVENT: Final = "error-event"
_LONG_OPENING_BYTES: Final = 16_384
_MIN_CHUNKS: Final = 64
_MIN_FLOOD_BYTES: Final = 8_192
_MIN_EVENT_BYTES: Final = 48
"""Limit: the mean of the events of a read that are rewritten; an event of one token has 150."""
_NO_HEADERS: Final[dict[bytes, bytes]] = {}


class ReplayFailed(Exception):
    """Raised by `rewrite_events`: what the engine sends is not what the client has."""


class StreamObserver:
    """The observer of a response that is relayed.

    reports_end: whether `on_end` is called.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    __slots__ = ("reports_end",)

    def __init__(self) -> None:
        self.reports_end = False

    @abstractmethod
    def on_gap(self, seconds: float, now: float) -> None:
        """Called with the seconds between two chunks of a stream."""

    def check_silence(self, silent_seconds: float) -> float:
        """Returns after how many more seconds to ask again; 0 if the engine hangs."""
        return math.inf

    def on_end(self) -> None:
        """Called once when the response has been relayed or has failed, by the event loop."""


class EngineResponse(ResponseSink):
    """The response of one engine to one request; the sink of its connection.

    stream_requested: the client asked for a stream.
    is_passthrough: the gateway reads neither prompt nor response.
    on_silence: see `ResponseSink.on_silence`; its argument is whether a stream has been opened.
    on_verdict: called with the verdict; without it, `verdict` is awaited.
    namespace: of the engine, whose responses share memory with others; set by the creator.
    choices: answers that the request has; set by the creator.
    grammar: of the stream; None: unnamed chunks. Set by the creator.
    tokens: those of the stream; None if the gateway has asked for none. Set by the creator.
    is_external: the engine is an API that others run; set by the creator.
    error: the cause of the failure, once the response has ended; None if it is complete.

    Why lazy parts: most responses are plain and go to `on_verdict`; scanner and futures would cost
    each of them.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        stream_requested: bool,
        strip_usage: bool,
        is_passthrough: bool,
        on_silence: Callable[[bool], float],
        on_verdict: Callable[[UpstreamError | None], None] | None = None,
    ) -> None:
        self._stream_requested = stream_requested
        self._strip_usage = strip_usage
        self._now = runtime.now
        self._clock = runtime.clock
        self.limits = runtime.limits
        self._loop = runtime.loop
        self._seconds_left = on_silence
        self.rewrite_events: Callable[[list[bytes]], list[bytes]] | None = None
        self.rewrite_chunks: Callable[[list[bytes], bool], list[bytes]] | None = None
        self.on_relayed: Callable[[list[bytes]], None] | None = None
        self._buffer: list[bytes] = []
        self._size = 0
        self._memory = runtime.response_memory
        self.namespace = ""
        self.choices = 1
        self.grammar: EventGrammar | None = None
        self.tokens: TokenTap | None = None
        self.is_external = False
        self._long_counts: LongAnswerCounts | None = None
        self._buffered: BufferedBytes | None = None
        self._response: ResponseWriter | None = None
        self._observer: StreamObserver | None = None
        self.is_complete = False
        self.is_paused = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_stream = self._flows = False
        self._is_passthrough = is_passthrough
        self._scanner: SseScanner | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._on_verdict = on_verdict
        self._awaits_verdict = True
        self._verdict: asyncio.Future[UpstreamError | None] | None = (
            None if on_verdict is not None else runtime.loop.create_future()
        )
        self._is_finished = self._is_out_of_memory = False
        self.error: str | None = None
        self._finished: asyncio.Future[str | None] | None = None

    @property
    def scanner(self) -> SseScanner:
        """The scanner of the event stream."""
        scanner = self._scanner
        if scanner is None:
            max_event_bytes = self.limits.sse_event_bytes
            if self.grammar is None:
                scanner = SseScanner(
                    strip_usage=self._strip_usage, max_event_bytes=max_event_bytes, choices=self.choices
                )
                scanner.tokens = self.tokens
            else:
                scanner = NamedEventScanner(self.grammar, max_event_bytes=max_event_bytes, is_external=self.is_external)
            self._scanner = scanner
        return scanner

    @property
    def usage(self) -> Usage | None:
        """The engine's token counts by now; None if it has reported none."""
        return self.scanner.usage if self._long_counts is None else self._long_counts.usage

    @property
    def event_count(self) -> int:
        return self.scanner.event_count

    @property
    def next_sequence_number(self) -> int:
        return self.scanner.next_sequence_number if self.is_stream else 0

    @property
    def in_band_error(self) -> InBandError | None:
        return self.scanner.error if self.is_stream else None

    @property
    def has_whole_answer(self) -> bool:
        return self.is_complete and not self.is_stream and self.status < 400

    @property
    def finished(self) -> "asyncio.Future[str | None]":
        """A future that ends when the response has been relayed or has failed.

        Its result is the cause of the failure; None if the response is complete.
        """
        finished = self._finished
        if finished is None:
            finished = self._finished = self._loop.create_future()
            if self._is_finished:
                finished.set_result(self.error)
        return finished

    @property
    def verdict(self) -> "asyncio.Future[UpstreamError | None]":
        """The verdict: a future that ends with None when the response can be relayed, else with the
        error.
        """
        assert self._verdict is not None
        return self._verdict

    @property
    def buffered_body(self) -> bytes:
        return b"".join(self._buffer)

    def retry_after(self, max_seconds: int) -> int | None:
        """Returns the seconds for which the engine asks to wait, as `retry_after_of` does."""
        return retry_after_of(self.headers, max_seconds, self._clock.wall())

    def relay_to(self, response: ResponseWriter, observer: StreamObserver) -> None:
        """Sends what is buffered, and everything that follows."""
        buffer, self._buffer = self._buffer, []
        if not self.is_stream:
            self.release_buffer()
        self._response = response
        self._observer = observer
        if self.is_stream:
            self._size = 0
            if self._buffered is not None:
                self._count_buffered(self.scanner.waiting_bytes)
            self._send_events(buffer)
        else:
            self._send_plain(buffer)

    def release_buffer(self) -> None:
        if self._buffered is not None:
            self._buffered.set_size(0)

    def release_head(self) -> None:
        """Releases what is needed only until the verdict: thousands of streams need not keep it."""
        self.headers = _NO_HEADERS
        self._verdict = None
        self._seconds_left = _give_up

    def end_relay(self) -> None:
        """Ignores what follows: the request has ended.

        Why the observer goes: it refers to the response, and such a cycle would wait for the
        garbage collector.
        """
        self._is_finished = True
        self._observer = None

    def end_if_whole(self) -> bool:
        """Ends a stream whose answer is whole, if its engine or the gateway ends it before its last
        event.

        Returns whether it is.
        """
        if not self.is_stream or self._is_finished:
            return False
        scanner = self.scanner
        if scanner.is_finished or not scanner.has_whole_answer:
            return False
        events = scanner.end(is_cut=True)
        if self._response is None:
            self._buffer += events
        else:
            self._send_events(events)
        return True

    # Callbacks of the connection.

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Receives the head, which decides whether this is a stream."""
        self.status = status
        self.headers = fields
        if status == 200 and (self._stream_requested or self._is_passthrough):
            content_type = fields.get(b"content-type", b"").lower()
            self.is_stream = self._stream_requested and content_type.startswith(b"text/event-stream")
            self._flows = self._is_passthrough and b"json" not in content_type

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Buffers chunks before the verdict, and relays them after it."""
        if self._is_finished or (self._finished is not None and self._finished.done()):  # its task was cancelled
            return
        self.is_complete = complete
        now = self._now()
        if not self.is_stream:
            if self._long_counts is not None:
                self._long_counts.add(chunks, is_last=complete)
            self._on_plain_chunks(chunks, now)
        elif self._response is not None:
            events = self._filter_events(chunks)
            if events and self._observer is not None and self.last_at is not None:
                self._observer.on_gap(now - self.last_at, now)
                self.last_at = now
            self._send_events(events)
        else:
            events = self._filter_events(chunks)
            self._buffer += events
            for event in events:
                self._size += len(event)
            self._buffer = _compact(self._buffer, self._size)
            if self._is_out_of_memory:
                self.on_error(UpstreamError(_OUT_OF_MEMORY))
            elif self.scanner.event_count or self.scanner.is_finished or complete:
                self._on_first_chunk(now)
            elif not self.scanner.has_opening:
                self._buffer.clear()  # comments, which say that the engine waits
                self._size = 0
            elif self._size > self.limits.response_buffer_bytes:
                self._on_first_chunk(now)

    def on_error(self, error: UpstreamError) -> None:
        """Receives an error of the connection: the verdict if there is none yet, else the end."""
        if self._awaits_verdict:
            self._finish_verdict(error)
            return
        if self.end_if_whole():
            return
        if self.is_stream and self._response is not None and (held := self.scanner.release_held()):
            self._send_events(held)
        if not self._is_finished:
            self._finish(CLIENT_SILENT if error.cause == "timeout" and self.is_paused else error.cause)

    def on_silence(self) -> float:
        """Returns how many more seconds the attempt waits."""
        return self._seconds_left(False)

    def check_silence(self, silent_seconds: float) -> float:
        """Returns after how many more seconds the silence is to be checked again; 0 to give up."""
        if self.is_stream and self._awaits_verdict:
            return self._seconds_left(self.scanner.has_opening)
        if self._observer is None or self.is_paused:
            return self.limits.stream_idle_seconds - silent_seconds
        return self._observer.check_silence(silent_seconds)

    # Relaying.

    def _on_plain_chunks(self, chunks: list[bytes], now: float) -> None:
        if self._response is not None:
            self._send_plain(chunks)
            return
        self._buffer += chunks
        for chunk in chunks:
            self._size += len(chunk)
        if self.is_complete or self._flows:
            self._on_first_chunk(now)
        elif self._is_too_long():
            is_too_long = self._size > self.limits.response_buffer_bytes
            if self.status == 200 and self._long_counts is None:
                self._long_counts = LongAnswerCounts()
                self._long_counts.add(self._buffer, is_last=False)
            if self.status == 200 or 400 <= self.status < (600 if is_too_long else 500):
                self._on_first_chunk(now)  # of an error, the words come first
            else:
                self._buffer = []
                self.on_error(UpstreamError("garbage" if is_too_long else _OUT_OF_MEMORY))

    def _is_too_long(self) -> bool:
        """Whether the response is not buffered further: for its own size, or for that of all."""
        if self._size > self.limits.response_buffer_bytes:
            return True
        if self.is_complete:
            return False
        self._buffer = _compact(self._buffer, self._size)
        return self._count_buffered(self._size)

    def _filter_events(self, chunks: list[bytes]) -> list[bytes]:
        """Returns the whole events, without those that the client did not ask for.

        The stream fails if too much waits for the ends of events.
        """
        scanner = self._scanner
        if scanner is None:
            scanner = self.scanner
        is_first = self._response is None and not self._buffer
        events = filter_first_chunks(scanner, chunks) if is_first else scanner.filter_chunks(chunks)
        if self.is_complete:
            events += scanner.end()
        if scanner.has_long_event or self._size > _LONG_OPENING_BYTES or self._buffered is not None:
            is_too_long = self._count_buffered(self._size + scanner.waiting_bytes)
            if is_too_long and not scanner.is_finished:
                self._is_out_of_memory = True
        return events

    def _count_buffered(self, size: int) -> bool:
        """Counts bytes that cannot be passed on yet. Returns whether they are too many."""
        buffered = self._buffered
        if buffered is None:
            buffered = self._buffered = BufferedBytes(self._memory, self.namespace)
        return buffered.set_size(size)

    def _on_first_chunk(self, now: float) -> None:
        if self._awaits_verdict:
            self.first_at = self.last_at = now
            self._finish_verdict(None)

    def _finish_verdict(self, error: UpstreamError | None) -> None:
        self._awaits_verdict = False
        if self._verdict is None:
            assert self._on_verdict is not None
            on_verdict, self._on_verdict = self._on_verdict, None
            on_verdict(error)
        elif not self._verdict.done():
            self._verdict.set_result(error)

    def _send_plain(self, chunks: list[bytes]) -> None:
        assert self._response is not None
        if self.rewrite_chunks is not None:
            chunks = self.rewrite_chunks(chunks, self.is_complete)
        self._response.write_chunks(chunks, final=self.is_complete)
        if self.is_complete:
            self._finish(None)

    def _send_events(self, events: list[bytes]) -> None:
        assert self._response is not None
        scanner = self._scanner
        if scanner is None:
            scanner = self.scanner
        if self.rewrite_events is not None:
            if _is_flood(events):
                self._finish(GARBAGE)
                return
            try:
                events = self.rewrite_events(events)
            except ReplayFailed:
                self._finish(REPLAY)
                return
        if self.on_relayed is not None:
            self.on_relayed(events)
        if scanner.is_done:
            self._response.write_chunks(events, final=True)
            self._finish(None)
            return
        if events:
            self._response.write_chunks(events)
        if scanner.error is not None:
            self._finish(scanner.error.cause or _ERROR_EVENT)
        elif self._is_out_of_memory:
            self._finish(_OUT_OF_MEMORY)
        elif scanner.is_aborted:
            self._finish("aborted")
        elif self.is_complete:
            self._finish("cut")

    def _finish(self, error: str | None) -> None:
        if not self._is_finished:
            self._is_finished = True
            self.error = error
            if self._finished is not None and not self._finished.done():
                self._finished.set_result(error)
            if self._observer is not None and self._observer.reports_end:
                self._loop.call_soon(self._observer.on_end)


def _compact(chunks: list[bytes], size: int) -> list[bytes]:
    """Returns chunks of `size` bytes in all, joined to one if they are too small.

    Why: an object takes 50 bytes besides its content. The ratio bounds how often bytes are copied.
    """
    return [b"".join(chunks)] if len(chunks) > _MIN_CHUNKS + (size >> 8) else chunks


def _is_flood(events: list[bytes]) -> bool:
    size = sum([len(event) for event in events])
    return size > _MIN_FLOOD_BYTES and size < _MIN_EVENT_BYTES * sum([event.count(b"\n\n") for event in events])


def _give_up(has_opened: bool) -> float:
    return 0.0
