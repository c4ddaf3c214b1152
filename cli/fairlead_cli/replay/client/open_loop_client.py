"""The open-loop client: every request leaves at its time, whatever the earlier ones do.

All requests are encoded before the clock starts, and the garbage collector is off while it runs.
Loop lag is measured as in gateway and engines; a run with lag says so in its report.

Why: thousands of events a second arrive while engines and gateway need the same cores, so a token
costs a count and an append. Events are split by their blank line; only the first (for the first
token) and the last (usage, errors, ``[DONE]``) are parsed.
"""

import asyncio
import gc
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, cast

import httptools
import msgspec

from fairlead.errors import Unavailable
from fairlead.runtime.loop_lag import LoopLag

_MAX_ERROR_BYTES = 16_384

_MAX_TAIL_CHUNKS = 16
_MAX_HEAD_BYTES = 1 << 20

GAVE_UP_ERROR = "no complete answer when the run ended"
_MAX_IDLE_SECONDS = 10.0
_PROGRESS_SECONDS = 0.5


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
        return self._transport is not None and not self._transport.is_closing() and self._exchange is None

    def send(self, exchange: Exchange) -> None:
        """Sends the request of an exchange. The connection must be idle."""
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        exchange.sent = perf_counter()
        self._transport.write(exchange.wire)

    def close(self) -> None:
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


class StreamedAnswer:
    """A streamed answer. Feed it the body of a 200 answer; read the results when it is complete."""

    __slots__ = (
        "_has_half_separator",
        "_head",
        "_is_event_complete",
        "_tail",
        "cached_tokens",
        "error",
        "finish_reason",
        "output_tokens",
        "times",
    )

    def __init__(self) -> None:
        self.times: array[float] = array("d")
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._head = b""
        self._tail: deque[bytes] = deque(maxlen=_MAX_TAIL_CHUNKS)
        self._is_event_complete = True  # the last chunk ends with a complete event
        self._has_half_separator = False  # the last chunk ends with half of a blank line

    def feed(self, chunk: bytes, now: float) -> None:
        """Adds a chunk that arrived at ``now``."""
        if not self.times:
            self._feed_head(chunk, now)
            return
        self._tail.append(chunk)
        count = chunk.count(b"\n\n")
        if self._is_event_complete:
            if chunk[:1] == b":":
                count -= 1  # a keep-alive comment
        elif self._has_half_separator and chunk[:1] == b"\n":
            count += 1
        self._update_end(chunk)
        for _ in range(count):
            self.times.append(now)

    def _update_end(self, text: bytes) -> None:
        self._is_event_complete = text[-2:] == b"\n\n" or (self._has_half_separator and text == b"\n")
        self._has_half_separator = not self._is_event_complete and text[-1:] == b"\n"

    def close(self) -> None:
        """Reads usage, finish reason and errors from the last events. Removes the times of events
        that were no tokens.
        """
        if not self.times:
            if self.error is None:
                self._parse_tail(self._head.split(b"\n\n"))
            self.error = self.error or "the stream ended without a token"
            return
        counted = self._parse_tail(b"".join(self._tail).split(b"\n\n"))
        # The first token stays: it was parsed on arrival.
        del self.times[max(1, len(self.times) - counted) :]
        if self.output_tokens is None and self.error is None:
            self.error = "the stream ended without usage"
        elif self.finish_reason in ("abort", "error"):
            self.error = self.error or f"the engine ended the answer: {self.finish_reason}"

    def _feed_head(self, chunk: bytes, now: float) -> None:
        self._head += chunk
        *events, partial_event = self._head.split(b"\n\n")
        for position, event in enumerate(events):
            if _has_text(_parse_event(event)):
                # Events of one chunk share its arrival time. They are also the start of the tail.
                later = events[position + 1 :]
                self.times.extend([now] * (1 + sum(1 for later_event in later if not later_event.startswith(b":"))))
                self._tail.append(b"".join(later_event + b"\n\n" for later_event in (event, *later)) + partial_event)
                self._update_end(partial_event or b"\n\n")
                self._head = b""
                return
        if len(self._head) > _MAX_HEAD_BYTES:
            self._head = self._head[-_MAX_HEAD_BYTES:]

    def _parse_tail(self, events: list[bytes]) -> int:
        """Parses backwards to the last token; returns the number of events after it."""
        events_without_text = 0
        for event in reversed(events):
            if not event.strip() or event.startswith(b":"):
                continue
            if event.strip() == b"data: [DONE]":
                events_without_text += 1
                continue
            value = _parse_event(event)
            if value is None:
                break  # the tail begins inside of this event
            if "error" in value:
                self.error = _error_message(value["error"])
            if isinstance(value.get("usage"), dict):
                self._read_usage(value["usage"])
            for choice in value.get("choices") or ():
                self.finish_reason = self.finish_reason or choice.get("finish_reason")
            if _has_text(value):
                break
            events_without_text += 1
        return events_without_text

    def _read_usage(self, usage: dict[str, Any]) -> None:
        self.output_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):  # an engine without the field may still have hits
            self.cached_tokens = details.get("cached_tokens")


