"""One connection to one engine: requests go out, responses come in, one at a time.

Each connection has one llhttp parser for its whole life.

**Stale connections.** An engine may close an idle connection at the moment a request is written to
it. The engine has not read the request then. `UpstreamError.is_stale` is set, and the request is
sent again over a new connection.

**Silent engines.** An engine that shuts down may keep its connections open and send nothing more.
Real engines do so when their core ends first. Such an engine no longer listens. So when an address
has been silent for a while, its owner probes whether it still accepts connections. An engine that
refuses is `gone`. Within a body, its receiver also says whether the engine hangs (`check_silence`).

The cause of a connection that could not be opened: the engine, or this gateway.

A refusal, an unreachable host and a timeout say something about the engine. A lack of descriptors,
ports or memory, or a name that cannot be resolved, says nothing about it. Such failures are
*local*: no instance is blamed for them, and no silent stream is given up.

Recognizes an engine's response whose head differs from an earlier one only in its length.

llhttp parses the head of the first response on a connection. Further responses with the same bytes,
except the digits of Content-Length, need no parser if each arrives whole in one read. Anything else
goes to llhttp. A server that writes the date gets a new template each second.
"""

import asyncio
import errno
import math
import re
import socket
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, cast

import httptools

from fairlead.limits import Limits
from fairlead_gateway.http.timers import IdleTimer, TimerQueue

_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_HEAD_END: Final = b"\r\n\r\n"
_DIGIT_ZERO: Final = 0x30

_YIELD_BYTES: Final = 16_384  # after one read of this size, other connections have their turn
_MAX_CHUNKS: Final = 64  # of one read; more are joined, since each costs time and memory
_HTTP_OK: Final = 200
_MAX_TEMPLATE_MISSES: Final = 8
"""After so many heads in a row that differ, a connection compares no more."""
_NO_FIELDS: Final[dict[bytes, bytes]] = {}
_LENGTH_ONLY: Final = {b"content-length": b""}
_CRASH_CAUSES: Final = ("reset", "cut")
_FIRST_CHECK_SECONDS: Final = 1.0
"""So long after a part of a body, its receiver is asked whether the engine hangs."""

REPLAY: Final = "replay"
"""A cause: the stream differs from what the client has of it."""
LOCAL_CAUSES: Final = frozenset({"gateway-full", "unresolved", "gateway-error", REPLAY})
"""Causes of failed attempts that say nothing about the instance."""
_ENGINE_ERRNOS: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
    }
)
_EXHAUSTION_ERRNOS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
)
_ERRNO_IN_TEXT: Final = re.compile(r"\[Errno (\d+)\]")


class ResponseTemplate:
    """The text of an accepted head with Content-Length, before and after its digits.

    body_start: offset of the body in the last data that matched.
    """

    __slots__ = ("_digits", "_fields", "_prefix", "_prefix_bytes", "_suffix", "_suffix_bytes", "body_start")

    def __init__(self, prefix: bytes, suffix: bytes, digits: int, fields: dict[bytes, bytes]) -> None:
        self._prefix = prefix
        self._prefix_bytes = len(prefix)
        self._suffix = suffix
        self._suffix_bytes = len(suffix)
        self._digits = digits
        self._fields = fields
        self.body_start = 0

    def match(self, data: bytes) -> bool:
        """Returns whether `data` is one whole response with this head, and a body."""
        if not data.startswith(self._prefix):
            return False
        position, length, size = self._prefix_bytes, 0, len(data)
        end_of_digits = min(size, position + self._digits)
        while position < end_of_digits:  # faster than cutting the digits out and converting them
            digit = data[position] - _DIGIT_ZERO
            if digit < 0 or digit > 9:
                break
            length = length * 10 + digit
            position += 1
        start = position + self._suffix_bytes
        if position == self._prefix_bytes or not length or start + length != size:
            return False
        self.body_start = start
        return data[position:start] == self._suffix

    def fields(self, data: bytes) -> dict[bytes, bytes]:
        """Returns the header fields of data that matched."""
        fields = self._fields.copy()
        fields[b"content-length"] = data[self._prefix_bytes : self.body_start - self._suffix_bytes]
        return fields


