"""Comments in streams that are silent, so that no proxy or client in between takes silence for the end.

A comment goes out only between two whole events (nothing else is ever written to a stream), only after the head, and
not to a client that does not read what it has already.
"""

import asyncio

from fairlead_gateway.answer import Answer
from fairlead_gateway.reply import Reply

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """One stream's comments, from ``begin`` to ``end``."""

    __slots__ = ("_answer", "_handle", "_last", "_loop", "_reply", "_seconds")

    def __init__(self, reply: Reply, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._reply = reply
        self._seconds = seconds
        self._loop = loop
        self._answer: Answer | None = None
        self._last: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def begin(self, answer: Answer) -> None:
        """The stream has begun, or goes on with another engine's answer."""
        self._answer = answer
        self._last = answer.last_at
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """No more comments."""
        self._answer = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        answer, self._handle = self._answer, None
        if answer is None or self._reply.ended:
            return
        if answer.last_at == self._last and not answer.paused:
            self._reply.pieces([COMMENT])
        self._last = answer.last_at
        self._handle = self._loop.call_later(self._seconds, self._look)
