"""One client connection: bytes in, complete requests out, one at a time and in order.

Heads and bodies are bounded in size and time and parsed strictly before anything else sees the
request. While a request is answered, further bytes wait in a buffer; reading pauses when that grows
too large.

A connection closes in two steps: first the gateway's side, then, when the client has read
everything, the rest. Else the kernel could discard the response that explains the closing. A client
that reads too slowly is disconnected (`SendRateMonitor`).

Detection of clients that disconnected while their request is being answered.

TCP reports a half-closed connection and a closed one alike, with a FIN. If the client has
disconnected, its engine must be freed at once. If it has only closed its sending side (`nc -N`,
some proxies), it must get its response. Writing a byte shows the difference: a closed peer replies
with RST. The connection writes a byte that belongs to its response anyway; the detector polls the
socket for the RST.

While the connection is not read from, even the FIN stays unseen. On Linux, `TCP_INFO` shows it.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Final, cast

from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.errors import GatewayError, Overloaded, RequestTimeout
from fairlead_gateway.http.listener import (
    COUNTED_BYTES,
    HttpRequest,
    Listener,
    ResponseTransport,
    ResponseWriter,
    bodies_error,
)
from fairlead_gateway.http.request_parser import (
    AWAITING_BODY_END,
    AWAITING_HEAD_END,
    AWAITING_REQUEST,
    PIPELINED_REQUESTS,
    RequestHead,
    RequestParser,
)
from fairlead_gateway.http.send_rate import acknowledged_bytes, reset_transport
from fairlead_gateway.http.timers import IdleTimer, TimerQueue

_POLL_DELAYS = (0.001, 0.004, 0.02, 0.1, 0.25, 0.5)
_MAX_POLL_DELAY = 1.0
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_CLOSE_WAIT = 8  # state in the first byte of struct tcp_info: the peer has sent FIN

_LINGER_SECONDS: Final = 2.0
_YIELD_BYTES: Final = 65_536  # after so many bytes in one read, other connections come first
_CONTINUE_RESPONSE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINE_START: Final = b"HTTP/1.1 "
_SSE_COMMENT_CHUNK: Final = b"3\r\n:\n\n\r\n"
_CHUNK_SIZE_ZERO: Final = b"0"  # a chunk size may begin with any number of zeros
_MAX_REQUEST_ID_BYTES: Final = 128
_REQUEST_ID_CHARS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")

# The states of a connection. Why numbers: compiled code looks up the members of an Enum each time.
_READING: Final = 1
_RESPONDING: Final = 2
_LINGERING: Final = 3
_CLOSED: Final = 4


class DisconnectDetector:
    """The poller of one connection's socket. Its delays grow from 1 ms to 1 s.

    on_disconnect: called once if the socket has an error.
    on_half_close: called once if the client has sent FIN.
    """

    __slots__ = ("_handle", "_loop", "_on_disconnect", "_on_half_close", "_polls", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.BaseTransport,
        on_disconnect: Callable[[], None],
        on_half_close: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._on_disconnect = on_disconnect
        self._on_half_close = on_half_close
        self._polls = 0
        self._handle: asyncio.TimerHandle | None = None
        self._schedule_poll()

    def cancel(self) -> None:
        """Stops polling."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._on_half_close = None

    def _schedule_poll(self) -> None:
        delay = _POLL_DELAYS[self._polls] if self._polls < len(_POLL_DELAYS) else _MAX_POLL_DELAY
        self._polls += 1
        self._handle = self._loop.call_later(delay, self._poll)

    def _poll(self) -> None:
        self._handle = None
        try:
            failed = self._socket is None or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except OSError:
            failed = True
        if failed:
            self._on_disconnect()
        elif self._on_half_close is not None and self._socket is not None and _has_received_fin(self._socket):
            self._on_half_close()
        else:
            self._schedule_poll()


def _has_received_fin(connection: socket.socket) -> bool:
    """Returns True if the client has closed its sending side; False if that is unknown."""
    if _TCP_INFO is None:
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[:1] == bytes([_CLOSE_WAIT])
    except OSError:
        return False


def connection_factory(listener: Listener) -> Callable[[], asyncio.Protocol]:
    return lambda: cast(asyncio.Protocol, ClientConnection(listener))


