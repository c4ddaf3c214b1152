"""The limit of large bodies that wait to be checked, for each caller."""

from collections.abc import Iterator
from contextlib import contextmanager

from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import TooManyLargeBodies


class LargeBodyLimit:
    """The bytes of large bodies that wait to be checked, by caller.

    max_bytes: of one caller, all together; a single body is always accepted.

    Why: bodies are checked one after the other, so one caller could keep all others waiting.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes: dict[CallerKey, int] = {}

    @contextmanager
    def reserve(self, caller: CallerKey, size: int) -> Iterator[None]:
        """Counts a body of `size` bytes while the block runs. Raises TooManyLargeBodies."""
        before = self._bytes.get(caller, 0)
        if before and before + size > self._max_bytes:
            raise TooManyLargeBodies()
        self._bytes[caller] = before + size
        try:
            yield
        finally:
            left = self._bytes[caller] - size
            if left:
                self._bytes[caller] = left
            else:
                del self._bytes[caller]

    def count_callers(self) -> int:
        """Returns the number of callers with bodies that wait."""
        return len(self._bytes)
