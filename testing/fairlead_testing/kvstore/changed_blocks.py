"""The blocks of a model's instances by changes that a test makes up."""

from collections.abc import Sequence

from fairlead_cli.index.loaded_index import LoadedIndex, MatchedBlocks
from fairlead_kvstore.blockstore.storage_tiers import is_shared_store


class ChangedBlocks(LoadedIndex):
    """An index with the reads of ``fairlead_kvstore.blockstore.store.ModelBlocks``.

    used: the blocks that were marked as used, by instance.
    """

    def __init__(self, *, block_size: int | None = None) -> None:
        super().__init__()
        self._block_size = block_size
        self.used: dict[str, list[int]] = {}

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an instance, or the shared store, has a block: a bit for each tier, 1 for
        the GPU; 0: nowhere.
        """
        blocks = self.shared if is_shared_store(instance) else self._blocks.get(instance, {})
        return blocks.get(block_hash, 0) & 7

    def block_size(self, instance: str) -> int | None:
        return self._block_size

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        self.used.setdefault(instance, []).extend(hashes)


def match_all(index: LoadedIndex, hashes: Sequence[int]) -> dict[str, MatchedBlocks]:
    """Returns the instances that have a chain's first block, and their depths; the deepest in the
    GPU come first.
    """
    found = {name: index.match(name, hashes) for name in index.instances()}
    return dict(
        sorted(((name, found[name]) for name in found if found[name][-1]), key=lambda item: item[1], reverse=True)
    )
