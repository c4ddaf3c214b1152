"""The pool of connections to engines: idle ones by address, and new ones.

A call of the gateway itself to an engine, within one time limit; the response is not relayed.
"""

import asyncio
import ssl
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import FairleadError
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead_gateway.http.timers import TaskDeadline, TimerQueue
from fairlead_gateway.runtime import BufferedBytes, ResponseMemory
from fairlead_gateway.upstream.connection import (
    LOCAL_CAUSES,
    ConnectionOwner,
    EndpointActivity,
    EngineConnection,
    ResponseSink,
    UpstreamError,
    connect_error,
    is_exhaustion,
)

UPSTREAM_IDLE_PER_INSTANCE: Final = 256
"""Limit: pooled engine connections of one instance."""


class ConnectionPool(ConnectionOwner):
    """Idle connections by engine address, the newest used first.

    Idle connections are closed before the engine's keep-alive ends, so that stale ones stay rare.

    After a large read, a connection is not read until those of other addresses had their turns: one
    in each iteration of the event loop.

    Why: an engine may send as fast as the network allows on hundreds of connections. A read can
    take the worker 20 ms.
    """

    def __init__(
        self,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        credentials: EngineCredentials,
        response_memory: ResponseMemory | None = None,
    ) -> None:
        self.credentials = credentials
        self.response_memory = response_memory or ResponseMemory(limits.buffered_responses_bytes)
        self.limits = limits
        self.loop = loop
        self.timers = TimerQueue(loop)
        self._now = loop.time
        self._max_idle = UPSTREAM_IDLE_PER_INSTANCE
        self._idle_seconds = limits.upstream_idle_seconds
        self._idle: dict[str, list[EngineConnection]] = {}  # oldest first
        self._activities: dict[str, EndpointActivity] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._unread: OrderedDict[str, deque[EngineConnection]] = OrderedDict()  # the next address first
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def take_idle(self, address: str) -> EngineConnection | None:
        """Returns an idle connection that is ready to use; None if there is none."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.is_usable and self._now() - connection.idle_since < self._idle_seconds:
                return connection
            connection.abort()
        return None

    async def connect(self, address: str) -> EngineConnection:
        """Returns a new connection. Raises UpstreamError if the engine accepts none in time, or if
        this gateway can open none.
        """
        url = urlsplit(address)
        host, port = url.hostname or "", url.port or 80
        resolve = self.credentials.resolver(host)
        is_resolved = resolve is None
        try:
            tls = name = None
            if url.scheme == "https":
                tls, name = self.credentials.tls_context(self.credentials.auth_for(address)), host
            with TaskDeadline(self.loop, self.limits.connect_seconds):
                connection = EngineConnection(self, address)
                protocol = cast(asyncio.Protocol, connection)
                if resolve is not None:
                    host = await resolve(host, port)
                    is_resolved = True
                await self.loop.create_connection(lambda: protocol, host, port, ssl=tls, server_hostname=name)
        except TimeoutError:
            raise UpstreamError("connect-timeout" if is_resolved else "unresolved", was_sent=False) from None
        except ssl.SSLError as error:
            cause = "gateway-full" if is_exhaustion(error.__cause__) else "tls"
            raise UpstreamError(cause, was_sent=False) from None
        except OSError as error:
            raise connect_error(error) from None
        return connection

    def activity(self, address: str) -> EndpointActivity:
        """Returns the activity of an address."""
        activity = self._activities.get(address)
        if activity is None:
            activity = self._activities[address] = EndpointActivity()
        return activity

    def authorization_for(self, address: str) -> bytes:
        """Returns the header line with the token for an address; empty if it wants none."""
        return self.credentials.authorization_for(address) if self.credentials.has_any else b""

    def release(self, connection: EngineConnection) -> None:
        """Keeps a connection for the next request; closes the oldest one if there are too many.

        After `close`, closes the connection instead.
        """
        if self._closed:
            connection.abort()
            return
        idle = self._idle.get(connection.address)
        if idle is None:
            idle = self._idle[connection.address] = []
        elif len(idle) >= self._max_idle:
            idle.pop(0).abort()
        connection.idle_since = self._now()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._idle_seconds / 4, self._close_expired)

    def discard(self, connection: EngineConnection) -> None:
        """Forgets a connection that has closed."""
        idle = self._idle.get(connection.address)
        if idle and connection in idle:
            idle.remove(connection)

    def retain(self, addresses: frozenset[str]) -> None:
        """Closes the idle connections to all other addresses, and forgets their activity."""
        for address in [known for known in self._idle if known not in addresses]:
            for connection in list(self._idle.pop(address)):
                connection.abort()
        for key in [key for key in self._activities if key.partition(" ")[0] not in addresses]:
            del self._activities[key]

    def close(self) -> None:
        """Closes all idle connections, and each used one when its response ends."""
        self._closed = True
        self.retain(frozenset())
        for task in self._probes:
            task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def resume_in_turn(self, connection: EngineConnection) -> None:
        """Reads a connection on when those of other addresses had their turns."""
        if not self._unread:
            self.loop.call_soon(self._resume_next)
        self._unread.setdefault(connection.address, deque()).append(connection)

    def _resume_next(self) -> None:
        address, connections = self._unread.popitem(last=False)
        connections.popleft().resume_reading()
        if connections:
            self._unread[address] = connections
        if self._unread:
            self.loop.call_soon(self._resume_next)

    def probe_listening(self, connection: EngineConnection) -> None:
        """Probes the address of a silent connection, once for all its silent connections."""
        activity = connection.activity
        activity.probing.append(connection)
        if len(activity.probing) == 1:
            task = self.loop.create_task(self._probe(activity, connection.address, activity.receive_count))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _probe(self, activity: EndpointActivity, address: str, receive_count: int) -> None:
        refused = False
        try:
            (await self.connect(address)).abort()
        except UpstreamError as error:
            refused = error.cause == "refused"
        finally:
            probing, activity.probing = activity.probing, []
        if refused and activity.receive_count == receive_count:
            for connection in probing:
                connection.mark_unreachable()

    def _close_expired(self) -> None:
        self._sweeper = None
        oldest = self._now() - self._idle_seconds
        for address, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                idle.pop(0).abort()
            if not idle:
                del self._idle[address]
        if self._idle:
            self._sweeper = self.loop.call_later(self._idle_seconds / 4, self._close_expired)


class EngineCallFailed(FairleadError):
    """Raised when no usable response came.

    cause: one word of a closed list.
    is_suspicious: the engine should be avoided for a while.
    is_final: the request is at fault, and no other engine would take it.
    crashed: the engine had the request and broke off.
    body: of a response with another status than 200.
    """

    def __init__(
        self,
        reason: str,
        *,
        cause: str,
        is_suspicious: bool,
        is_final: bool = False,
        crashed: bool = False,
        body: bytes = b"",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.is_suspicious = is_suspicious
        self.is_final = is_final
        self.crashed = crashed
        self.body = body


@dataclass(frozen=True, slots=True)
class _Call:
    """The parameters of `call_engine` for each connection that is tried."""

    message: Sequence[bytes]
    seconds: float
    rank: int | None
    needs_core: bool


class _BufferedResponse(ResponseSink):
    """A response that is collected; the sink of its connection.

    buffered: counts the bytes until the call ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int, buffered: BufferedBytes) -> None:
        self._max_bytes = max_bytes
        self.buffered = buffered
        self._content = bytearray()
        self.status = 0
        self.complete = False
        self.finished: asyncio.Future[UpstreamError | None] = loop.create_future()

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        del fields
        self.status = status

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Adds parts of the body.

        Ends the response when it is complete, when it is too long, and when all buffers of the
        gateway are full.
        """
        for chunk in chunks:
            self._content += chunk
        self.complete = complete
        if len(self._content) > self._max_bytes:
            self._finish(UpstreamError("too long"))
        elif complete:
            self._finish(None)
        elif self.buffered.set_size(len(self._content)):
            self._finish(UpstreamError("gateway-full"))

    def on_error(self, error: UpstreamError) -> None:
        self._finish(error)

    def on_silence(self) -> float:
        return 0.0

    def _finish(self, error: UpstreamError | None) -> None:
        if not self.finished.done():
            self.finished.set_result(error)


async def call_engine(
    pool: ConnectionPool,
    address: str,
    message: Sequence[bytes],
    seconds: float,
    *,
    instance: Instance | None = None,
    needs_core: bool = True,
) -> bytes:
    """Sends a message and returns the body of the 200 response. Raises EngineCallFailed.

    instance: names the data-parallel rank, and the namespace whose responses share memory.
    needs_core: as in `EngineConnection.send_request`.
    The connection is closed if the response does not come in time.
    """
    rank, namespace = (None, "") if instance is None else (instance.dp_rank, instance.namespace)
    buffered = BufferedBytes(pool.response_memory, namespace)
    try:
        with TaskDeadline(pool.loop, seconds):
            return await _exchange(pool, address, _Call(message, seconds, rank, needs_core), buffered)
    except TimeoutError:
        raise EngineCallFailed(f"no answer within {seconds:g} s", cause="timeout", is_suspicious=True) from None
    except UpstreamError as error:
        cause = error.cause.replace(" ", "-")
        is_suspicious = error.cause not in LOCAL_CAUSES
        raise EngineCallFailed(error.cause, cause=cause, is_suspicious=is_suspicious, crashed=error.is_crash) from None
    finally:
        buffered.set_size(0)


async def _exchange(pool: ConnectionPool, address: str, call: _Call, buffered: BufferedBytes) -> bytes:
    connection = pool.take_idle(address)
    while True:
        if connection is None:
            connection = await pool.connect(address)
        response = _BufferedResponse(pool.loop, pool.limits.response_buffer_bytes, buffered)
        if call.rank is not None:
            connection.select_rank(call.rank)
        connection.send_request(call.message, response, call.seconds, needs_core=call.needs_core)
        try:
            error = await response.finished
        finally:
            if not response.complete:
                connection.abort()
        if error is not None and error.is_stale:
            connection = None
            continue
        if error is not None:
            try:
                raise error
            finally:
                del error  # else it keeps this frame, and the frame keeps it
        status = response.status
        if status != 200:
            is_refused = 400 <= status < 500 and status != 429
            is_suspicious = status >= 500 and status != 503
            raise EngineCallFailed(
                f"status {status}",
                cause=f"status-{status}",
                is_suspicious=is_suspicious,
                is_final=is_refused,
                body=response.content,
            )
        return response.content
