"""Room 1, listen: a client's connection. Bytes in, whole requests out, one at a time and in order.

What a client can do wrong is settled here before anything else sees the request: heads and bodies are bounded, deadlined and
read strictly (``reader``, ``head``, ``chunked``). While a request is being answered, what follows on the connection waits as bytes,
and reading pauses when that becomes too much. A connection closes gently: first our side, then, when the client has read
everything, the rest; otherwise the kernel could throw away the answer that explains why.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import GatewayError, Overloaded, RequestTimeout
from fairlead_gateway.http.disconnect_detector import DisconnectDetector
from fairlead_gateway.http.listener import HttpRequest, RequestHandler, http_date
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.http.request_parser import AWAITING_BODY_END, AWAITING_HEAD_END, AWAITING_REQUEST, RequestParser
from fairlead_gateway.http.response_writer import ResponseTransport, ResponseWriter
from fairlead_gateway.http.timers import IdleTimer

_LINGER_SECONDS: Final = 2.0
_YIELD_BYTES: Final = 65_536  # read at once, they let others have a turn before the next
_UNTRACKED_BYTES: Final = 65_536  # a body of at most this is not weighed
_CONTINUE_RESPONSE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINE_START: Final = b"HTTP/1.1 "
_SSE_COMMENT_CHUNK: Final = b"3\r\n:\n\n\r\n"
_CHUNK_SIZE_ZERO: Final = b"0"  # the size of a chunk may begin with any number of them
_MAX_REQUEST_ID_BYTES: Final = 128
_REQUEST_ID_CHARS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


class Listener:
    """What the connections of one listening port share."""

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
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.buffered_bytes = 0
        self.under_memory_pressure = False
        self._cached_date = (0, "")

    def create_connection(self) -> asyncio.Protocol:
        """One more connection."""
        return cast(asyncio.Protocol, ClientConnection(self))

    def set_memory_pressure(self, under_pressure: bool) -> None:
        """From now on large bodies are not read on, or are again."""
        self.under_memory_pressure = under_pressure

    def date(self) -> str:
        """The Date header's value, made once a second."""
        second = int(self.wall())
        if second != self._cached_date[0]:
            self._cached_date = (second, http_date(second))
        return self._cached_date[1]

    def drain(self) -> None:
        """From now on every answer is the last of its connection. Idle connections stay, so that a request that is
        already on its way to us is answered."""
        self.draining = True

    def count_busy(self) -> int:
        """Connections on which a request is being read or answered."""
        return sum(connection.is_busy for connection in self.connections)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.close()


_READING: Final = (
    1  # the states of a connection; plain numbers, since compiled code looks an Enum's members up each time
)
_RESPONDING: Final = 2
_LINGERING: Final = 3
_CLOSED: Final = 4


