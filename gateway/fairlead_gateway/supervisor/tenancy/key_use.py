"""When API keys were used last, to the minute, since the start of the gateway."""

from collections.abc import Callable, Iterable
from typing import Final

_MINUTE: Final = 60.0
_MAX_KEYS: Final = 200_000
"""Keys that are remembered, also those that are gone; then those that were used first are not."""


class KeyUseLog:
    """The last use of each API key, by digest.

    wall: returns Unix seconds.
    started_at: since when uses are counted.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._used_at: dict[bytes, float] = {}
        self.started_at = wall()

    def add(self, digests: Iterable[bytes]) -> None:
        """Notes that keys were used in this minute."""
        minute = self._wall() // _MINUTE * _MINUTE
        for digest in digests:
            self._used_at.pop(digest, None)  # the last used come last
            self._used_at[digest] = minute
        while len(self._used_at) > _MAX_KEYS:
            del self._used_at[next(iter(self._used_at))]

    def used_at(self, digest: bytes) -> float | None:
        """Returns the minute of the last use in Unix seconds; None if there was none."""
        return self._used_at.get(digest)