def http_error_text(status: int, body: bytes) -> str:
    """Returns one line for an answer that is not 200."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"HTTP {status}"
    if isinstance(value, dict) and "error" in value:
        return f"HTTP {status}: {_error_message(value['error'])}"
    return f"HTTP {status}"


def _parse_event(event: bytes) -> dict[str, Any] | None:
    _, separator, data = event.partition(b"data: ")
    if not separator:
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _has_text(value: dict[str, Any] | None) -> bool:
    if value is None:
        return False
    return any((choice.get("delta") or {}).get("content") for choice in value.get("choices") or ())


def _error_message(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message", error))[:200]
    return str(error)[:200]


@dataclass(slots=True)
class ReplayResult:
    """The result of one replayed request. Times are seconds on the run's clock, wall or simulated;
    None when the event did not happen.

    ttft_seconds: from the time when the request was due, so that a late client does not flatter the
    server.

    gaps: seconds between tokens, one fewer than tokens.
    """

    id: str
    due_seconds: float
    prompt_tokens: int
    instance: str | None = None
    ttft_seconds: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    finished_seconds: float | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    status: int | None = None
    reason: str | None = None
    late_seconds: float = 0.0

    @property
    def itl_mean_seconds(self) -> float | None:
        """TPOT of this request; None with fewer than two tokens."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else None


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """An encoded request and when to send it, in wall seconds from the start."""

    id: str
    due_seconds: float
    prompt_tokens: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class ProgressCounts:
    """Progress of a run.

    loop_lag_p99_seconds: of the client so far; None at the very start.
    """

    total: int
    sent: int
    answered: int
    failed: int
    seconds: float
    loop_lag_p99_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ClientRun:
    """The results of a run, in the order planned. All times are wall seconds.

    loop_lag_p99_seconds: None when the run was too short.
    late_p99_seconds: how late the client sent requests.
    """

    results: list[ReplayResult]
    seconds: float
    loop_lag_p99_seconds: float | None
    late_p99_seconds: float


