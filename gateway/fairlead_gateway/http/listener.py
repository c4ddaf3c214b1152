"""The listener of a port: its handler, what its connections share, and the writer of responses.

The writer does not reuse the engine's framing. It writes its own head with its own Content-Length
or chunks, and `Connection: close` if the connection ends. One chunk of a stream is one chunk of the
engine. An HTTP/1.0 client gets its stream without chunks.
"""

import asyncio
import heapq
import os
import time
from abc import abstractmethod
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.caller_key import ANONYMOUS, Caller, CallerKey
from fairlead_gateway.errors import GatewayError, Overloaded
from fairlead_gateway.http.request_parser import RequestHead, SharedTemplates
from fairlead_gateway.http.send_rate import SendingConnection, SendRateMonitor
from fairlead_gateway.http.timers import PacedCalls, TimerQueue

INSTANCE_DESCRIPTORS: Final = 8
"""Limit: descriptors of a worker that each instance of the fleet takes from clients."""

_MAX_CLOSED_AT_ONCE: Final = 64
_CLOSED_FRACTION: Final = 64  # of the connections, at most
_RANDOM_BYTES: Final = 8
_BATCH_BYTES: Final = 512 * _RANDOM_BYTES
_DIGITS: Final = 2 * _RANDOM_BYTES
COUNTED_BYTES: Final = 16_384
"""Larger requests are counted by caller; smaller ones of all connections do not fill the limit."""
_LARGE_BODY_BYTES: Final = 65_536  # above the first threshold, only larger requests are refused
_FULL_SHARE: Final = 1.125  # of `bodies_bytes`; above it, small ones are refused too
_MIN_CONNECTIONS_SHARE: Final = 0.95
"""With fewer of the configured client connections, a gateway reports it."""

_STATUS_LINES: Final = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\ndate: " for status in HTTPStatus}
_MESSAGES_PATH: Final = "/v1/messages"  # whose SDKs show the id that the header `request-id` has
_CHUNK_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(1_024)]

