"""Names for requests whose clients give them none: different in every process, and one after the
other in each.
"""

import secrets
from typing import Final

_LOW: Final = [f"{number:02x}" for number in range(256)]


class RequestIds:
    """``req-`` with eight hexadecimal digits that are drawn once, and a number that counts up from
    1.
    """

    __slots__ = ("_begin", "_count", "_stem")

    def __init__(self) -> None:
        self._begin = f"req-{secrets.token_hex(4)}-"
        self._count = 0
        self._stem = ""  # all but the number's last two digits, which are looked up: formatting costs ten times as much

    def next(self) -> str:
        """One more."""
        count = self._count = self._count + 1
        if count < 256:
            return f"{self._begin}{count:x}"
        low = count & 255
        if low == 0 or not self._stem:
            self._stem = f"{self._begin}{count >> 8:x}"
        return self._stem + _LOW[low]