class OpenLoopClient:
    """A client that replays a plan once. Requests without an answer ``patience_seconds`` after the
    last arrival fail.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        patience_seconds: float = 180.0,
        on_progress: Callable[[ProgressCounts], None] = lambda counts: None,
    ) -> None:
        self._host = host
        self._port = port
        self._patience_seconds = patience_seconds
        self._on_progress = on_progress
        self._idle: list[ReplayConnection] = []
        self._open: set[ReplayConnection] = set()
        self._connect_tasks: set[asyncio.Task[None]] = set()
        self._lateness_seconds: dict[int, float] = {}
        self._ended_exchanges: dict[int, tuple[Exchange, float | None]] = {}
        self._planned = self._sent = self._answered = self._failed = 0
        self._given_up = False
        self._start = 0.0
        self._lag = LoopLag()
        self._finished: asyncio.Event | None = None
        self._all_closed: asyncio.Event | None = None

    async def run(self, plan: Sequence[PlannedRequest]) -> ClientRun:
        """Sends all requests, waits for their answers and returns the results.

        Raises Unavailable when nothing listens.
        """
        await self._connect_first()
        self._planned = len(plan)
        self._finished = asyncio.Event()
        self._lag = lag = LoopLag()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            lag.start()
            await self._send_plan(plan)
        finally:
            lag.stop()
            gc.enable()
            gc.unfreeze()
            await self._close()
        seconds = perf_counter() - self._start
        lateness = sorted(self._lateness_seconds.values())
        return ClientRun(
            results=[self._result(number, request) for number, request in enumerate(plan)],
            seconds=seconds,
            loop_lag_p99_seconds=lag.quantile(0.99),
            late_p99_seconds=lateness[min(len(lateness) - 1, int(0.99 * len(lateness)))] if lateness else 0.0,
        )

    async def _connect_first(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(self._make_connection, self._host, self._port)
        except OSError as error:
            raise Unavailable(
                f"nothing answers at {self._host}:{self._port}: {error.strerror or error}",
                hint="start it with: fairlead up",
            ) from error
        self._add_idle(connection)

    async def _send_plan(self, plan: Sequence[PlannedRequest]) -> None:
        loop = asyncio.get_running_loop()
        assert self._finished is not None
        self._start = perf_counter()
        origin = loop.time()
        for number, request in enumerate(plan):
            loop.call_at(origin + request.due_seconds, self._send, number, request)
        deadline = (plan[-1].due_seconds if plan else 0.0) + self._patience_seconds
        if not plan:
            self._finished.set()
        while not self._finished.is_set():
            self._report_progress(len(plan))
            remaining_seconds = self._start + deadline - perf_counter()
            if remaining_seconds <= 0:
                break
            try:
                await asyncio.wait_for(self._finished.wait(), min(_PROGRESS_SECONDS, remaining_seconds))
            except TimeoutError:
                continue
        self._report_progress(len(plan))

    def _report_progress(self, total: int) -> None:
        seconds, lag = perf_counter() - self._start, self._lag.quantile(0.99)
        self._on_progress(ProgressCounts(total, self._sent, self._answered, self._failed, seconds, lag))

    def _send(self, number: int, request: PlannedRequest) -> None:
        exchange = Exchange(request.wire, partial(self._on_exchange_done, number))
        self._sent += 1
        now = perf_counter()
        self._lateness_seconds[number] = max(0.0, now - self._start - request.due_seconds)
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_idle:
                continue
            if now - connection.idle_since > _MAX_IDLE_SECONDS:
                connection.close()  # the gateway may be about to close it too
                continue
            connection.send(exchange)
            return
        task = asyncio.get_running_loop().create_task(self._connect(exchange))
        self._connect_tasks.add(task)
        task.add_done_callback(self._connect_tasks.discard)

    async def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(self._make_connection, self._host, self._port)
        except OSError as error:
            exchange.error = f"cannot connect: {error.strerror or error}"
            exchange.on_done(exchange)
            return
        self._open.add(connection)
        connection.send(exchange)

    def _make_connection(self) -> ReplayConnection:
        return ReplayConnection(self._add_idle, self._remove)

    def _add_idle(self, connection: ReplayConnection) -> None:
        if not connection.idle_since:
            connection.idle_since = perf_counter()
        self._open.add(connection)
        self._idle.append(connection)

    def _remove(self, connection: ReplayConnection) -> None:
        self._open.discard(connection)
        if not self._open and self._all_closed is not None:
            self._all_closed.set()

    def _on_exchange_done(self, number: int, exchange: Exchange) -> None:
        self._ended_exchanges[number] = (exchange, None if self._given_up else perf_counter())
        self._answered += 1
        self._failed += exchange.error is not None
        if self._answered == self._planned and self._finished is not None:
            self._finished.set()

    async def _close(self) -> None:
        self._given_up = True
        for task in list(self._connect_tasks):
            task.cancel()
        await asyncio.gather(*self._connect_tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        if self._open:
            self._all_closed = asyncio.Event()
            await self._all_closed.wait()

    def _result(self, number: int, request: PlannedRequest) -> ReplayResult:
        """Returns the result; computed after the clock has stopped."""
        result = ReplayResult(
            request.id, request.due_seconds, request.prompt_tokens, late_seconds=self._lateness_seconds.get(number, 0.0)
        )
        if number not in self._ended_exchanges:
            result.error = GAVE_UP_ERROR
            return result
        exchange, end = self._ended_exchanges[number]
        answer = exchange.answer
        result.status = exchange.status
        result.error = GAVE_UP_ERROR if end is None else exchange.error
        result.instance = _decode_header(exchange.headers.get(b"x-fairlead-instance"))
        result.reason = _decode_header(exchange.headers.get(b"x-fairlead-reason"))
        result.cached_tokens = answer.cached_tokens
        result.output_tokens = answer.output_tokens
        if answer.times:
            result.ttft_seconds = answer.times[0] - self._start - request.due_seconds
            result.gaps = array("d", (later - earlier for earlier, later in pairwise(answer.times)))
        if end is not None:
            result.finished_seconds = end - self._start
        return result


def _decode_header(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
