"""Who is read next: engines in turn, each for its share, so that one that floods cannot keep the others waiting.

This is deficit round robin (Shreedhar and Varghese, 1995), with bytes as the currency, since what a batch costs grows with its bytes.
Whoever has something to read stands in a ring. At its turn it gets a quantum and may read until it is spent; a batch larger
than what was left puts it into debt, which its next turns pay off first. So in the long run each gets the same number of
bytes, whatever their sizes, and what is quiet owes nothing. After every turn's worth of bytes the event loop is given back:
timers, HTTP and writes to Redis must not wait for the end of a flood either.
"""

from collections import deque
from typing import Protocol

from fairlead_kvstore.reader.timers import Loop

MESSAGE_BYTES = 256
"""What a message costs besides its bytes."""


class Source(Protocol):
    """Something that is read in turns."""

    def read(self, most: int) -> tuple[int, bool]:
        """Read messages of about ``most`` bytes: what they cost, and whether there may be more. Must not raise."""
        ...


class Turns:
    """The ring. ``quantum``: bytes of one turn; ``whole``: bytes after which the loop is given back."""

    def __init__(self, loop: Loop, quantum: int, whole: int) -> None:
        self._loop = loop
        self._quantum = quantum
        self._whole = whole
        self._ring: deque[Source] = deque()
        self._left: dict[Source, int] = {}
        self._due = False

    def __len__(self) -> int:
        """How many have something to read."""
        return len(self._left)

    def ready(self, source: Source) -> None:
        """``source`` has something to read; telling it again does no harm."""
        if source not in self._left:
            self._left[source] = 0
            self._ring.append(source)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def gone(self, source: Source) -> None:
        """It is closed."""
        if self._left.pop(source, None) is not None:
            self._ring.remove(source)

    def _turn(self) -> None:
        self._due = False
        spent = 0
        try:
            while self._ring and spent < self._whole:
                spent += self._one(self._ring.popleft())
        finally:
            if self._ring and not self._due:
                self._due = True
                self._loop.call_soon(self._turn)

    def _one(self, source: Source) -> int:
        """One turn of one source; what it cost."""
        self._ring.append(source)  # before it is read, since reading may close it
        budget = self._left[source] + self._quantum
        if budget <= 0:  # it still pays for a large batch
            self._left[source] = budget
            return MESSAGE_BYTES
        used, more = source.read(budget)
        if source in self._left:
            if more:
                self._left[source] = budget - used
            else:
                del self._left[source]
                self._ring.remove(source)
        return used