class ClientConnection(ResponseTransport):
    """One client connection; also the ``Line`` that its answers go out on. To asyncio it is a Protocol, without being derived from
    it: a compiled class with an interpreted base is slower, and must not be referred to weakly."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._parser = RequestParser(listener.limits)
        self._idle_timer = IdleTimer(listener.loop, self._on_timeout)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._write_bytes: Callable[[bytes], None] = _write_before_connect
        self._state = _READING
        self._awaited = AWAITING_REQUEST
        self._body_deadline = 0.0
        self._request_body_bytes = self._accounted_bytes = self._unsent_bytes = 0
        self._response: ResponseWriter | None = None
        self._disconnect_detector: DisconnectDetector | None = None
        self._processing = self._reading_paused = self._writing_paused = self._is_tls = False
        self._eof_received = self._status_line_started = self._response_started = self._rejected = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write_bytes = self._transport.write
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=self._limits.write_high_bytes)
        self._listener.connections.add(self)
        if len(self._listener.connections) > self._limits.connections:
            self._reject(Overloaded("too many connections", hint="try again later", headers=(("retry-after", "1"),)))
        else:
            self._idle_timer.restart(self._limits.keepalive_idle_seconds)

    def data_received(self, data: bytes) -> None:
        if self._state == _READING:
            self._parser.feed(data)
            self._process_requests()
            if self._accounted_bytes or self._response is None:  # a request that came whole has been weighed
                self._account_buffered_bytes()
            if len(data) >= _YIELD_BYTES and self._state == _READING and not self._reading_paused:
                self._pause_reading()  # a sender that never pauses would be read from again and again
                self._listener.loop.call_soon(self._process_requests)
        elif self._state == _RESPONDING:
            self._parser.feed(data)
            if self._parser.should_pause_reading:
                self._pause_reading()

    def eof_received(self) -> bool:
        self._eof_received = True
        if self._is_tls:
            return False  # TLS knows no half-closed connection: who says goodbye has gone
        if self._state == _RESPONDING:
            self._probe_client()
            return True
        if self._state == _READING:
            self._process_requests()
            return self.is_busy
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _CLOSED
        self._idle_timer.cancel()
        self._listener.connections.discard(self)
        self._stop_detector()
        self._discard_unread()
        self._request_body_bytes = 0
        self._account_buffered_bytes()
        response, self._response = self._response, None
        if response is not None:
            response.on_connection_lost()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._response is not None and self._response.on_backpressure is not None:
            self._response.on_backpressure(True)

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._response is not None and self._response.on_backpressure is not None:
            self._response.on_backpressure(False)
        elif self._state == _READING:
            self._process_requests()

    # What an answer calls.

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        if self._status_line_started:
            self._status_line_started = False
            data = data[len(_STATUS_LINE_START) :]
        self._response_started = True
        self._write_bytes(data)

    def on_response_complete(self, keep_alive: bool) -> None:
        """The answer is complete: take the next request, or close."""
        self._response = None
        self._request_body_bytes = 0
        if self._accounted_bytes:
            self._account_buffered_bytes()
        self._response_started = False
        if self._disconnect_detector is not None:
            self._stop_detector()
        if self._state != _RESPONDING:
            return
        if not keep_alive or (self._eof_received and self._parser.is_empty):
            self._start_lingering_close()
            return
        self._state = _READING
        self._awaited = AWAITING_REQUEST
        if not self._processing:
            self._process_requests()

    def close(self) -> None:
        """Close now; with a reset where an answer is incomplete."""
        if self._state == _RESPONDING:
            self._transport.abort()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close with a reset: what was sent cannot be taken for complete."""
        self._transport.abort()

    def date(self) -> str:
        """The Date header's value."""
        return self._listener.date()

    def client_address(self) -> str | None:
        """The address at the other end; None when it has gone, or has none."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else None

    @property
    def is_draining(self) -> bool:
        """No request is taken behind the present one."""
        return self._listener.draining

    @property
    def is_busy(self) -> bool:
        """A request is being read or answered, or an answer is still on its way to a slow client."""
        if self._state == _RESPONDING or (self._state == _READING and not self._parser.is_empty):
            return True
        return self._state != _CLOSED and self._transport.get_write_buffer_size() > 0

    # Reading requests.

    def _process_requests(self) -> None:
        """Take requests until bytes are missing, one is being answered, or others should have their turn."""
        self._processing = True
        try:
            processed = 0
            while self._state == _READING and not self._writing_paused:
                if processed >= self._listener.max_pipelined:
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
        """Bytes are missing: set the deadline that fits."""
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
                    self._listener.handler.check_headers(self._parser.head)
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
        self._request_body_bytes = len(body)
        self._idle_timer.pause()
        client_id = head.get(b"x-request-id")
        if (
            client_id is not None
            and 0 < len(client_id) <= _MAX_REQUEST_ID_BYTES
            and _REQUEST_ID_CHARS.issuperset(client_id)
        ):
            request_id = client_id.decode("ascii")
        else:
            request_id = listener.create_request_id()
        self._response = response = ResponseWriter(self, head, request_id)
        request = HttpRequest(head, body, request_id, listener.now(), listener.wall())
        listener.handler.handle(request, response)
        if self._state == _RESPONDING:
            if self._accounted_bytes or len(body) > _UNTRACKED_BYTES:
                self._account_buffered_bytes()
            if self._eof_received:
                self._probe_client()
            elif self._reading_paused:
                self._watch_for_disconnect()

    def _account_buffered_bytes(self) -> None:
        """Tell the listener what this connection holds. When all together hold too much, a large body is not read on."""
        buffered = self._parser.buffered_bytes + self._request_body_bytes
        if buffered <= _UNTRACKED_BYTES:
            buffered = 0
        if buffered == self._accounted_bytes:
            return
        listener = self._listener
        listener.buffered_bytes += buffered - self._accounted_bytes
        self._accounted_bytes = buffered
        over_limit = listener.under_memory_pressure or listener.buffered_bytes > self._limits.bodies_bytes
        if buffered and over_limit and self._state == _READING:
            hint = "try again later, or send a shorter body"
            self._reject(Overloaded("too many large bodies at once", hint=hint, headers=(("retry-after", "1"),)))

    def _discard_unread(self) -> None:
        """Let go what was read and will not be used."""
        self._parser = RequestParser(self._limits)

    # Ends.

    def _reject(self, error: GatewayError) -> None:
        """Answer what is not a request, and close."""
        self._state = _RESPONDING
        self._rejected = True
        self._discard_unread()
        self._response = response = ResponseWriter(self, None, self._listener.create_request_id())
        self._listener.handler.on_rejected(error, response)

    def _on_timeout(self) -> None:
        """The deadline of what is awaited has passed."""
        if self._state == _LINGERING:
            unsent = self._transport.get_write_buffer_size()
            if 0 < unsent < self._unsent_bytes:  # slow, but reading
                self._unsent_bytes = unsent
                self._idle_timer.restart(self._limits.body_idle_seconds)
            else:
                self._transport.abort()
        elif self._state == _READING:
            part = {AWAITING_BODY_END: "body", AWAITING_HEAD_END: "request head"}.get(self._awaited)
            if part is None:
                self._start_lingering_close()
            else:
                self._reject(RequestTimeout(f"the {part} did not arrive in time"))

    def _start_lingering_close(self) -> None:
        """Close our side; read and forget the other's until it closes too or patience ends."""
        self._state = _LINGERING
        if self._eof_received or (self._is_tls and not self._rejected):
            self._transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._unsent_bytes = self._transport.get_write_buffer_size()
        if not self._is_tls:
            self._transport.write_eof()
        self._idle_timer.restart(self._limits.body_idle_seconds if self._unsent_bytes else _LINGER_SECONDS)

    def _probe_client(self) -> None:
        """The client closed its sending side while it is being answered: find out whether it is still there."""
        self._stop_detector()
        if not self._response_started:
            self._status_line_started = True
            self._transport.write(_STATUS_LINE_START)
        elif self._response is not None and self._response.accepts_comments:
            self._transport.write(_SSE_COMMENT_CHUNK)
        elif self._response is not None and self._response.is_between_chunks:
            self._transport.write(_CHUNK_SIZE_ZERO)
        self._disconnect_detector = DisconnectDetector(self._listener.loop, self._transport, self._transport.abort)

    def _watch_for_disconnect(self) -> None:
        """Nothing is read while the answer is made: ask the system whether the client leaves."""
        self._stop_detector()
        self._disconnect_detector = DisconnectDetector(
            self._listener.loop, self._transport, self._transport.abort, self._probe_client
        )

    def _stop_detector(self) -> None:
        if self._disconnect_detector is not None:
            self._disconnect_detector.cancel()
            self._disconnect_detector = None


def _write_before_connect(data: bytes) -> None:
    """Nothing is written before the connection is made."""
