"""How much each instance holds, and how much of it nobody else does. Pure.

The blocks that only one instance has are what is lost when it goes: whoever scales a model down takes the instance that has the
fewest of them, all else being equal. A block in two tiers of one instance counts once there.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class BlockCounts(msgspec.Struct):
    """Different blocks of one instance: by tier, in any tier, and ``unique`` ones that no other instance holds in any tier."""

    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    blocks: int = 0
    unique: int = 0


class HolderSource(Protocol):
    """What is asked of ``index.mirror.IndexMirror``."""

    def instances(self) -> tuple[str, ...]:
        """All that something was told of."""
        ...

    def holder_sets(self) -> Iterator[tuple[Mapping[str, tuple[StorageTier, ...]], int]]:
        """Every different set of holders, with how many blocks are held by just these."""
        ...


def count_blocks(source: HolderSource) -> dict[str, BlockCounts]:
    """Of every instance that the mirror was told of; one look at each block, some 50 ns."""
    found = {name: BlockCounts() for name in source.instances()}
    for holders, blocks in source.holder_sets():
        for name, tiers in holders.items():
            one = found[name]
            one.blocks += blocks
            one.gpu += blocks * (StorageTier.GPU in tiers)
            one.cpu += blocks * (StorageTier.CPU in tiers)
            one.disk += blocks * (StorageTier.DISK in tiers)
            one.unique += blocks * (len(holders) == 1)
    return found
