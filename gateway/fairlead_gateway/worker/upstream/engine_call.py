"""One question to an engine whose whole answer only the gateway reads, within one time limit."""

import asyncio
from collections.abc import Sequence

from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead_gateway.worker.resilience.retry import CRASH_CAUSES
from fairlead_gateway.worker.upstream.connection import ConnectionPool, UpstreamError


class EngineCallFailed(FairleadError):
    """Raised when no usable answer came; ``suspicious``: the engine should be left alone for a while.

    ``final``: the request is at fault, and no other engine would take it. ``died``: the engine had the request and broke off.
    ``word`` is ``why`` in one word of a closed list.
    """

    def __init__(
        self, reason: str, *, cause: str, is_suspicious: bool, is_final: bool = False, crashed: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.is_suspicious = is_suspicious
        self.is_final = is_final
        self.crashed = crashed


class _BufferedResponse:
    """Collects an answer; the ``Sink`` of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self.status = 0
        self.complete = False
        self.finished: asyncio.Future[UpstreamError | None] = loop.create_future()

    @property
    def content(self) -> bytes:
        """The body."""
        return b"".join(self._pieces)

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Only the status matters."""
        del fields
        self.status = status

    def on_body(self, pieces: list[bytes], complete: bool) -> None:
        """Keep, as far as the limit goes."""
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        self.complete = complete
        if self._size > self._limit:
            self._finish(UpstreamError("too long"))
        elif complete:
            self._finish(None)

    def on_error(self, error: UpstreamError) -> None:
        """No answer."""
        self._finish(error)

    def on_silence(self) -> float:
        """The time limit is the whole patience."""
        return 0.0

    def _finish(self, error: UpstreamError | None) -> None:
        if not self.finished.done():
            self.finished.set_result(error)


async def call_engine(
    pool: ConnectionPool, address: str, message: Sequence[bytes], seconds: float, limits: Limits
) -> bytes:
    """The body of a 200. Raises LegFailed; the connection is closed when the answer is not waited for."""
    try:
        async with asyncio.timeout(seconds):
            return await _exchange(pool, address, message, seconds, limits)
    except TimeoutError:
        raise EngineCallFailed(f"no answer within {seconds:g} s", cause="timeout", is_suspicious=True) from None
    except UpstreamError as error:
        word = error.cause.replace(" ", "-")
        raise EngineCallFailed(
            error.cause, cause=word, is_suspicious=True, crashed=error.cause in CRASH_CAUSES
        ) from None


async def _exchange(
    pool: ConnectionPool, address: str, message: Sequence[bytes], seconds: float, limits: Limits
) -> bytes:
    connection = pool.take_idle(address)
    while True:
        if connection is None:
            connection = await pool.connect(address)
        answer = _BufferedResponse(pool.loop, limits.response_buffer_bytes)
        connection.send_request(message, answer, seconds)
        try:
            broken = await answer.finished
        finally:
            if not answer.complete:
                connection.abort()
        if broken is not None and broken.is_stale:
            connection = None
            continue
        if broken is not None:
            raise broken
        if answer.status != 200:
            status = answer.status
            refused = 400 <= status < 500 and status != 429
            suspicious = status >= 500 and status != 503
            raise EngineCallFailed(
                f"status {status}", cause=f"status-{status}", is_suspicious=suspicious, is_final=refused
            )
        return answer.content