_DAY_NAMES: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH_NAMES: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ResponseTransport:
    """The connection that a response is written to, as a plain base class.

    Why: through a Protocol, compiled code looks up every method by its name. An ABC is not used:
    instances of a compiled class with an ABC as base break on weak references.
    """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Sends bytes."""

    @abstractmethod
    def on_response_complete(self, keep_alive: bool) -> None:
        """Called when the response is complete.

        keep_alive: whether the connection may serve another request.
        """

    @abstractmethod
    def on_request_released(self) -> None:
        """Called when the body of the request is in memory no more."""

    @abstractmethod
    def abort(self) -> None:
        """Closes the connection so that the response cannot look complete."""

    @abstractmethod
    def date(self) -> str:
        """Returns the value of the Date header."""

    @abstractmethod
    def client_address(self) -> str | None:
        """Returns the address of the client; None if it is not known."""

    @property
    @abstractmethod
    def is_draining(self) -> bool:
        """True if the connection takes no further request."""


class DetachedTransport(ResponseTransport):
    """The transport of a response without a connection: nothing is sent.

    client_address: of the client that it is computed for, if any.
    count_bytes: counts bytes of the request's body, for its caller.
    """

    __slots__ = ("_client_address", "_count_bytes", "_counted")

    def __init__(self, client_address: str | None = None, count_bytes: Callable[[int], object] | None = None) -> None:
        self._client_address = client_address
        self._count_bytes = count_bytes
        self._counted = 0

    def hold(self, size: int) -> None:
        """Counts the body from now on: no connection does any more."""
        if self._count_bytes is not None and not self._counted:
            self._counted = size
            self._count_bytes(size)

    def write(self, data: bytes) -> None:
        """Drops the bytes."""

    def on_response_complete(self, keep_alive: bool) -> None:
        """Does nothing."""

    def on_request_released(self) -> None:
        """Counts the body no more, now or later."""
        counted, self._counted = self._counted, 0
        if self._count_bytes is not None and counted:
            self._count_bytes(-counted)
        self._count_bytes = None

    def abort(self) -> None:
        """Does nothing."""

    def date(self) -> str:
        return ""

    def client_address(self) -> str | None:
        return self._client_address

    @property
    def is_draining(self) -> bool:
        return False


class ResponseWriter:
    """The writer of the one response to a request.

    on_client_gone: called if the client disconnects before the end.
    on_backpressure: called with True if the client reads too slowly, with False when it catches up.
    head: of the request; its `response_fields` are a part of the answer. None: it was not parsed.
    accepts_comments: True if an SSE comment may be written between two chunks.
    is_waiting: only the head of an event stream and comments are out: nothing of an answer.
    last_comment: returns the comment that comes before the last bytes of a stream; None without
        one.
    """

    __slots__ = (
        "_chunked",
        "_head_only",
        "_is_http10",
        "_keep_alive",
        "_transport",
        "accepts_comments",
        "finished",
        "head",
        "is_waiting",
        "last_comment",
        "on_backpressure",
        "on_client_gone",
        "request_id",
        "started",
    )

    def __init__(self, transport: ResponseTransport, head: RequestHead | None, request_id: str) -> None:
        self._transport = transport
        self._keep_alive = head is not None and head.keep_alive
        self._is_http10 = head is not None and head.version == 10
        self._head_only = head is not None and head.method == "HEAD"
        self._chunked = False
        self.request_id = request_id
        self.head = head
        self.started = False
        self.finished = False
        self.accepts_comments = self.is_waiting = False
        self.last_comment: Callable[[], bytes] | None = None
        self.on_client_gone: Callable[[], object] | None = None
        self.on_backpressure: Callable[[bool], None] | None = None

    @property
    def is_between_chunks(self) -> bool:
        """True if the next bytes are the size of a chunk."""
        return self._chunked and not self.finished

    def send(self, status: int, header_text: str, body: bytes, *, content_type: str = "application/json") -> None:
        """Sends a complete response, without its body for HEAD; does nothing after a start.

        header_text: header lines, each with its CRLF.
        """
        if self.finished or self.started:
            return
        self.started = True
        framing = (
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n" if body else "content-length: 0\r\n"
        )
        head = self._build_head(status, framing, header_text)
        self._transport.write(head if self._head_only else head + body)
        self._complete()

    def start_stream(self, status: int, header_text: str, *, length: int | None = None) -> None:
        """Sends the head of an event stream, or of a long response of `length` bytes."""
        if self.finished or self.started:
            return
        self.started = True
        if length is not None:
            framing = f"content-length: {length}\r\n"
        elif self._is_http10:
            framing, self._keep_alive = "", False
        else:
            framing, self._chunked, self.accepts_comments = "transfer-encoding: chunked\r\n", True, True
        self._transport.write(self._build_head(status, framing, header_text))

    def write_chunks(self, chunks: list[bytes], *, final: bool = False) -> None:
        """Sends each item as one chunk, or as plain bytes if the response has no chunks.

        final: ends the response.
        """
        if self.finished:
            return
        if final and self.last_comment is not None:
            chunks = [self.last_comment(), *chunks]
        if self._chunked:
            if len(chunks) == 1 and not final:
                data = _frame_chunk(chunks[0])
            else:
                data = b"".join([_frame_chunk(piece) for piece in chunks])
                if final:
                    data += b"0\r\n\r\n"
        else:
            data = b"".join(chunks)
        if data:
            self._transport.write(data)
        if final:
            self._complete()

    def end_with_error(self, event: bytes) -> None:
        """Ends a stream with an error event and correct framing.

        Why: the client was promised keep-alive. If the connection were cut, a client that read to
        the end would lose its next request.
        """
        self.write_chunks([event], final=True)

    def abort(self) -> None:
        """Aborts a response that was started and cannot be completed."""
        if not self.finished:
            self._detach()
            self._transport.abort()

    def on_request_released(self) -> None:
        if not self.finished:
            self._transport.on_request_released()

    def client_address(self) -> str | None:
        """Returns the address of the client; None if it has none, or has disconnected."""
        return self._transport.client_address()

    @property
    def is_draining(self) -> bool:
        """True if the connection takes no request after this one."""
        return self._transport.is_draining

    def on_connection_lost(self) -> None:
        """Called when the connection is lost; calls `on_client_gone`."""
        if not self.finished:
            on_client_gone = self.on_client_gone
            self._detach()
            if on_client_gone is not None:
                on_client_gone()

    def _build_head(self, status: int, framing: str, header_text: str) -> bytes:
        keep_alive = self._keep_alive = self._keep_alive and not self._transport.is_draining
        connection = (
            "" if keep_alive and not self._is_http10 else f"connection: {'keep-alive' if keep_alive else 'close'}\r\n"
        )
        status_line = _STATUS_LINES.get(status)
        if status_line is None:
            status_line = f"HTTP/1.1 {status} Unknown\r\ndate: "
        date = self._transport.date()
        common, request_id = "", self.request_id
        if self.head is not None:
            common = self.head.response_fields
            if self.head.path.startswith(_MESSAGES_PATH):
                common += f"request-id: {request_id}\r\n"
        text = f"{status_line}{date}\r\nx-request-id: {request_id}\r\n{connection}{framing}{common}{header_text}\r\n"
        return text.encode("latin-1")

    def _detach(self) -> None:
        """Marks the response as finished and drops the callbacks.

        Why: a cycle of references would wait for the garbage collector.
        """
        self.finished = True
        self.on_client_gone = self.on_backpressure = self.last_comment = None

    def _complete(self) -> None:
        self._detach()
        self._transport.on_response_complete(self._keep_alive)  # as the head said


def _frame_chunk(data: bytes) -> bytes:
    size = len(data)
    return (_CHUNK_SIZE_LINES[size] if size < len(_CHUNK_SIZE_LINES) else b"%x\r\n" % size) + data + b"\r\n"


class HttpRequest:
    """A complete request.

    id: in the answer and in logs; the client's own, if it sent one.
    internal_id: the gateway's own; engines and the decision log know the request by it.
    received_at: monotonic seconds at which its last byte arrived.
    received_wall: the same as Unix time.
    caller: the tenant and its API key; None if no key is required.
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
        caller: Caller | None = None,
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

    def admit_body(self, head: RequestHead, client_address: str | None) -> Caller | None:
        """Returns whose request it is; None if no API key is required.

        Raises GatewayError if the body behind this head is not worth waiting for.
        """

    def handle(self, request: HttpRequest, response: ResponseWriter) -> None:
        """Answers the request, now or later, through `response`."""

    def on_rejected(self, error: GatewayError, response: ResponseWriter) -> None:
        """Sends `error` as the response to bytes that never became a request."""


