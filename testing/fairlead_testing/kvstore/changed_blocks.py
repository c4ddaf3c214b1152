"""The blocks of a model's instances by changes that a test makes up."""

from collections.abc import Sequence

from fairlead_kvstore.blockstore.storage_tiers import is_shared_store
from fairlead_kvstore.index.loaded_index import LoadedIndex


class ChangedBlocks(LoadedIndex):
    """An index with the reads of ``fairlead_kvstore.blockstore.store.ModelBlocks``.

    used: the blocks that were marked as used, by instance.
    """

    def __init__(self, *, block_size: int | None = None) -> None:
        super().__init__()
        self._block_size = block_size
        self.used: dict[str, list[int]] = {}

    def instances(self) -> tuple[str, ...]:
        """Returns all known instances, without shared stores."""
        return tuple(name for name in super().instances() if not is_shared_store(name))

    def block_size(self, instance: str) -> int | None:
        """Returns the block size of all instances."""
        return self._block_size

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """Notes the blocks as used."""
        self.used.setdefault(instance, []).extend(hashes)