class ClientConnection(ResponseTransport):
    """One client connection, and the `ResponseTransport` of its responses.

    It implements asyncio.Protocol without deriving from it.

    caller: of the request that is read or answered, else of the last one.
    number: grows with each connection of the port.

    Why: a compiled class with an interpreted base is slower and must not be weakly referenced.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._parser = RequestParser(listener.limits, listener.templates)
        self._idle_timer = _ConnectionTimer(listener.timers, self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._write_bytes: Callable[[bytes], None] = _discard
        self._state = _READING
        self._awaited = AWAITING_REQUEST
        self._body_deadline = 0.0
        self._request_bytes = self._accounted_bytes = self._accounted_unparsed = self._caller_bytes = 0
        self.caller = ANONYMOUS
        self.number = 0
        self._response: ResponseWriter | None = None
        self._disconnect_detector: DisconnectDetector | None = None
        self._processing = self._reading_paused = self._writing_paused = self._is_tls = False
        self._eof_received = self._status_line_started = self._response_started = self._rejected = False

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write_bytes = self._transport.write
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=self._limits.write_high_bytes)
        excess = self._listener.add(self)
        if excess > self._limits.reserved_descriptors // 2:  # refusals that clients have not read take descriptors too
            self._state = _LINGERING
            reset_transport(self._transport)
        elif excess > 0:
            self._reject(Overloaded("too many connections", hint="try again later", retry_after=1))
        else:
            self._idle_timer.restart(self._listener.idle_seconds)

    def data_received(self, data: bytes) -> None:
        if self._state == _READING:
            self._parser.feed(data)
            self._process_requests()
            if self._state == _READING:  # a complete request was counted already
                self._account_buffered_bytes()
            if len(data) >= _YIELD_BYTES and self._state == _READING and not self._reading_paused:
                self._pause_reading()  # else a fast sender would starve the others
                self._listener.loop.call_soon(self._process_requests)
        elif self._state == _RESPONDING:
            self._parser.feed(data)
            self._account_buffered_bytes()
            if self._parser.should_pause_reading:
                self._pause_reading()

    def eof_received(self) -> bool:
        self._eof_received = True
        if self._is_tls:
            return False  # TLS has no half-closed connections
        if self._state == _RESPONDING:
            self._listener.ends.run(self._probe_half_closed)
            return True
        if self._state == _READING:
            self._process_requests()
            return self.is_busy
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _CLOSED
        self._write_bytes = _discard
        self._stop_detector()
        self._listener.ends.run(self._on_lost)

    def _on_lost(self) -> None:
        self._idle_timer.cancel()
        self._listener.connections.discard(self)
        self._discard_unread()
        self._request_bytes = 0
        self._account_buffered_bytes()
        self._set_caller(ANONYMOUS)
        response, self._response = self._response, None
        if response is not None:
            response.on_connection_lost()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._listener.send_rate.on_write_paused(self.unsent_bytes())
        if self._response is not None and self._response.on_backpressure is not None:
            self._response.on_backpressure(True)

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._response is not None and self._response.on_backpressure is not None:
            self._response.on_backpressure(False)
        elif self._state == _READING:
            self._process_requests()

    # --- called by the response

    def write(self, data: bytes) -> None:
        """Sends bytes of the response."""
        if self._status_line_started:
            self._status_line_started = False
            data = data[len(_STATUS_LINE_START) :]
        self._response_started = True
        self._write_bytes(data)

    def on_response_complete(self, keep_alive: bool) -> None:
        """Takes the next request, or closes."""
        self._response = None
        self._request_bytes = 0
        if self._accounted_bytes or self._accounted_unparsed:
            self._account_buffered_bytes()
        self._response_started = False
        if self._disconnect_detector is not None:
            self._stop_detector()
        if self._state != _RESPONDING:
            return
        if not (keep_alive and self._listener.takes_requests) or (self._eof_received and self._parser.is_empty):
            self._start_lingering_close()
            return
        self._state = _READING
        self._awaited = AWAITING_REQUEST
        if not self._processing:
            self._process_requests()

    def on_request_released(self) -> None:
        self._request_bytes = 0
        self._account_buffered_bytes()

    def close(self) -> None:
        """Closes the connection, with a reset if a response is incomplete."""
        if self._state == _RESPONDING:
            reset_transport(self._transport)
        else:
            self._transport.close()

    def abort(self) -> None:
        """Closes with a reset, so that the client cannot take the response for complete.

        Why: a response to HTTP/1.0 may end with its connection, and would look whole.
        """
        reset_transport(self._transport)

    def reset(self) -> None:
        reset_transport(self._transport)

    def unsent_bytes(self) -> int:
        """Returns the bytes that wait in this process for the client to read."""
        return self._transport.get_write_buffer_size()

    def acknowledged_bytes(self) -> int | None:
        """Returns the bytes that the client has received; None if the system does not report
        them.
        """
        return acknowledged_bytes(self._transport)

    def date(self) -> str:
        return self._listener.date()

    def client_address(self) -> str | None:
        """Returns the address of the client; None if it has none, or has disconnected."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else None

    @property
    def is_draining(self) -> bool:
        """True if no request is taken after the present one."""
        return self._listener.draining

    @property
    def is_busy(self) -> bool:
        """True while a request is read or answered, or a response is on its way to a
        slow client.
        """
        if self._state == _RESPONDING or (self._state == _READING and not self._parser.is_empty):
            return True
        return self._state != _CLOSED and self._transport.get_write_buffer_size() > 0

    @property
    def is_idle(self) -> bool:
        """True if no request with an accepted head is read or answered, and nothing is unsent."""
        return self._state == _READING and self._awaited != AWAITING_BODY_END and not self.unsent_bytes()

    # --- called by the listener, when the gateway drains

    def shorten_idle_timeout(self) -> None:
        if self._state == _READING and self._awaited == AWAITING_REQUEST and self._parser.is_empty:
            self._idle_timer.restart(self._listener.idle_seconds)

    def refuse_requests(self, error: GatewayError) -> None:
        """Refuses the request that is being read. Closes the connection if it is idle."""
        if self._state == _READING:
            if self._parser.is_empty:
                self._start_lingering_close()
            else:
                self._reject(error)

    # --- reading requests

    def _process_requests(self) -> None:
        """Starts requests until bytes are missing, a response is pending, or it must yield."""
        self._processing = True
        try:
            processed = 0
            while self._state == _READING and not self._writing_paused:
                if processed >= PIPELINED_REQUESTS:
                    self._pause_reading()
                    self._listener.loop.call_soon(self._process_requests)
                    return
                processed += 1
                request = self._parser.next_request()
                if request is None:
                    self._arm_read_timeout()
                    break
                head, body = request
                self._start_request(head, body)
        except GatewayError as error:
            self._reject(error)
        finally:
            self._processing = False
        if self._state == _READING and self._writing_paused:
            self._pause_reading()
        elif self._reading_paused and self._state == _READING:
            self._reading_paused = False
            self._transport.resume_reading()

    def _arm_read_timeout(self) -> None:
        """Starts the timeout of the missing part; if that is the body, first checks the headers.

        After EOF, begins to close instead. Raises GatewayError if the request is refused or
        incomplete.
        """
        if self._eof_received:
            self._parser.on_eof()
            self._start_lingering_close()
            return
        awaited = self._parser.awaited
        limits = self._limits
        if awaited == AWAITING_BODY_END:
            now = self._listener.now()
            if self._awaited != awaited:
                if self._parser.head is not None:
                    caller = self._listener.handler.admit_body(self._parser.head, self.client_address())
                    self._set_caller(ANONYMOUS if caller is None else caller.name)
                self._body_deadline = now + limits.body_seconds
                if self._parser.needs_100_continue:
                    self._transport.write(_CONTINUE_RESPONSE)
            self._idle_timer.restart(max(0.0, min(limits.body_idle_seconds, self._body_deadline - now)))
        elif self._awaited != awaited or awaited == AWAITING_REQUEST:
            idle = awaited == AWAITING_REQUEST
            self._idle_timer.restart(self._listener.idle_seconds if idle else limits.header_timeout_seconds)
        self._awaited = awaited

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
            if self._state == _RESPONDING:
                self._watch_for_disconnect()

    def _start_request(self, head: RequestHead, body: bytes) -> None:
        listener = self._listener
        self._state = _RESPONDING
        self._request_bytes = self._parser.head_bytes + len(body)
        self._idle_timer.pause()
        client_id = head.get_rare(b"x-request-id")
        request_id = internal_id = listener.create_request_id()
        if (
            client_id is not None
            and 0 < len(client_id) <= _MAX_REQUEST_ID_BYTES
            and _REQUEST_ID_CHARS.issuperset(client_id)
        ):
            request_id = client_id.decode("ascii")
        self._response = response = ResponseWriter(self, head, request_id)
        request = HttpRequest(head, body, request_id, listener.now(), listener.wall())
        request.internal_id = internal_id
        listener.handler.handle(request, response)
        if not self._caller_bytes:
            self._set_caller(ANONYMOUS if request.caller is None else request.caller.name)
        if self._state == _RESPONDING:
            self._account_buffered_bytes()
            if self._eof_received:
                self._probe_client()
            elif self._reading_paused:
                self._watch_for_disconnect()

    def _set_caller(self, caller: CallerKey) -> None:
        if caller != self.caller:
            self._listener.count_caller_connection(self.caller, -1)
            self._listener.count_caller_connection(caller, 1)
            self.caller = caller

    def _account_buffered_bytes(self) -> None:
        """Reports the buffered bytes to the listener. Refuses what is incomplete above its limits.

        Bytes that no parsed head covers have a limit of their own: no key was shown for them.
        """
        listener, parser = self._listener, self._parser
        buffered, unparsed = parser.incomplete_bytes + self._request_bytes, parser.unparsed_bytes
        if buffered == self._accounted_bytes and unparsed == self._accounted_unparsed:
            return
        listener.buffered_bytes += buffered - self._accounted_bytes
        listener.unparsed_bytes += unparsed - self._accounted_unparsed
        self._accounted_bytes, self._accounted_unparsed = buffered, unparsed
        if buffered > COUNTED_BYTES or self._caller_bytes:
            counted = buffered if buffered > COUNTED_BYTES else 0
            listener.count_caller_bytes(self.caller, counted - self._caller_bytes)
            self._caller_bytes = counted
        if self._state == _READING and listener.must_refuse(buffered, unparsed, self.caller):
            self._reject(bodies_error() if buffered else _unfinished_error())

    def _discard_unread(self) -> None:
        self._parser = RequestParser(self._limits, self._listener.templates)

    # --- closing

    def _reject(self, error: GatewayError) -> None:
        """Answers with an error instead of serving a request, and closes the connection."""
        self._state = _RESPONDING
        self._rejected = True
        head = self._parser.head
        self._discard_unread()
        self._response = response = ResponseWriter(self, None, self._listener.create_request_id())
        response.head = head
        self._listener.handler.on_rejected(error, response)

    def _on_timeout(self) -> None:
        """Called when the idle timer expires: refuses an incomplete request, or closes."""
        if self._state == _LINGERING:
            if self.unsent_bytes():  # the client is slow; the send-rate monitor judges it
                self._idle_timer.restart(_LINGER_SECONDS)
            else:
                self._transport.abort()
        elif self._state == _READING:
            part = {AWAITING_BODY_END: "body", AWAITING_HEAD_END: "request head"}.get(self._awaited)
            if part is None:
                self._start_lingering_close()
            else:
                self._reject(RequestTimeout(f"the {part} did not arrive in time"))

    def _start_lingering_close(self) -> None:
        """Closes the gateway's side, then reads and discards until the client closes or time is
        over.
        """
        self._state = _LINGERING
        if self._eof_received or (self._is_tls and not self._rejected):
            self._transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if not self._is_tls:
            self._transport.write_eof()
        self._idle_timer.restart(_LINGER_SECONDS)

    def _probe_half_closed(self) -> None:
        if self._state == _RESPONDING and self._disconnect_detector is None:
            self._probe_client()

    def _probe_client(self) -> None:
        """Finds out whether a half-closed client still listens; aborts if it does not.

        Sends a few bytes of the response where its framing allows, and polls for the reset.
        """
        self._stop_detector()
        if not self._response_started:
            self._status_line_started = True
            self._write_bytes(_STATUS_LINE_START)
        elif self._response is not None and self._response.accepts_comments:
            self._write_bytes(_SSE_COMMENT_CHUNK)
        elif self._response is not None and self._response.is_between_chunks:
            self._write_bytes(_CHUNK_SIZE_ZERO)
        self._disconnect_detector = DisconnectDetector(self._listener.loop, self._transport, self._transport.abort)

    def _watch_for_disconnect(self) -> None:
        """Polls for a disconnect while the connection is not read from."""
        self._stop_detector()
        self._disconnect_detector = DisconnectDetector(
            self._listener.loop, self._transport, self._transport.abort, self._probe_client
        )

    def _stop_detector(self) -> None:
        if self._disconnect_detector is not None:
            self._disconnect_detector.cancel()
            self._disconnect_detector = None


class _ConnectionTimer(IdleTimer):
    """The idle timer of a connection."""

    __slots__ = ("_connection",)

    def __init__(self, queue: TimerQueue, connection: ClientConnection) -> None:
        super().__init__(queue)
        self._connection: ClientConnection | None = connection

    def cancel(self) -> None:
        super().cancel()
        self._connection = None

    def on_expired(self) -> None:
        if self._connection is not None:
            self._connection._on_timeout()


def _unfinished_error() -> Overloaded:
    hint = "try again later, or send a shorter body"
    return Overloaded("too many unfinished requests at once", hint=hint, retry_after=1)


def _discard(data: bytes) -> None:
    """Discards bytes that are written before the connection is made, or after it is lost."""
