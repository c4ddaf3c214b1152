"""Room 1, listen: a client's connection. Bytes in, whole requests out, one at a time and in order.

What a client can do wrong is settled here before anything else sees the request: heads and bodies are bounded, deadlined and
read strictly (``reader``, ``head``, ``chunked``). While a request is being answered, what follows on the connection waits as bytes,
and reading pauses when that becomes too much. A connection closes gently: first our side, then, when the client has read
everything, the rest; otherwise the kernel could throw away the answer that explains why.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.dates import http_date
from fairlead_gateway.deadline import Deadline
from fairlead_gateway.errors import GatewayError, Overloaded, TooSlow
from fairlead_gateway.halfclose import HalfClosed
from fairlead_gateway.head import Head
from fairlead_gateway.reader import BODY_END, HEAD_END, NOTHING_YET, RequestReader
from fairlead_gateway.reply import Line, Reply

_LINGER_SECONDS: Final = 2.0
_TURN_BYTES: Final = 65_536  # read at once, they let others have a turn before the next
_LIGHT_BYTES: Final = 65_536  # a body of at most this is not weighed
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROMISE: Final = b"HTTP/1.1 "
_PULSE: Final = b"3\r\n:\n\n\r\n"
_ZERO: Final = b"0"  # the size of a chunk may begin with any number of them
_ID_BYTES: Final = 128
_ID_CHARS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


class Request:
    """A whole request; ``received`` is the monotonic time of its last byte, ``wall`` the same for people; ``caller`` the
    name of its key; ``client`` its sender's address, where somebody asked for it."""

    __slots__ = ("body", "caller", "client", "head", "id", "received", "wall")

    def __init__(
        self,
        head: Head,
        body: bytes,
        id: str,
        received: float,
        wall: float,
        caller: str | None = None,
        client: str | None = None,
    ) -> None:
        self.head = head
        self.body = body
        self.id = id
        self.received = received
        self.wall = wall
        self.caller = caller
        self.client = client


class Handler(Protocol):
    """Who answers requests."""

    def admit(self, head: Head) -> object:
        """Raise a GatewayError when the body behind this head is not worth waiting for."""
        ...

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer now, or later through ``reply``."""
        ...

    def refused(self, error: GatewayError, reply: Reply) -> None:
        """Answer something that never became a request."""
        ...


class Listener:
    """What the connections of one listening port share."""

    def __init__(
        self,
        handler: Handler,
        *,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        new_id: Callable[[], str],
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = loop
        self.new_id = new_id
        self.now = clock.now
        self.wall = clock.wall
        self.turns = limits.pipelined_requests
        self.idle_seconds = limits.keepalive_idle_seconds
        self.connections: set[Downstream] = set()
        self.draining = False
        self.held_bytes = 0
        self.short = False
        self._date = (0, "")

    def protocol(self) -> asyncio.Protocol:
        """One more connection."""
        return cast(asyncio.Protocol, Downstream(self))

    def memory_short(self, short: bool) -> None:
        """From now on large bodies are not read on, or are again."""
        self.short = short

    def date(self) -> str:
        """The Date header's value, made once a second."""
        second = int(self.wall())
        if second != self._date[0]:
            self._date = (second, http_date(second))
        return self._date[1]

    def drain(self) -> None:
        """From now on every answer is the last of its connection. Idle connections stay, so that a request that is
        already on its way to us is answered."""
        self.draining = True

    def busy(self) -> int:
        """Connections on which a request is being read or answered."""
        return sum(connection.busy for connection in self.connections)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.end()


_READING: Final = (
    1  # the states of a connection; plain numbers, since compiled code looks an Enum's members up each time
)
_BUSY: Final = 2
_LINGER: Final = 3
_CLOSED: Final = 4


