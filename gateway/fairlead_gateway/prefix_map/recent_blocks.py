"""Recent blocks."""

from collections.abc import Iterable
from typing import Final

_GENERATIONS: Final = 2


class RecentBlocks:
    """Blocks of prompts that were sent lately: at least ``seconds`` are covered, at most twice as many. Beyond ``most`` blocks the
    older half goes sooner."""

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most = most // _GENERATIONS
        self._seconds = seconds
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._rotated_at = float("-inf")

    def add(self, owns: Iterable[int], now: float) -> None:
        """A prompt with these blocks was sent at ``now``, monotonic seconds."""
        self._rotate(now)
        self._now.update(owns)

    def blocks(self, now: float) -> set[int]:
        """Those that count at ``now``."""
        self._rotate(now)
        return self._now | self._before

    def clear(self) -> None:
        """Forget all: what prompts are linked to was wrong."""
        self._now, self._before = set(), set()

    def _rotate(self, now: float) -> None:
        if now - self._rotated_at >= _GENERATIONS * self._seconds:
            self._now = set()  # nothing of it is of the last ``seconds``
        elif now - self._rotated_at < self._seconds and len(self._now) < self._most:
            return
        self._before, self._now, self._rotated_at = self._now, set(), now
