"""Ids of requests: drawn by the gateway, unique, and not to be guessed by other clients.

Why: engines key their requests by id. Two live requests with one id have crashed engines, and a
client that knows the id of another request can disturb it.
"""

import os
from collections.abc import Callable
from typing import Final

_RANDOM_BYTES: Final = 8
_BATCH_BYTES: Final = 512 * _RANDOM_BYTES
_DIGITS: Final = 2 * _RANDOM_BYTES


class RequestIds:
    """The creator of ids: `req-`, eight hexadecimal digits of the process, 64 random bits.

    draw_bytes: returns that many bytes of cryptographic quality.
    """

    __slots__ = ("_begin", "_digits", "_draw_bytes", "_position")

    def __init__(self, draw_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._draw_bytes = draw_bytes
        self._begin = f"req-{draw_bytes(4).hex()}-"
        self._digits = ""  # drawn for many ids at once: a system call costs more than an id
        self._position = 0

    def next(self) -> str:
        """Returns the next id."""
        start = self._position
        if start >= len(self._digits):
            self._digits, start = self._draw_bytes(_BATCH_BYTES).hex(), 0
        end = self._position = start + _DIGITS
        return self._begin + self._digits[start:end]
