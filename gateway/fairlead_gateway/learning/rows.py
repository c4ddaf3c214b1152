"""What a worker tells the helper of its requests, so that it can learn from them: when each was sent, first answered and over.

The request's way only puts a few numbers aside; they go out together a second later. Times are those of the machine's monotonic
clock, so the helper can put the rows of all workers in order.
"""

import asyncio
from enum import IntEnum
from typing import Protocol

import msgspec

from fairlead.limits import Limits


class Kind(IntEnum):
    """What a row tells."""

    SENT = 0
    FIRST = 1
    DONE = 2
    GONE = 3


class Row(msgspec.Struct, array_like=True, gc=False):
    """``tokens`` and ``cached``: of the prompt, as expected (SENT) or as the engine told (DONE; negative: it did not); ``output``: of
    the answer, negative where it is not known. ``instance`` is empty but for SENT."""

    kind: int
    at: float
    request: str
    instance: str = ""
    tokens: float = 0.0
    cached: float = -1.0
    output: float = -1.0


class Rows(msgspec.Struct, tag=True):
    """``dropped`` did not fit."""

    rows: list[Row]
    dropped: int


class Sink(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class RowTeller:
    """One worker's end."""

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sink = sink
        self._loop = loop
        self._most = limits.learn_rows
        self._seconds = limits.learn_tell_seconds
        self._rows: list[Row] = []
        self._dropped = 0

    def sent(self, request: str, instance: str, now: float, tokens: float, cached: float) -> None:
        """A prompt of ``tokens`` was sent there, of which ``cached`` should be found."""
        self._add(Row(Kind.SENT, now, request, instance, tokens, cached))

    def first_token(self, request: str, now: float) -> None:
        """The first token of a stream came."""
        self._add(Row(Kind.FIRST, now, request))

    def done(self, request: str, now: float, cached: int | None, output: int | None) -> None:
        """The answer is complete."""
        self._add(
            Row(
                Kind.DONE,
                now,
                request,
                cached=-1.0 if cached is None else float(cached),
                output=-1.0 if output is None else float(output),
            )
        )

    def gone(self, request: str, now: float) -> None:
        """It failed there, or its client left."""
        self._add(Row(Kind.GONE, now, request))

    def _add(self, row: Row) -> None:
        if len(self._rows) >= self._most:
            self._dropped += 1
            return
        if not self._rows:
            self._loop.call_later(self._seconds, self._flush)
        self._rows.append(row)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        dropped, self._dropped = self._dropped, 0
        if not self._sink.send(Rows(rows, dropped)):
            self._dropped += dropped + len(rows)
