"""A correction of a worker's prefix index: a message, so the module is not compiled."""

from enum import StrEnum

import msgspec


class ForgetScope(StrEnum):
    """The part of an instance that a correction removes first."""

    NOTHING = ""
    CORRECTED = "told"
    ALL = "all"


class CacheCorrection(msgspec.Struct, array_like=True):
    """A correction for one instance, applied in this order.

    - forget: first drop what earlier corrections reported, or all.
    - removed: byte blocks that are not cached, 64-bit in native order.
    - cached: chains of byte blocks from the start of a prompt that are cached.
    """

    instance: str
    forget: ForgetScope
    removed: bytes
    cached: list[bytes]
