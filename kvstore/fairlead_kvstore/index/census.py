"""How much each instance holds, and how much of it nobody else does. Pure.

The blocks that only one instance has are what is lost when it goes: whoever scales a model down takes the instance that has the
fewest of them, all else being equal. A block in two tiers of one instance counts once there.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from fairlead_kvstore.truth.tiers import Tier


class Census(msgspec.Struct):
    """Different blocks of one instance: by tier, in any tier, and ``unique`` ones that no other instance holds in any tier."""

    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    blocks: int = 0
    unique: int = 0


class Counted(Protocol):
    """What is asked of ``index.mirror.IndexMirror``."""

    def instances(self) -> tuple[str, ...]:
        """All that something was told of."""
        ...

    def sets(self) -> Iterator[tuple[Mapping[str, tuple[Tier, ...]], int]]:
        """Every different set of holders, with how many blocks are held by just these."""
        ...


def census(mirror: Counted) -> dict[str, Census]:
    """Of every instance that the mirror was told of; one look at each block, some 50 ns."""
    found = {name: Census() for name in mirror.instances()}
    for holders, blocks in mirror.sets():
        for name, tiers in holders.items():
            one = found[name]
            one.blocks += blocks
            one.gpu += blocks * (Tier.GPU in tiers)
            one.cpu += blocks * (Tier.CPU in tiers)
            one.disk += blocks * (Tier.DISK in tiers)
            one.unique += blocks * (len(holders) == 1)
    return found
