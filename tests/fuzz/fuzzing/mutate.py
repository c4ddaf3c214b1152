"""Inputs that are almost valid: rearranged pieces of known inputs, with a few bytes changed.

The seed decides every input. An input with a new kind of result joins the known ones, which leads
the mutations deeper than chance would.
"""

import random
import re
from collections.abc import Callable, Sequence

MOST_BYTES = 4_096
_USUAL_BYTES = 900
_KEPT = 1_024
_SWAPS = 16
_INTERESTING = (
    b"0",
    b"1",
    b"-1",
    b"00",
    b"7f",
    b"ff",
    b"65536",
    b"2147483648",
    b"9223372036854775808",
    b"1e400",
    b"99999999999",
)
_DIGITS = re.compile(rb"[0-9]+")


class Mutator:
    """Makes inputs from known ones.

    pieces: matches a word of the grammar.
    grow: writes an input that the grammar accepts.
    """

    def __init__(
        self,
        seed: str,
        known: Sequence[bytes],
        words: Sequence[bytes],
        pieces: re.Pattern[bytes],
        grow: Callable[[Callable[[], float]], bytes] | None = None,
    ) -> None:
        self._random = random.Random(seed).random
        self._grow = grow
        self._pieces = pieces
        self._words = words
        self._seeds = [self._cut(text) for text in known]
        self._kept: list[list[bytes]] = []

    def keep(self, data: bytes) -> None:
        """Adds an input whose result was of a new kind."""
        if len(self._kept) < _KEPT:
            self._kept.append(self._cut(data))
        else:
            self._kept[int(self._random() * _KEPT)] = self._cut(data)

    def next(self) -> bytes:
        """Returns another input."""
        draw = self._random
        if self._grow is not None and draw() < 0.4:
            data = self._grow(draw)
            return data if draw() < 0.6 else self._bytes(data)
        parts = list(self._one())
        for _ in range(int(draw() * draw() * 6)):
            self._rearrange(parts)
        data = b"".join(parts)
        if len(data) > _USUAL_BYTES and draw() < 0.98:
            data = data[:_USUAL_BYTES] if draw() < 0.8 else data[-_USUAL_BYTES:]
        data = data[:MOST_BYTES]
        for _ in range(int(draw() * draw() * 5)):
            data = self._bytes(data)
        return data

    def _cut(self, data: bytes) -> list[bytes]:
        return self._pieces.findall(data) or [data]

    def _one(self) -> list[bytes]:
        source = self._kept if self._kept and self._random() < 0.6 else self._seeds
        return source[int(self._random() * len(source))]

    def _rearrange(self, parts: list[bytes]) -> None:
        """Changes words: omits, doubles, swaps, replaces, inserts, crosses with another input."""
        draw = self._random
        size = len(parts)
        at = int(draw() * size) if size else 0
        what = int(draw() * 8)
        if what == 0 and size:
            del parts[at : at + 1 + int(draw() * draw() * 6)]
        elif what == 1 and size:
            parts[at:at] = parts[at : at + 1 + int(draw() * draw() * _SWAPS)] * (1 + int(draw() * draw() * 4))
        elif what == 2 and size:
            other = int(draw() * size)
            parts[at], parts[other] = parts[other], parts[at]
        elif what in (3, 4):
            parts[at : at + (what == 3)] = [self._words[int(draw() * len(self._words))]]
        elif what == 5:
            other_parts = self._one()
            begin = int(draw() * len(other_parts))
            parts[at:at] = other_parts[begin : begin + 1 + int(draw() * _SWAPS)]
        elif what == 6:
            other_parts = self._one()
            parts[at:] = other_parts[int(draw() * len(other_parts)) :]
        elif size:
            del parts[at:]

    def _bytes(self, data: bytes) -> bytes:
        """Changes bytes, whatever they mean."""
        draw = self._random
        at = int(draw() * (len(data) + 1))
        what = int(draw() * 7)
        if what == 0:
            return data[:at] + bytes((int(draw() * 256),)) + data[at + 1 :]
        if what == 1:
            return data[:at] + data[at + 1 + int(draw() * draw() * 16) :]
        if what == 2:
            return data[:at] + self._words[int(draw() * len(self._words))] + data[at:]
        if what == 3:
            return data[:at] + data[at : at + 1 + int(draw() * 16)] * (1 + int(draw() * 3)) + data[at:]
        if what == 4:
            digits = _DIGITS.search(data, at)
            if digits is None:
                return data
            return data[: digits.start()] + _INTERESTING[int(draw() * len(_INTERESTING))] + data[digits.end() :]
        if what == 5 and data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes((data[at] ^ (1 << int(draw() * 8)),)) + data[at + 1 :]
        return data[:at]