def create_template(data: bytes, fields: dict[bytes, bytes]) -> ResponseTemplate | None:
    """Returns the template of a complete response that was accepted.

    None unless `data` is the whole response, with a body of the length that its head states.

    fields: the header fields by lower-case name.
    """
    end = data.find(_HEAD_END) + len(_HEAD_END)
    if end < len(_HEAD_END) or b"content-length" not in fields or b"transfer-encoding" in fields:
        return None
    found = _LENGTH_FIELD.search(data, 0, end)
    if found is None or _LENGTH_FIELD.search(data, found.end(), end) is not None:
        return None
    length = int(found[1])
    if not length or len(data) != end + length:
        return None
    digits = found.end(1) - found.start(1)
    return ResponseTemplate(data[: found.start(1)], data[found.end(1) : end], digits, fields)


class UpstreamError(Exception):
    """Raised when an engine cannot be reached, breaks off, or does not speak HTTP.

    cause: one word of a closed list.
    is_stale: the connection was idle before, and closed before any byte of the response.
    was_sent: the request may have reached the engine.
    """

    def __init__(self, cause: str, *, is_stale: bool = False, was_sent: bool = True) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_stale = is_stale
        self.was_sent = was_sent

    @property
    def is_crash(self) -> bool:
        return self.cause in _CRASH_CAUSES


class EndpointActivity:
    """The activity of one engine address, or of one rank behind it, over all its connections.

    receive_count: grows with every read of a part of a body, or of the end of a response, to a
        request that needs the engine's core.
    probing: the connections that wait for the result of a probe.

    Why heads and errors do not count: a server whose core hangs sends the head of a stream at once.
    It also refuses what is invalid.
    """

    __slots__ = ("probing", "receive_count")

    def __init__(self) -> None:
        self.receive_count = 0
        self.probing: list[EngineConnection] = []


class ResponseSink:
    """The receiver of one response; called from the event loop, in order.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Takes the head of the response."""

    @abstractmethod
    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Takes parts of the body; `complete` comes with the last ones."""

    @abstractmethod
    def on_error(self, error: UpstreamError) -> None:
        """Takes the error that ended the response."""

    @abstractmethod
    def on_silence(self) -> float:
        """Returns how many more seconds to wait for the first part of the body; 0 to give up."""

    def check_silence(self, silent_seconds: float) -> float:
        """Returns after how many more seconds to ask again; 0 to give up.

        silent_seconds: since the last part of the body. It ends without this at
            `stream_silence_seconds`.
        """
        return math.inf


class ConnectionOwner:
    """The owner of connections: it reuses them, and probes silent addresses.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    loop: asyncio.AbstractEventLoop
    limits: Limits
    timers: TimerQueue

    @abstractmethod
    def activity(self, address: str) -> EndpointActivity:
        """Returns the activity of an address."""

    @abstractmethod
    def authorization_for(self, address: str) -> bytes:
        """Returns the header line with the token for an address; empty if it wants none."""

    @abstractmethod
    def release(self, connection: "EngineConnection") -> None:
        """Takes back a connection whose response is complete."""

    @abstractmethod
    def discard(self, connection: "EngineConnection") -> None:
        """Forgets a connection that has closed."""

    @abstractmethod
    def resume_in_turn(self, connection: "EngineConnection") -> None:
        """Calls `resume_reading` of a connection when those of other addresses had their turns."""

    @abstractmethod
    def probe_listening(self, connection: "EngineConnection") -> None:
        """Finds out whether the address of a silent connection still accepts connections."""


