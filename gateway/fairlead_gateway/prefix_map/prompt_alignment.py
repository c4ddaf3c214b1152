"""One prompt in both chains: what links are learned from, and what of it is kept in Redis.

In Redis lie hashes and counts only: a prompt's byte blocks and token blocks under the installation's secrets, eight bytes each,
never its text and never a token. Nothing that is read there is believed unchecked.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fairlead_kvstore.redis.codec import SCHEMA, encode

ESTIMATE_MARGIN_SHARE: Final = 0.05
ESTIMATE_MARGIN_TOKENS: Final = 4.0
"""What a guess leaves out of a prefix's share of the tokens: a share of it, and the frame that templates put around every message."""


@dataclass(frozen=True, slots=True)
class PromptAlignment:
    """``hashes``: the prompt's byte blocks. ``owns``: its whole token blocks. ``depths``: for each byte block, how many token blocks
    lie wholly before its end as far as is known, some of them perhaps more than there are. ``block_size`` is in tokens."""

    hashes: Sequence[int]
    token_hashes: Sequence[int]
    depths: Sequence[int]
    block_size: int


def estimate_alignment(
    hashes: Sequence[int], ends: Sequence[int], token_hashes: Sequence[int], *, size: int, tokens: int, block_size: int
) -> PromptAlignment:
    """``hashes`` end at ``ends`` of its ``size`` bytes, ``owns`` are its whole blocks of ``block_size`` among ``tokens``."""
    depths = [_estimate_tokens(end, size, tokens) // block_size if size > 0 else 0 for end in ends]
    return PromptAlignment(hashes, token_hashes, depths, block_size)


def exact_alignment(
    hashes: Sequence[int], token_hashes: Sequence[int], token_ends: Sequence[int], *, block_size: int
) -> PromptAlignment:
    """``reaches``: how many tokens lie wholly before each byte block's end, where that is known exactly."""
    return PromptAlignment(hashes, token_hashes, [reach // block_size for reach in token_ends], block_size)


class _StoredAlignment(msgspec.Struct, frozen=True):
    """``secret`` tells installations apart; ``block_size`` in tokens; the rest are arrays of numbers, little-endian."""

    secret: bytes
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    hashes: bytes
    owns: bytes
    depths: bytes


_decoder = msgspec.msgpack.Decoder(_StoredAlignment)


def encode_alignment(alignment: PromptAlignment, *, secret: bytes) -> bytes:
    """A lesson as it is kept. ``secret`` is the print of the installation's."""
    depths = [min(depth, len(alignment.token_hashes)) for depth in alignment.depths]
    parts = array("Q", alignment.hashes), array("Q", alignment.token_hashes), array("I", depths)
    return encode(_StoredAlignment(secret, alignment.block_size, *(one.tobytes() for one in parts)))


def decode_alignment(data: bytes, *, secret: bytes, max_bytes: int) -> PromptAlignment | None:
    """None for what is damaged, too large, of another schema or under another secret."""
    if data[:1] != SCHEMA or len(data) > max_bytes:
        return None
    try:
        stored = _decoder.decode(data[1:])
    except (msgspec.DecodeError, RecursionError):
        return None
    hashes, token_hashes, depths = array("Q"), array("Q"), array("I")
    try:
        hashes.frombytes(stored.hashes)
        token_hashes.frombytes(stored.owns)
        depths.frombytes(stored.depths)
    except ValueError:
        return None
    if stored.secret != secret or not hashes or len(depths) != len(hashes) or 0 in hashes:
        return None
    return PromptAlignment(hashes, token_hashes, depths, stored.block_size)


def _estimate_tokens(end: int, size: int, tokens: int) -> int:
    """Tokens that surely lie before so many of the bytes, if they lie evenly."""
    return max(0, int(tokens * (end / size) * (1.0 - ESTIMATE_MARGIN_SHARE) - ESTIMATE_MARGIN_TOKENS))