class OpenConnection(SendingConnection, Protocol):
    """A connection as the listener sees it.

    number: set by the listener; grows with each connection.
    """

    number: int

    @property
    def is_idle(self) -> bool:
        """True if no request with an accepted head is read or answered, and nothing is unsent."""

    @property
    def is_busy(self) -> bool:
        """True while a request is read or answered."""

    def shorten_idle_timeout(self) -> None:
        """Applies the listener's idle timeout to the present idle time, from now on."""

    def refuse_requests(self, error: GatewayError) -> None:
        """Refuses the request that is being read. Closes the connection if it is idle."""

    def close(self) -> None:
        """Closes the connection."""


class RequestIds:
    """The creator of ids: `req-`, eight hexadecimal digits of the process, 64 random bits.

    draw_bytes: returns that many bytes of cryptographic quality.

    Why unique, and not to be guessed: engines key their requests by id. Two live requests with one
    id have crashed engines, and a client that knows the id of another request can disturb it.
    """

    __slots__ = ("_begin", "_digits", "_draw_bytes", "_position")

    def __init__(self, draw_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._draw_bytes = draw_bytes
        self._begin = f"req-{draw_bytes(4).hex()}-"
        self._digits = ""  # drawn for many ids at once: a system call costs more than an id
        self._position = 0

    def next(self) -> str:
        """Returns the next id."""
        start = self._position
        if start >= len(self._digits):
            self._digits, start = self._draw_bytes(_BATCH_BYTES).hex(), 0
        end = self._position = start + _DIGITS
        return self._begin + self._digits[start:end]


class Listener:
    """The state that the connections of one port share.

    ends: paces the ends of connections, and of their requests.
    """

    def __init__(
        self,
        handler: RequestHandler,
        *,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        create_request_id: Callable[[], str],
        ends: PacedCalls | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = loop
        self.timers = TimerQueue(loop)
        self.ends = ends or PacedCalls(loop)
        self.templates = SharedTemplates()
        self.create_request_id = create_request_id
        self.now = clock.now
        self.wall = clock.wall
        self.max_connections = limits.connections
        self._caller_connections_share: float = limits.caller_connections_share
        self.idle_seconds = limits.keepalive_idle_seconds
        self.connections: set[OpenConnection] = set()
        self.send_rate = SendRateMonitor(self.connections, limits, loop, clock.now)
        self.draining = False
        self.takes_requests = True
        self.buffered_bytes = 0
        """Bytes of requests with a parsed head, until their response is complete."""
        self.unparsed_bytes = 0
        """Bytes of incomplete heads, and read ahead."""
        self.under_memory_pressure = False
        self.has_api_keys = False
        self._accepted_count = 0
        self._caller_connections: dict[CallerKey, int] = {}
        self._caller_bytes: dict[CallerKey, int] = {}
        self._cached_date = (0, "")

    def set_memory_pressure(self, under_pressure: bool) -> None:
        """Sets whether memory is short. While it is, large bodies are refused, and connections with
        the most unsent bytes are closed.
        """
        self.under_memory_pressure = self.send_rate.under_memory_pressure = under_pressure

    def add(self, connection: OpenConnection) -> int:
        """Adds a connection that was accepted. Returns how many there are beyond the limit, which
        idle ones make room for.
        """
        self._accepted_count += 1
        connection.number = self._accepted_count
        excess = len(self.connections) + 1 - self.max_connections
        if excess > 0:
            self._close_idle(excess)
            excess = len(self.connections) + 1 - self.max_connections
        self.connections.add(connection)
        if not self.send_rate.is_running:
            self.send_rate.start()
        return excess

    def _close_idle(self, excess: int) -> None:
        """Closes the oldest idle connections. Those that have shown no key go first, with a reset.

        Why: a client that opens connections and sends nothing would keep all others out. More than
        one is closed, since all connections are looked at.
        """
        idle = [connection for connection in self.connections if connection.is_idle]
        strangers = [connection for connection in idle if connection.caller == ANONYMOUS] if self.has_api_keys else []
        count = max(excess, min(_MAX_CLOSED_AT_ONCE, self.max_connections // _CLOSED_FRACTION))
        for connection in heapq.nsmallest(count, strangers, key=_number):
            self.connections.discard(connection)
            connection.reset()
        if not strangers:
            for connection in heapq.nsmallest(count, idle, key=_number):
                connection.close()

    def count_caller_connection(self, caller: CallerKey, change: int) -> None:
        """Counts a connection whose last request had a caller's key."""
        if caller == ANONYMOUS:
            return
        count = self._caller_connections.get(caller, 0) + change
        if count:
            self._caller_connections[caller] = count
        else:
            self._caller_connections.pop(caller, None)

    def check_caller_connections(self, caller: CallerKey) -> None:
        """Raises Overloaded if a caller has more connections than its share."""
        if self._caller_connections.get(caller, 0) > self._caller_connections_share * self.max_connections:
            hint = "send requests over fewer connections, or try again later"
            raise Overloaded("this caller has too many connections", hint=hint, retry_after=1)

    def count_caller_bytes(self, caller: CallerKey, change: int) -> None:
        """Counts bytes of a request over `COUNTED_BYTES` that were added or, below 0, dropped."""
        count = self._caller_bytes.get(caller, 0) + change
        if count:
            self._caller_bytes[caller] = count
        else:
            self._caller_bytes.pop(caller, None)

    def count_detached_bytes(self, caller: CallerKey, change: int) -> None:
        """Counts bytes of a request that outlives its connection, like those of a connection."""
        self.buffered_bytes += change
        if abs(change) > COUNTED_BYTES:
            self.count_caller_bytes(caller, change)

    def must_refuse(self, buffered: int, unparsed: int, caller: CallerKey = ANONYMOUS) -> bool:
        """Returns whether the request of a connection is refused now.

        buffered: bytes of a request with a parsed head; 0 without one.
        unparsed: bytes that no parsed head covers.
        caller: one with an API key gets a share of the limit, so that the others keep the rest.
        """
        if unparsed and self.unparsed_bytes > self.limits.unparsed_bytes:
            return True
        if not buffered:
            return False
        if buffered > COUNTED_BYTES and caller != ANONYMOUS:
            max_bytes = self.limits.caller_bodies_share * self.limits.bodies_bytes
            if self._caller_bytes.get(caller, 0) > max_bytes:
                return True
        if buffered > _LARGE_BODY_BYTES:
            return self.under_memory_pressure or self.buffered_bytes > self.limits.bodies_bytes
        return self.buffered_bytes > self.limits.bodies_bytes * _FULL_SHARE

    def check_complete_body(self, length: int, caller: CallerKey) -> None:
        """Raises Overloaded for a complete request with a body beyond the limits.

        length: above `COUNTED_BYTES`.

        Why: incomplete requests are checked as they arrive, and one that comes whole never is one.
        """
        if self.must_refuse(length, unparsed=0, caller=caller):
            raise bodies_error()

    def date(self) -> str:
        """Returns the value of the Date header, computed once a second."""
        second = int(self.wall())
        if second != self._cached_date[0]:
            self._cached_date = (second, http_date(second))
        return self._cached_date[1]

    def drain(self) -> None:
        """Makes every response the last of its connection.

        Idle connections stay open for `drain_idle_seconds`, so that a request that is already on
        its way is answered.
        """
        self.draining = True
        self.idle_seconds = min(self.idle_seconds, self.limits.drain_idle_seconds)
        for connection in list(self.connections):
            connection.shorten_idle_timeout()

    def refuse_requests(self, error: GatewayError) -> None:
        """Takes no further request: answers those being read with `error`, closes idle
        connections.
        """
        self.draining, self.takes_requests = True, False
        for connection in list(self.connections):
            connection.refuse_requests(error)

    def count_busy(self) -> int:
        return sum(connection.is_busy for connection in self.connections)

    def close(self) -> None:
        for connection in list(self.connections):
            connection.close()


def _number(connection: OpenConnection) -> int:
    return connection.number


def bodies_error() -> Overloaded:
    hint = "try again later, or send a shorter body"
    return Overloaded("too many large bodies at once", hint=hint, retry_after=1)


def max_connections(limits: Limits, max_open_files: int | None, instances: int) -> int:
    """Returns how many client connections a worker takes.

    max_open_files: descriptors that the process may have; None if there is no limit.
    instances: those of the fleet, to which the worker keeps connections too.
    """
    if max_open_files is None:
        return limits.connections
    left = max_open_files - limits.reserved_descriptors - instances * INSTANCE_DESCRIPTORS
    return min(limits.connections, max(limits.min_connections, left))


def connection_warnings(taken: int, limits: Limits, max_open_files: int | None) -> list[str]:
    """Returns a text if a worker takes clearly fewer client connections than are configured."""
    if taken >= _MIN_CONNECTIONS_SHARE * limits.connections:
        return []
    return [
        f"connections: a worker takes {taken} client connections, not {limits.connections}, since it may have only "
        f"{max_open_files} open files; raise that limit: in a cluster that of the nodes' container runtime (such as "
        "`LimitNOFILE` of containerd's systemd unit), elsewhere `ulimit -n`"
    ]


def http_date(second: int) -> str:
    """Returns a second of Unix time as `Sun, 06 Nov 1994 08:49:37 GMT`, in any locale.

    Why: the standard library's function imports its e-mail parser.
    """
    time_utc = time.gmtime(second)
    day, month = _DAY_NAMES[time_utc.tm_wday], _MONTH_NAMES[time_utc.tm_mon - 1]
    clock = f"{time_utc.tm_hour:02d}:{time_utc.tm_min:02d}:{time_utc.tm_sec:02d}"
    return f"{day}, {time_utc.tm_mday:02d} {month} {time_utc.tm_year:04d} {clock} GMT"
