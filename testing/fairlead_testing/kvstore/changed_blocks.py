"""The blocks of a model's instances by changes that a test makes up."""

from collections.abc import Iterable, Sequence

from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.storage_tiers import is_shared_store


class ChangedBlocks:
    """Blocks with the reads of ``fairlead_kvstore.blockstore.store.ModelBlocks``.

    used: the blocks that were marked as used, by instance.
    """

    def __init__(self, *, block_size: int | None = None) -> None:
        self._block_size = block_size
        self._tiers: dict[str, dict[int, int]] = {}
        self._completeness: dict[str, tuple[bool, str, float]] = {}
        self.used: dict[str, list[int]] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies changes in their order."""
        for change in changes:
            if isinstance(change, BlocksStored | BlocksRemoved):
                tiers = self._tiers.setdefault(change.instance, {})
                for value in change.hashes:
                    bits = tiers.pop(value, 0) & ~(1 << change.tier)
                    if bits := bits | isinstance(change, BlocksStored) << change.tier:
                        tiers[value] = bits
            elif isinstance(change, CompletenessChanged):
                self._completeness[change.instance] = (change.complete, change.reason, change.since)
            elif isinstance(change, InstanceCleared | InstanceDetached):
                self._tiers.pop(change.instance, None)

    def instances(self) -> Sequence[str]:
        """Returns all known instances, without shared stores."""
        return [name for name in self._tiers | self._completeness if not is_shared_store(name)]

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an instance has a block: a bit for each tier."""
        return self._tiers.get(instance, {}).get(block_hash, 0)

    def is_shared(self, block_hash: int) -> bool:
        """Returns whether a shared store has a block."""
        return any(block_hash in tiers for name, tiers in self._tiers.items() if is_shared_store(name))

    def completeness(self, instance: str) -> tuple[bool, str, float] | None:
        """Returns the completeness of an instance; None for an unknown one."""
        return self._completeness.get(instance)

    def block_size(self, instance: str) -> int | None:
        """Returns the block size of all instances."""
        return self._block_size

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """Notes the blocks as used."""
        self.used.setdefault(instance, []).extend(hashes)

    def count_unique(self, instance: str, used_since: float, max_rows: int) -> tuple[int, int, int]:
        """Returns the number of blocks, none of which count as unique."""
        return len(self._tiers.get(instance, {})), 0, 0
