"""One prompt in both chains: what links are learned from, and what of it is kept in Redis.

In Redis lie hashes and counts only: a prompt's byte blocks and token blocks under the installation's secrets, eight bytes each,
never its text and never a token. Nothing that is read there is believed unchecked.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fairlead_kvstore.record import SCHEMA, encode

GUESS_SHARE: Final = 0.05
GUESS_TOKENS: Final = 4.0
"""What a guess leaves out of a prefix's share of the tokens: a share of it, and the frame that templates put around every message."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """``hashes``: the prompt's byte blocks. ``owns``: its whole token blocks. ``depths``: for each byte block, how many token blocks
    lie wholly before its end as far as is known, some of them perhaps more than there are. ``block_size`` is in tokens."""

    hashes: Sequence[int]
    owns: Sequence[int]
    depths: Sequence[int]
    block_size: int


def guessed(
    hashes: Sequence[int], ends: Sequence[int], owns: Sequence[int], *, size: int, tokens: int, block_size: int
) -> Lesson:
    """``hashes`` end at ``ends`` of its ``size`` bytes, ``owns`` are its whole blocks of ``block_size`` among ``tokens``."""
    depths = [_guess(end, size, tokens) // block_size if size > 0 else 0 for end in ends]
    return Lesson(hashes, owns, depths, block_size)


def counted(hashes: Sequence[int], owns: Sequence[int], reaches: Sequence[int], *, block_size: int) -> Lesson:
    """``reaches``: how many tokens lie wholly before each byte block's end, where that is known exactly."""
    return Lesson(hashes, owns, [reach // block_size for reach in reaches], block_size)


class _Kept(msgspec.Struct, frozen=True):
    """``secret`` tells installations apart; ``block_size`` in tokens; the rest are arrays of numbers, little-endian."""

    secret: bytes
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    hashes: bytes
    owns: bytes
    depths: bytes


_kept = msgspec.msgpack.Decoder(_Kept)


def packed(lesson: Lesson, *, secret: bytes) -> bytes:
    """A lesson as it is kept. ``secret`` is the print of the installation's."""
    depths = [min(depth, len(lesson.owns)) for depth in lesson.depths]
    parts = array("Q", lesson.hashes), array("Q", lesson.owns), array("I", depths)
    return encode(_Kept(secret, lesson.block_size, *(one.tobytes() for one in parts)))


def unpacked(data: bytes, *, secret: bytes, most_bytes: int) -> Lesson | None:
    """None for what is damaged, too large, of another schema or under another secret."""
    if data[:1] != SCHEMA or len(data) > most_bytes:
        return None
    try:
        kept = _kept.decode(data[1:])
    except (msgspec.DecodeError, RecursionError):
        return None
    hashes, owns, depths = array("Q"), array("Q"), array("I")
    try:
        hashes.frombytes(kept.hashes)
        owns.frombytes(kept.owns)
        depths.frombytes(kept.depths)
    except ValueError:
        return None
    if kept.secret != secret or not hashes or len(depths) != len(hashes) or 0 in hashes:
        return None
    return Lesson(hashes, owns, depths, kept.block_size)


def _guess(end: int, size: int, tokens: int) -> int:
    """Tokens that surely lie before so many of the bytes, if they lie evenly."""
    return max(0, int(tokens * (end / size) * (1.0 - GUESS_SHARE) - GUESS_TOKENS))