class EngineConnection:
    """One connection to one engine; an asyncio protocol, and the callbacks of its llhttp parser.

    Why it does not derive from `asyncio.Protocol`: see `http.connection`.
    """

    def __init__(self, owner: ConnectionOwner, address: str) -> None:
        self._owner = owner
        self._max_head_bytes = owner.limits.response_head_bytes
        self._max_silent_seconds = owner.limits.stream_silence_seconds
        self._end_seconds = owner.limits.stream_end_seconds
        self._probe_after_seconds = owner.limits.unresponsive_seconds
        self.address = address
        self.activity = owner.activity(address)
        self.idle_since = 0.0
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._template: ResponseTemplate | None = None
        self._template_misses = 0
        self._silence_timer = _SilenceTimer(owner.timers, self)
        self._sink: ResponseSink | None = None
        self._response_count = 0
        self._silence_left_seconds = self._silence_step_seconds = self._silent_seconds = 0.0
        self._receive_count_before = 0
        self._reset()

    def _reset(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._status = 0
        self._head_bytes = self._bodiless_bytes = 0
        self._paused = False
        self._received_any = self._body_started = self._complete = False
        self._keep_alive = self._has_extra_message = self._is_ending = False
        self._shows_core = True

    @property
    def is_usable(self) -> bool:
        return self._sink is None and not self._transport.is_closing()

    def send_request(
        self, message: Sequence[bytes], sink: ResponseSink, first_seconds: float, *, needs_core: bool = True
    ) -> None:
        """Sends a request; its response goes to `sink`.

        first_seconds: until the first part of the body, before `sink.on_silence` is called.
        needs_core: only the engine's core can answer, so that an answer shows that it works.
        """
        self._reset()
        self._shows_core = needs_core
        self._sink = sink
        authorization = self._owner.authorization_for(self.address)
        if authorization:
            message = _insert_header(authorization, message)
        if len(message) == 1:
            self._transport.write(message[0])
        else:
            self._transport.writelines(message)
        self._arm_silence_timer(first_seconds)

    def detect_lost_host(self, seconds: int) -> None:
        """Lets the connection end if the other host answers no probe of the kernel for a while."""
        found = self._transport.get_extra_info("socket")
        if found is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, seconds // 3),
                (socket.TCP_KEEPINTVL, seconds // 3),
                (socket.TCP_KEEPCNT, 2),
                (socket.TCP_USER_TIMEOUT, seconds * 1_000),
            ):
                found.setsockopt(socket.IPPROTO_TCP, option, value)

    def select_rank(self, rank: int) -> None:
        self.activity = self._owner.activity(activity_key(self.address, rank))

    def set_paused(self, paused: bool) -> None:
        """Stops or resumes reading, so that the engine sends no faster than the client reads."""
        self._paused = paused
        if not self._transport.is_closing():
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def release_head(self, sink: ResponseSink) -> None:
        """Releases the head of the response to `sink`, which has taken it.

        Why: an open stream keeps its connection for minutes.
        """
        if self._sink is sink:
            self._fields = _LENGTH_ONLY if self._has_length() else _NO_FIELDS

    def abandon(self, sink: ResponseSink, *, has_ended: bool = False) -> None:
        """Closes the connection at once, unless its response to `sink` is complete.

        has_ended: the last event of the stream has come. Then the engine has `stream_end_seconds`
            to complete the response, so that the connection can be used again.

        Why: without a limit, an engine keeps a connection for each request by never completing it.
        """
        if self._sink is not sink:
            return  # it may have another response by now
        if not has_ended:
            self.abort()
            return
        self._is_ending = True
        if self._paused:
            self.set_paused(False)
        self._body_started = True
        self._silence_left_seconds = 0.0
        self._silence_timer.restart(self._end_seconds)

    def abort(self) -> None:
        """Closes the connection at once; the engine then stops its work."""
        self._sink = None
        self._silence_timer.cancel()
        self._transport.abort()

    def resume_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def mark_unreachable(self) -> None:
        if self._sink is not None and not self._paused:
            self._fail("gone")

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self._transport.abort()
            return
        status_before = self._status
        is_start = not self._received_any and len(data) < _YIELD_BYTES
        if is_start and self._template is not None and self._template.match(data):
            self._on_whole_response(sink, self._template, data)
            return
        self._received_any = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._chunks and not self._is_ending:
                sink.on_body(self._chunks, False)  # they came before what cannot be read
            self._fail("garbage")
            return
        if not status_before:
            self._bodiless_bytes += 0 if self._status else len(data)
            if max(self._bodiless_bytes, self._head_bytes) > self._max_head_bytes:
                self._fail("garbage")
                return
            if not self._status:
                return
        chunks, self._chunks = self._chunks, []
        if len(chunks) > _MAX_CHUNKS:
            chunks = [b"".join(chunks)]
        if status_before and not chunks and not self._complete:
            self._bodiless_bytes += len(data)
            if self._bodiless_bytes > self._max_head_bytes:
                self._fail("garbage")  # the parser holds an unfinished trailer, however long it is
                return
        if self._complete:
            if is_start:
                self._learn_template(data)
            self._on_complete(sink, chunks)
        elif chunks and not self._is_ending:
            self.activity.receive_count += self._shows_core
            self._body_started = True
            self._bodiless_bytes = 0
            self._silent_seconds = 0.0
            self._arm_silence_timer(_FIRST_CHECK_SECONDS)
            sink.on_body(chunks, False)
        if len(data) >= _YIELD_BYTES and self._sink is not None and not self._transport.is_closing():
            self._transport.pause_reading()  # or one engine's flood would be read without end
            self._owner.resume_in_turn(self)

    def _on_whole_response(self, sink: ResponseSink, template: ResponseTemplate, data: bytes) -> None:
        """Takes a response that one read brought, with a head like an earlier one."""
        self._received_any = self._complete = self._keep_alive = True
        self._template_misses = 0
        self._status = _HTTP_OK
        self._fields = template.fields(data)
        try:
            sink.on_head(_HTTP_OK, self._fields)
        except Exception:  # noqa: BLE001 - as from the parser's callback
            self._fail("garbage")
            return
        self._on_complete(sink, [data[template.body_start :]])

    def _on_complete(self, sink: ResponseSink, chunks: list[bytes]) -> None:
        self.activity.receive_count += self._shows_core
        self._sink = None
        self._release()
        try:
            sink.on_body(chunks, True)
        except Exception:
            sink.on_error(UpstreamError("garbage"))  # nothing else would end the request
            raise

    def _learn_template(self, data: bytes) -> None:
        """Remembers the head of a complete response, unless the heads of this engine all differ."""
        if self._template_misses >= _MAX_TEMPLATE_MISSES:
            return
        self._template_misses += 1
        if self._status == _HTTP_OK and self._keep_alive and not self._has_extra_message:
            self._template = create_template(data, self._fields)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """Does nothing: bodies are bounded, so a slow engine may leave one in the buffer."""

    def resume_writing(self) -> None:
        """Does nothing, like `pause_writing`."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence_timer.cancel()
        self._parser = cast(httptools.HttpResponseParser, None)  # breaks the cycle, without the garbage collector
        self._owner.discard(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._status and not self._has_length() and exc is None:
            sink.on_body([], True)  # a body without length ends with its connection
            return
        is_stale = self._response_count > 0 and not self._received_any
        sink.on_error(UpstreamError("cut" if self._received_any else "reset", is_stale=is_stale))

    def _has_length(self) -> bool:
        return b"content-length" in self._fields or b"transfer-encoding" in self._fields

    # Callbacks of llhttp.

    def on_message_begin(self) -> None:
        self._has_extra_message = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header field; drops trailers."""
        if not self._status:
            self._head_bytes += len(name) + len(value) + 4
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Passes the head on; skips interim responses (1xx)."""
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError  # becomes a parser error: there is no such status
        if status < 200:
            self._fields = {}
        elif not self._status and self._sink is not None:
            self._status = status
            self._shows_core = self._shows_core and status < 400
            self._sink.on_head(status, self._fields)

    def on_body(self, part: bytes) -> None:
        """Keeps a chunk, or a part of one.

        Why no body of an interim response: it would be a part of the final one, which is then
        longer than its Content-Length. Clients would take the rest for their next response.
        """
        if not self._status:
            raise ValueError  # becomes a parser error
        if not self._complete:
            self._chunks.append(part)

    def on_message_complete(self) -> None:
        """Notes the end; only here does llhttp say whether the connection stays open."""
        if self._status:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    # Ends.

    def _release(self) -> None:
        self._silence_timer.pause()
        self._response_count += 1
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # the engine may never read the rest of the request, which is kept until then
        elif self._keep_alive and not self._has_extra_message and not self._transport.is_closing():
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._owner.release(self)
        else:
            self._transport.close()

    def _arm_silence_timer(self, seconds: float) -> None:
        """Allows `seconds` without a byte from now on.

        Until they are over, the address is probed as often as `unresponsive_seconds` pass.
        """
        step = self._silence_step_seconds = min(seconds, self._probe_after_seconds)
        self._silence_left_seconds = seconds - step
        self._receive_count_before = self.activity.receive_count
        self._silence_timer.restart(step)

    def _on_silence(self) -> None:
        self._silent_seconds += self._silence_step_seconds
        is_long = self._silence_step_seconds >= self._probe_after_seconds
        is_silent = not self._paused and self.activity.receive_count == self._receive_count_before
        if is_silent and (is_long or self._silence_left_seconds > 0.0):
            self._owner.probe_listening(self)
        if self._silence_left_seconds > 0.0:
            self._arm_silence_timer(self._silence_left_seconds)
            return
        more_seconds = 0.0
        if self._sink is not None and not self._body_started:
            more_seconds = self._sink.on_silence()
        elif self._sink is not None and not self._is_ending:
            left_seconds = self._max_silent_seconds - self._silent_seconds
            more_seconds = min(left_seconds, self._sink.check_silence(self._silent_seconds))
        if more_seconds > 0:
            self._arm_silence_timer(more_seconds)
        else:
            self._fail("timeout")

    def _fail(self, cause: str) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.on_error(UpstreamError(cause))


class _SilenceTimer(IdleTimer):
    """The timer of a connection to a silent engine."""

    __slots__ = ("_connection",)

    def __init__(self, queue: TimerQueue, connection: EngineConnection) -> None:
        super().__init__(queue)
        self._connection: EngineConnection | None = connection

    def cancel(self) -> None:
        super().cancel()
        self._connection = None

    def on_expired(self) -> None:
        if self._connection is not None:
            self._connection._on_silence()


def activity_key(address: str, rank: int | None) -> str:
    return address if rank is None else f"{address} {rank}"


def _insert_header(field: bytes, message: Sequence[bytes]) -> list[bytes]:
    line, _, rest = message[0].partition(b"\r\n")
    return [b"%b\r\n%b%b" % (line, field, rest), *message[1:]]


def connect_error(error: OSError) -> UpstreamError:
    """Returns the error of an attempt to connect; its request was not sent."""
    if isinstance(error, TimeoutError):
        return UpstreamError("connect-timeout", was_sent=False)
    if isinstance(error, socket.gaierror):
        return UpstreamError("unresolved", was_sent=False)
    numbers = _error_numbers(error)
    if isinstance(error, ConnectionError) or numbers & _ENGINE_ERRNOS:
        return UpstreamError("refused", was_sent=False)
    if numbers & _EXHAUSTION_ERRNOS:
        return UpstreamError("gateway-full", was_sent=False)
    return UpstreamError("gateway-error", was_sent=False)


def is_exhaustion(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _EXHAUSTION_ERRNOS


def _error_numbers(error: OSError) -> set[int]:
    """Returns the error numbers; several if a host has several addresses, which then only the text
    names.
    """
    if error.errno is not None:
        return {error.errno}
    return {int(number) for number in _ERRNO_IN_TEXT.findall(str(error))}
