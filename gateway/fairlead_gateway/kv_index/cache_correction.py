"""A correction of a worker's prefix index: a message, so the module is not compiled."""

from enum import StrEnum

import msgspec


class ForgetScope(StrEnum):
    """The cached blocks of an instance that a correction drops before it is applied."""

    NOTHING = ""
    CORRECTED = "told"
    ALL = "all"


class CacheCorrection(msgspec.Struct, array_like=True):
    """A correction for one instance, applied in this order.

    - forget: the blocks to drop first: none, those of earlier corrections, or all.
    - removed: byte blocks that are not cached, 64-bit in native order.
    - cached: chains of byte blocks from the start of a prompt that are cached.
    - tier: both are about GPU memory (0), or CPU memory too (1), or the disk too (2).

    The store that all instances reach is an instance without a name.
    """

    instance: str
    forget: ForgetScope
    removed: bytes
    cached: list[bytes]
    tier: int = 0
