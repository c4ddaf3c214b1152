"""Ids for requests whose clients send none: unique per process, and counted up."""

import secrets
from typing import Final

_LOW: Final = [f"{number:02x}" for number in range(256)]


class RequestIds:
    """The creator of ids: `req-`, eight hexadecimal digits random per process, a number from 1."""

    __slots__ = ("_begin", "_count", "_stem")

    def __init__(self) -> None:
        self._begin = f"req-{secrets.token_hex(4)}-"
        self._count = 0
        self._stem = ""  # without the last two digits: looking those up costs a tenth of formatting

    def next(self) -> str:
        """Returns the next id."""
        count = self._count = self._count + 1
        if count < 256:
            return f"{self._begin}{count:x}"
        low = count & 255
        if low == 0 or not self._stem:
            self._stem = f"{self._begin}{count >> 8:x}"
        return self._stem + _LOW[low]
