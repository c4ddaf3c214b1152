"""Connections to engines: one llhttp parser each, kept for the connection's life, and a pool of idle ones per engine.

An engine may close an idle connection at the very moment that a request is written to it (the stale-connection race): the
request then has met nobody. ``Broken.stale`` says so, and the request goes again over a new connection. Idle connections
are dropped before the engine's own keep-alive ends, so the race stays rare.

An engine that was told to end may keep its connections open and say nothing more on them, for ever: real ones do when their core
goes first. Such a one listens no longer. So whoever hears nothing for a while, when nobody else does either, knocks; an engine
that refuses is ``gone``.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from fairlead.engines.credentials import EngineCredentials
from fairlead.limits import Limits
from fairlead_gateway.http.timers import IdleTimer

_YIELD_BYTES: Final = 65_536  # read at once, they let others have a turn before the next


class UpstreamError(Exception):
    """Raised when an engine cannot be reached, breaks off or speaks no HTTP; ``why`` is one word of a closed list."""

    def __init__(self, cause: str, *, is_stale: bool = False, was_sent: bool = True) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_stale = is_stale
        self.was_sent = was_sent


class EndpointActivity:
    """One engine's address; ``heard`` counts the times that anybody received bytes from there, ``waiting`` are the
    connections that want to know whether it still listens."""

    __slots__ = ("probing", "receive_count")

    def __init__(self) -> None:
        self.receive_count = 0
        self.probing: list[EngineConnection] = []


class ResponseSink(Protocol):
    """Who listens to an engine's answer. Everything is called from the event loop, in order."""

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The answer's head has come."""
        ...

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Parts of the body, one for each chunk; ``complete`` with the last."""
        ...

    def on_error(self, error: UpstreamError) -> None:
        """Nothing more will come."""
        ...

    def on_silence(self) -> float:
        """No part of the body has come in time: seconds more to wait, 0 to give up."""
        ...


class EngineConnection:
    """One connection to one engine, answering one request at a time; a Protocol, not derived from asyncio's (as in ``listen``)."""

    def __init__(self, pool: "ConnectionPool", address: str) -> None:
        self._pool = pool
        self._max_head_bytes = pool.limits.response_head_bytes
        self._idle_seconds = pool.limits.stream_idle_seconds
        self._probe_after_seconds = pool.limits.unresponsive_seconds
        self.address = address
        self.activity = pool.activity(address)
        self.idle_since = 0.0
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._silence_timer = IdleTimer(pool.loop, self._on_silence)
        self._sink: ResponseSink | None = None
        self._response_count = 0
        self._silence_left_seconds = 0.0
        self._receive_count_before = 0
        self._reset()

    def _reset(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._status = 0
        self._head_bytes = self._pending_head_bytes = 0
        self._paused = False
        self._received_any = self._body_started = self._complete = self._keep_alive = self._has_extra_message = False

    @property
    def is_usable(self) -> bool:
        """Another request may be written to it."""
        return self._sink is None and not self._transport.is_closing()

    def send_request(self, message: Sequence[bytes], sink: ResponseSink, first_seconds: float) -> None:
        """Write a request; its answer goes to ``sink``, whose first part should come within ``first_seconds``."""
        self._reset()
        self._sink = sink
        shown = self._pool.credentials.authorization_for(self.address)
        if shown:
            message = _insert_header(shown, message)
        if len(message) == 1:
            self._transport.write(message[0])
        else:
            self._transport.writelines(message)
        self._arm_silence_timer(first_seconds)

    def set_paused(self, paused: bool) -> None:
        """Stop or go on reading: the client's pace becomes the engine's."""
        self._paused = paused
        if not self._transport.is_closing():
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once: the engine sees that nobody listens any more."""
        self._sink = None
        self._silence_timer.cancel()
        self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self._transport.abort()
            return
        before = self._status
        self._received_any = True
        self.activity.receive_count += 1
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("garbage")
            return
        if not before:
            self._pending_head_bytes += 0 if self._status else len(data)
            if max(self._pending_head_bytes, self._head_bytes) > self._max_head_bytes:
                self._fail("garbage")
                return
            if not self._status:
                return
        pieces, self._chunks = self._chunks, []
        if self._complete:
            self._sink = None
            self._release()
            sink.on_body(pieces, True)
        elif pieces:
            self._body_started = True
            self._arm_silence_timer(self._idle_seconds)
            sink.on_body(pieces, False)
        if len(data) >= _YIELD_BYTES and self._sink is not None and not self._transport.is_closing():
            self._transport.pause_reading()  # an engine that floods would be read from again and again
            self._pool.loop.call_soon(self._resume_reading)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """A request waits in our memory for an engine that reads slowly; bodies are bounded."""

    def resume_writing(self) -> None:
        """It has been read."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence_timer.cancel()
        self._parser = cast(httptools.HttpResponseParser, None)  # it knows us, and nobody should wait for the collector
        self._pool.discard(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        framed = b"content-length" in self._fields or b"transfer-encoding" in self._fields
        if self._status and not framed and exc is None:
            sink.on_body([], True)  # a body without length ends with its connection
            return
        stale = self._response_count > 0 and not self._received_any
        sink.on_error(UpstreamError("cut" if self._received_any else "reset", is_stale=stale))

    def _resume_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    # What llhttp calls.

    def on_message_begin(self) -> None:
        """A second message on the heels of a complete one was never asked for."""
        self._has_extra_message = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field, or a trailer, which is dropped."""
        if not self._status:
            self._head_bytes += len(name) + len(value) + 4
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is whole; interim answers (1xx) are passed over."""
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError  # llhttp makes a parser error of it: there is no such status
        if status < 200:
            self._fields = {}
        elif not self._status and self._sink is not None:
            self._status = status
            self._sink.on_head(status, self._fields)

    def on_body(self, part: bytes) -> None:
        """A chunk's data, or a part of it."""
        if not self._complete:
            self._chunks.append(part)

    def on_message_complete(self) -> None:
        """The end; whether the connection stays is only known in this call."""
        if self._status:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    # Ends.

    def _release(self) -> None:
        self._silence_timer.pause()
        self._response_count += 1
        if self._keep_alive and not self._has_extra_message and not self._transport.is_closing():
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._pool.release(self)
        else:
            self._transport.close()

    def mark_unreachable(self) -> None:
        """The engine has said nothing to anybody and takes no connections."""
        if self._sink is not None and not self._paused:
            self._fail("gone")

    def _arm_silence_timer(self, seconds: float) -> None:
        """So long may silence last from now on; meanwhile it is looked into."""
        step = min(seconds, self._probe_after_seconds)
        self._silence_left_seconds = seconds - step
        self._receive_count_before = self.activity.receive_count
        self._silence_timer.restart(step)

    def _on_silence(self) -> None:
        if self._silence_left_seconds > 0.0:
            if not self._paused and self.activity.receive_count == self._receive_count_before:
                self._pool.probe_listening(self)
            self._arm_silence_timer(self._silence_left_seconds)
            return
        more = self._sink.on_silence() if self._sink is not None and not self._body_started else 0.0
        if more > 0:
            self._arm_silence_timer(more)
        else:
            self._fail("timeout")

    def _fail(self, why: str) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.on_error(UpstreamError(why))


def _insert_header(field: bytes, message: Sequence[bytes]) -> list[bytes]:
    """A request with one more header field, behind its first line."""
    line, _, rest = message[0].partition(b"\r\n")
    return [b"%b\r\n%b%b" % (line, field, rest), *message[1:]]


class ConnectionPool:
    """Idle connections by engine address, newest used first; new ones where there is none."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop, credentials: EngineCredentials) -> None:
        self.credentials = credentials
        self.limits = limits
        self.loop = loop
        self._now = loop.time
        self._max_idle = limits.upstream_idle_per_instance
        self._idle_seconds = limits.upstream_idle_seconds
        self._idle: dict[str, list[EngineConnection]] = {}  # oldest first
        self._activities: dict[str, EndpointActivity] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def take_idle(self, address: str) -> EngineConnection | None:
        """A connection that is ready to use."""
        waiting = self._idle.get(address)
        while waiting:
            connection = waiting.pop()
            if connection.is_usable and self._now() - connection.idle_since < self._idle_seconds:
                return connection
            connection.abort()
        return None

    def activity(self, address: str) -> EndpointActivity:
        """What is known of an address."""
        found = self._activities.get(address)
        if found is None:
            found = self._activities[address] = EndpointActivity()
        return found

    async def connect(self, address: str) -> EngineConnection:
        """A new connection. Raises Broken when the engine does not accept one in time."""
        url = urlsplit(address)
        try:
            secure = self.credentials.tls_context(self.credentials.auth_for(address)) if url.scheme == "https" else None
            async with asyncio.timeout(self.limits.connect_seconds):
                connection = EngineConnection(self, address)
                made = cast(asyncio.Protocol, connection)
                await self.loop.create_connection(lambda: made, url.hostname or "", url.port or 80, ssl=secure)
        except TimeoutError:
            raise UpstreamError("connect-timeout", was_sent=False) from None
        except ssl.SSLError:
            raise UpstreamError("tls", was_sent=False) from None
        except OSError:
            raise UpstreamError("refused", was_sent=False) from None
        return connection

    def probe_listening(self, connection: EngineConnection) -> None:
        """Find out whether a silent engine still takes connections; those that wait for one that does not are told. Once at a
        time, however many wait."""
        waiting = connection.activity.probing
        waiting.append(connection)
        if len(waiting) == 1:
            task = self.loop.create_task(
                self._probe(connection.activity, connection.address, connection.activity.receive_count)
            )
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    def release(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request, unless there will be none."""
        if self._closed:
            connection.abort()
            return
        waiting = self._idle.get(connection.address)
        if waiting is None:
            waiting = self._idle[connection.address] = []
        elif len(waiting) >= self._max_idle:
            waiting.pop(0).abort()
        connection.idle_since = self._now()
        waiting.append(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._idle_seconds / 4, self._close_expired)

    def discard(self, connection: EngineConnection) -> None:
        """A connection has closed."""
        waiting = self._idle.get(connection.address)
        if waiting and connection in waiting:
            waiting.remove(connection)

    def retain(self, addresses: frozenset[str]) -> None:
        """Close what leads to engines that are no longer in the fleet."""
        for address in [known for known in self._idle if known not in addresses]:
            for connection in list(self._idle.pop(address)):
                connection.abort()
        for address in self._activities.keys() - addresses:
            del self._activities[address]

    def close(self) -> None:
        """Close every idle connection, and each that is in use when its answer is over."""
        self._closed = True
        self.retain(frozenset())
        for task in self._probes:
            task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _probe(self, activity: EndpointActivity, address: str, receive_count: int) -> None:
        refused = False
        try:
            (await self.connect(address)).abort()
        except UpstreamError as error:
            refused = error.cause == "refused"
        finally:
            waiting, activity.probing = activity.probing, []
        if refused and activity.receive_count == receive_count:
            for connection in waiting:
                connection.mark_unreachable()

    def _close_expired(self) -> None:
        self._sweeper = None
        oldest = self._now() - self._idle_seconds
        for address, waiting in list(self._idle.items()):
            while waiting and waiting[0].idle_since <= oldest:
                waiting.pop(0).abort()
            if not waiting:
                del self._idle[address]
        if self._idle:
            self._sweeper = self.loop.call_later(self._idle_seconds / 4, self._close_expired)