class Downstream(Line):
    """One client connection; also the ``Line`` that its answers go out on. To asyncio it is a Protocol, without being derived from
    it: a compiled class with an interpreted base is slower, and must not be referred to weakly."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._reader = RequestReader(listener.limits)
        self._deadline = Deadline(listener.loop, self._late)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._send: Callable[[bytes], None] = _unconnected
        self._state = _READING
        self._waiting = NOTHING_YET
        self._body_until = 0.0
        self._body_bytes = self._weight = self._unsent = 0
        self._reply: Reply | None = None
        self._half: HalfClosed | None = None
        self._advancing = self._paused = self._clogged = self._secure = False
        self._eof = self._promised = self._begun = self._refused = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send = self._transport.write
        self._secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=self._limits.write_high_bytes)
        self._listener.connections.add(self)
        if len(self._listener.connections) > self._limits.connections:
            self._refuse(Overloaded("too many connections", hint="try again later", fields=(("retry-after", "1"),)))
        else:
            self._deadline.set(self._limits.keepalive_idle_seconds)

    def data_received(self, data: bytes) -> None:
        if self._state == _READING:
            self._reader.feed(data)
            self._advance()
            if self._weight or self._reply is None:  # a request that came whole has been weighed
                self._weigh()
            if len(data) >= _TURN_BYTES and self._state == _READING and not self._paused:
                self._pause()  # a sender that never pauses would be read from again and again
                self._listener.loop.call_soon(self._advance)
        elif self._state == _BUSY:
            self._reader.feed(data)
            if self._reader.full:
                self._pause()

    def eof_received(self) -> bool:
        self._eof = True
        if self._secure:
            return False  # TLS knows no half-closed connection: who says goodbye has gone
        if self._state == _BUSY:
            self._probe()
            return True
        if self._state == _READING:
            self._advance()
            return self.busy
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _CLOSED
        self._deadline.cancel()
        self._listener.connections.discard(self)
        self._stop_probe()
        self._drop_unread()
        self._body_bytes = 0
        self._weigh()
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.lost()

    def pause_writing(self) -> None:
        self._clogged = True
        if self._reply is not None and self._reply.flow is not None:
            self._reply.flow(True)

    def resume_writing(self) -> None:
        self._clogged = False
        if self._reply is not None and self._reply.flow is not None:
            self._reply.flow(False)
        elif self._state == _READING:
            self._advance()

    # What an answer calls.

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        if self._promised:
            self._promised = False
            data = data[len(_PROMISE) :]
        self._begun = True
        self._send(data)

    def replied(self, keep: bool) -> None:
        """The answer is complete: take the next request, or close."""
        self._reply = None
        self._body_bytes = 0
        if self._weight:
            self._weigh()
        self._begun = False
        if self._half is not None:
            self._stop_probe()
        if self._state != _BUSY:
            return
        if not keep or (self._eof and self._reader.empty):
            self._linger()
            return
        self._state = _READING
        self._waiting = NOTHING_YET
        if not self._advancing:
            self._advance()

    def end(self) -> None:
        """Close now; with a reset where an answer is incomplete."""
        if self._state == _BUSY:
            self._transport.abort()
        else:
            self._transport.close()

    def cut(self) -> None:
        """Close with a reset: what was sent cannot be taken for complete."""
        self._transport.abort()

    def date(self) -> str:
        """The Date header's value."""
        return self._listener.date()

    def client(self) -> str | None:
        """The address at the other end; None when it has gone, or has none."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else None

    @property
    def ending(self) -> bool:
        """No request is taken behind the present one."""
        return self._listener.draining

    @property
    def busy(self) -> bool:
        """A request is being read or answered, or an answer is still on its way to a slow client."""
        if self._state == _BUSY or (self._state == _READING and not self._reader.empty):
            return True
        return self._state != _CLOSED and self._transport.get_write_buffer_size() > 0

    # Reading requests.

    def _advance(self) -> None:
        """Take requests until bytes are missing, one is being answered, or others should have their turn."""
        self._advancing = True
        try:
            turns = 0
            while self._state == _READING and not self._clogged:
                if turns >= self._listener.turns:
                    self._pause()
                    self._listener.loop.call_soon(self._advance)
                    return
                turns += 1
                found = self._reader.next()
                if found is None:
                    self._await_more()
                    break
                head, body = found
                self._dispatch(head, body)
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._advancing = False
        if self._state == _READING and self._clogged:
            self._pause()
        elif self._paused and self._state == _READING:
            self._paused = False
            self._transport.resume_reading()

    def _await_more(self) -> None:
        """Bytes are missing: set the deadline that fits."""
        if self._eof:
            self._reader.ended()
            self._linger()
            return
        waiting = self._reader.waiting
        limits = self._limits
        if waiting == BODY_END:
            now = self._listener.now()
            if self._waiting != waiting:
                if self._reader.head is not None:
                    self._listener.handler.admit(self._reader.head)
                self._body_until = now + limits.body_seconds
                if self._reader.owes_continue:
                    self._transport.write(_CONTINUE)
            self._deadline.set(max(0.0, min(limits.body_idle_seconds, self._body_until - now)))
        elif self._waiting != waiting or waiting == NOTHING_YET:
            idle = waiting == NOTHING_YET
            self._deadline.set(self._listener.idle_seconds if idle else limits.header_deadline_seconds)
        self._waiting = waiting

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()
            if self._state == _BUSY:
                self._watch()

    def _dispatch(self, head: Head, body: bytes) -> None:
        listener = self._listener
        self._state = _BUSY
        self._body_bytes = len(body)
        self._deadline.clear()
        given = head.get(b"x-request-id")
        if given is not None and 0 < len(given) <= _ID_BYTES and _ID_CHARS.issuperset(given):
            request_id = given.decode("ascii")
        else:
            request_id = listener.new_id()
        self._reply = reply = Reply(self, head, request_id)
        request = Request(head, body, request_id, listener.now(), listener.wall())
        listener.handler.handle(request, reply)
        if self._state == _BUSY:
            if self._weight or len(body) > _LIGHT_BYTES:
                self._weigh()
            if self._eof:
                self._probe()
            elif self._paused:
                self._watch()

    def _weigh(self) -> None:
        """Tell the listener what this connection holds. When all together hold too much, a large body is not read on."""
        held = self._reader.held + self._body_bytes
        if held <= _LIGHT_BYTES:
            held = 0
        if held == self._weight:
            return
        listener = self._listener
        listener.held_bytes += held - self._weight
        self._weight = held
        too_much = listener.short or listener.held_bytes > self._limits.bodies_bytes
        if held and too_much and self._state == _READING:
            hint = "try again later, or send a shorter body"
            self._refuse(Overloaded("too many large bodies at once", hint=hint, fields=(("retry-after", "1"),)))

    def _drop_unread(self) -> None:
        """Let go what was read and will not be used."""
        self._reader = RequestReader(self._limits)

    # Ends.

    def _refuse(self, error: GatewayError) -> None:
        """Answer what is not a request, and close."""
        self._state = _BUSY
        self._refused = True
        self._drop_unread()
        self._reply = reply = Reply(self, None, self._listener.new_id())
        self._listener.handler.refused(error, reply)

    def _late(self) -> None:
        """The deadline of what is awaited has passed."""
        if self._state == _LINGER:
            unsent = self._transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:  # slow, but reading
                self._unsent = unsent
                self._deadline.set(self._limits.body_idle_seconds)
            else:
                self._transport.abort()
        elif self._state == _READING:
            what = {BODY_END: "body", HEAD_END: "request head"}.get(self._waiting)
            if what is None:
                self._linger()
            else:
                self._refuse(TooSlow(f"the {what} did not arrive in time"))

    def _linger(self) -> None:
        """Close our side; read and forget the other's until it closes too or patience ends."""
        self._state = _LINGER
        if self._eof or (self._secure and not self._refused):
            self._transport.close()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._unsent = self._transport.get_write_buffer_size()
        if not self._secure:
            self._transport.write_eof()
        self._deadline.set(self._limits.body_idle_seconds if self._unsent else _LINGER_SECONDS)

    def _probe(self) -> None:
        """The client closed its sending side while it is being answered: find out whether it is still there."""
        self._stop_probe()
        if not self._begun:
            self._promised = True
            self._transport.write(_PROMISE)
        elif self._reply is not None and self._reply.pulses:
            self._transport.write(_PULSE)
        elif self._reply is not None and self._reply.between_chunks:
            self._transport.write(_ZERO)
        self._half = HalfClosed(self._listener.loop, self._transport, self._transport.abort)

    def _watch(self) -> None:
        """Nothing is read while the answer is made: ask the system whether the client leaves."""
        self._stop_probe()
        self._half = HalfClosed(self._listener.loop, self._transport, self._transport.abort, self._probe)

    def _stop_probe(self) -> None:
        if self._half is not None:
            self._half.cancel()
            self._half = None


def _unconnected(data: bytes) -> None:
    """Nothing is written before the connection is made."""
