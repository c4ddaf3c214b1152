"""The token blocks of recently sent prompts, within bounds of age and number."""

from collections.abc import Iterable
from typing import Final

_GENERATIONS: Final = 2


class RecentBlocks:
    """The blocks of prompts that were sent in the last `seconds`.

    Blocks up to twice as old may remain. Beyond `max_blocks`, the older half is dropped sooner.
    """

    def __init__(self, *, max_blocks: int, seconds: float) -> None:
        self._max_blocks = max_blocks // _GENERATIONS
        self._seconds = seconds
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._rotated_at = float("-inf")

    def add(self, owns: Iterable[int], now: float) -> None:
        """Adds the blocks of a prompt that was sent at `now`, in monotonic seconds."""
        self._rotate(now)
        self._now.update(owns)

    def blocks(self, now: float) -> set[int]:
        """Returns the recent blocks at `now`."""
        self._rotate(now)
        return self._now | self._before

    def clear(self) -> None:
        """Drops all blocks, because the links that led to them were wrong."""
        self._now, self._before = set(), set()

    def _rotate(self, now: float) -> None:
        if now - self._rotated_at >= _GENERATIONS * self._seconds:
            self._now = set()  # nothing of it is of the last ``seconds``
        elif now - self._rotated_at < self._seconds and len(self._now) < self._max_blocks:
            return
        self._before, self._now, self._rotated_at = self._now, set(), now
