"""What a mirror of the index answers."""

import msgspec


class InstanceMatch(msgspec.Struct, frozen=True, gc=False):
    """``blocks`` from the chain's start that the instance holds, by ``Tier``: in the GPU, up to CPU, up to disk, and with hints."""

    instance: str
    blocks: tuple[int, int, int, int]


class KnownCompleteness(msgspec.Struct, frozen=True, gc=False):
    """Whether all of an instance is known, and if not, why and since when (monotonic seconds of this process)."""

    complete: bool
    reason: str
    since: float
