"""One prompt as byte blocks and as token blocks: what links are learned from, and its form in
Redis.

Redis holds hashes and counts only: byte blocks and token blocks under the installation's secrets,
eight bytes each. It never holds text or tokens. What is read from it is validated.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fairlead_kvstore.redis.codec import SCHEMA, encode

ESTIMATE_MARGIN_SHARE: Final = 0.05
ESTIMATE_MARGIN_TOKENS: Final = 4.0
"""Margin of an estimate: a share of the tokens, and the frame that templates put around
messages.
"""


@dataclass(frozen=True, slots=True)
class PromptAlignment:
    """A prompt as byte blocks and token blocks.

    - hashes: the byte blocks.
    - token_hashes: the whole token blocks.
    - depths: for each byte block, how many token blocks lie wholly before its end, or an estimate.
    - block_size: in tokens.
    """

    hashes: Sequence[int]
    token_hashes: Sequence[int]
    depths: Sequence[int]
    block_size: int


def estimate_alignment(
    hashes: Sequence[int], ends: Sequence[int], token_hashes: Sequence[int], *, size: int, tokens: int, block_size: int
) -> PromptAlignment:
    """Returns the alignment of a prompt as estimated from its numbers of bytes and tokens.

    - ends: where `hashes` end in its `size` bytes.
    - tokens: the number of tokens, of which `token_hashes` are the whole blocks.
    """
    depths = [_estimate_tokens(end, size, tokens) // block_size if size > 0 else 0 for end in ends]
    return PromptAlignment(hashes, token_hashes, depths, block_size)


def exact_alignment(
    hashes: Sequence[int], token_hashes: Sequence[int], token_ends: Sequence[int], *, block_size: int
) -> PromptAlignment:
    """Returns the alignment of a prompt whose token boundaries in the text are known.

    token_ends: how many tokens lie wholly before the end of each byte block.
    """
    return PromptAlignment(hashes, token_hashes, [reach // block_size for reach in token_ends], block_size)


class _StoredAlignment(msgspec.Struct, frozen=True):
    """An alignment as stored; arrays are little-endian. `secret` identifies the installation's
    secret.
    """

    secret: bytes
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    hashes: bytes
    owns: bytes
    depths: bytes


_decoder = msgspec.msgpack.Decoder(_StoredAlignment)


def encode_alignment(alignment: PromptAlignment, *, secret: bytes) -> bytes:
    """Returns an alignment as bytes. `secret` is a fingerprint of the installation's secret."""
    depths = [min(depth, len(alignment.token_hashes)) for depth in alignment.depths]
    parts = array("Q", alignment.hashes), array("Q", alignment.token_hashes), array("I", depths)
    return encode(_StoredAlignment(secret, alignment.block_size, *(one.tobytes() for one in parts)))


def decode_alignment(data: bytes, *, secret: bytes, max_bytes: int) -> PromptAlignment | None:
    """Returns an alignment; None if it is damaged, too large, of another schema or secret."""
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
    """Returns the tokens before byte `end` if tokens are spread evenly, less a margin."""
    return max(0, int(tokens * (end / size) * (1.0 - ESTIMATE_MARGIN_SHARE) - ESTIMATE_MARGIN_TOKENS))
