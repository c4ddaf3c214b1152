"""One question to an engine whose whole answer only the gateway reads, within one time limit."""

import asyncio
from collections.abc import Sequence

from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead_gateway.retry import DIED
from fairlead_gateway.upstream import Broken, Pool


class LegFailed(FairleadError):
    """Raised when no usable answer came; ``suspicious``: the engine should be left alone for a while.

    ``final``: the request is at fault, and no other engine would take it. ``died``: the engine had the request and broke off.
    ``word`` is ``why`` in one word of a closed list.
    """

    def __init__(self, why: str, *, word: str, suspicious: bool, final: bool = False, died: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.word = word
        self.suspicious = suspicious
        self.final = final
        self.died = died


class _Whole:
    """Collects an answer; the ``Sink`` of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self.status = 0
        self.complete = False
        self.done: asyncio.Future[Broken | None] = loop.create_future()

    @property
    def content(self) -> bytes:
        """The body."""
        return b"".join(self._pieces)

    def head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Only the status matters."""
        del fields
        self.status = status

    def body(self, pieces: list[bytes], complete: bool) -> None:
        """Keep, as far as the limit goes."""
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        self.complete = complete
        if self._size > self._limit:
            self._end(Broken("too long"))
        elif complete:
            self._end(None)

    def broken(self, error: Broken) -> None:
        """No answer."""
        self._end(error)

    def silent(self) -> float:
        """The time limit is the whole patience."""
        return 0.0

    def _end(self, error: Broken | None) -> None:
        if not self.done.done():
            self.done.set_result(error)


async def leg(pool: Pool, address: str, message: Sequence[bytes], seconds: float, limits: Limits) -> bytes:
    """The body of a 200. Raises LegFailed; the connection is closed when the answer is not waited for."""
    try:
        async with asyncio.timeout(seconds):
            return await _asked(pool, address, message, seconds, limits)
    except TimeoutError:
        raise LegFailed(f"no answer within {seconds:g} s", word="timeout", suspicious=True) from None
    except Broken as error:
        word = error.why.replace(" ", "-")
        raise LegFailed(error.why, word=word, suspicious=True, died=error.why in DIED) from None


async def _asked(pool: Pool, address: str, message: Sequence[bytes], seconds: float, limits: Limits) -> bytes:
    connection = pool.idle(address)
    while True:
        if connection is None:
            connection = await pool.connect(address)
        answer = _Whole(pool.loop, limits.answer_held_bytes)
        connection.ask(message, answer, seconds)
        try:
            broken = await answer.done
        finally:
            if not answer.complete:
                connection.abort()
        if broken is not None and broken.stale:
            connection = None
            continue
        if broken is not None:
            raise broken
        if answer.status != 200:
            status = answer.status
            refused = 400 <= status < 500 and status != 429
            suspicious = status >= 500 and status != 503
            raise LegFailed(f"status {status}", word=f"status-{status}", suspicious=suspicious, final=refused)
        return answer.content
