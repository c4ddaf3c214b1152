"""Cache correction."""

from enum import StrEnum

import msgspec


class ForgetScope(StrEnum):
    """What of an instance a correction begins with."""

    NOTHING = ""
    CORRECTED = "told"
    ALL = "all"


class CacheCorrection(msgspec.Struct, array_like=True):
    """For one instance: first ``forget`` what corrections told, or all; then ``gone`` (byte blocks, 64-bit, native order), then
    ``held``, chains of byte blocks from the prompt's start."""

    instance: str
    forget: ForgetScope
    gone: bytes
    held: list[bytes]
