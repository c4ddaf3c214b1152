"""The results of an index replica, as msgspec structs.

Why: compiled modules cannot contain structs, so these are apart from ``replica.py``.
"""

import msgspec


class InstanceMatch(msgspec.Struct, frozen=True, gc=False):
    """The match of a chain at one instance.

    blocks: cached blocks from the chain's start: in the GPU, up to CPU, up to disk, and with hints.
    """

    instance: str
    blocks: tuple[int, int, int, int]


class KnownCompleteness(msgspec.Struct, frozen=True, gc=False):
    """The completeness of an instance: complete or not, and if not, why and since when (monotonic
    seconds).
    """

    complete: bool
    reason: str
    since: float
