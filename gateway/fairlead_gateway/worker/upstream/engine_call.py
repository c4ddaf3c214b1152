"""A call of the gateway itself to an engine, within one time limit; the response is not relayed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.errors import FairleadError
from fairlead.fleet.model import Instance
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.worker.runtime import BufferedBytes
from fairlead_gateway.worker.upstream.connection import LOCAL_CAUSES, ResponseSink, UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool


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
        """The part of the body that has arrived."""
        return bytes(self._content)

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Keeps the status."""
        del fields
        self.status = status

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        """Adds parts of the body; ends the response when it is complete or too long."""
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
        """Ends the response with an error."""
        self._finish(error)

    def on_silence(self) -> float:
        """Returns 0 to give up: the time limit of the call is over."""
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
            raise error
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
