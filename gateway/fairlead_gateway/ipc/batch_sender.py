"""Sends the items that a reporter collects: one batch, a moment after its first item."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec


class MessageSender(Protocol):
    """A sender of messages to the other process, as `channel.Channel`."""

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message; returns False if it was dropped."""
        ...


class RowBatch:
    """The rows of one reporter, sent as one message; drops new rows if too many wait.

    seconds: from the first row to the message.
    create_message: gets the rows, and the number of rows that were dropped before them.
    """

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        max_rows: int,
        create_message: Callable[[list[Any], int], msgspec.Struct],
    ) -> None:
        self._max_rows = max_rows
        self._create_message = create_message
        self._rows: list[Any] = []
        self._sender = BatchSender(sender, loop, seconds, self._take)
        self.flush = self._sender.flush

    def add(self, row: object) -> None:
        """Adds a row to the next message."""
        rows = self._rows
        if len(rows) >= self._max_rows:
            self._sender.dropped += 1
            return
        if not rows:
            self._sender.schedule()
        rows.append(row)

    def _take(self, dropped: int) -> tuple[msgspec.Struct | None, int]:
        rows, self._rows = self._rows, []
        return (self._create_message(rows, dropped), len(rows)) if rows or dropped else (None, 0)


class BatchSender:
    """The sender of one reporter's batches, with a timer and a count of dropped items.

    seconds: from the first item to the message.
    take: removes the collected items; gets the number of dropped ones, and returns the message and
        the number of items in it. The message is None if there is nothing to send.
    dropped: items lost since the last message that was sent.
    """

    def __init__(
        self,
        sender: MessageSender,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        take: Callable[[int], tuple[msgspec.Struct | None, int]],
    ) -> None:
        self._sender = sender
        self._loop = loop
        self._seconds = seconds
        self._take = take
        self._timer: asyncio.TimerHandle | None = None
        self.dropped = 0

    def schedule(self) -> None:
        """Sends a batch after `seconds`, unless one is due already."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self.flush)

    def hurry(self) -> None:
        """Sends a batch in the next iteration of the event loop."""
        self._cancel()
        self._timer = self._loop.call_later(0, self.flush)

    def flush(self) -> None:
        """Sends a batch now, if there are items; counts them as dropped if the sender drops it."""
        self._cancel()
        message, count = self._take(self.dropped)
        if message is None:
            return
        if self._sender.send(message):
            self.dropped = 0
        else:
            self.dropped += count

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
