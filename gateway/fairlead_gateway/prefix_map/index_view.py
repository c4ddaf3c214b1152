"""Index view."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class CompletenessView(Protocol):
    """As ``index.mirror.Known``."""

    @property
    def complete(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> float: ...


class IndexView(Protocol):
    """What is asked of ``index.mirror.IndexMirror``."""

    def holders(self, token_hash: int) -> dict[str, tuple[StorageTier, ...]]:
        """Who holds one block, and where."""
        ...

    def completeness(self, instance: str) -> CompletenessView | None:
        """How sure it is what this instance holds."""
        ...

    def instances(self) -> tuple[str, ...]:
        """All that something was told of."""
        ...

    def holder_sets(self) -> Iterator[tuple[Mapping[str, tuple[StorageTier, ...]], int]]:
        """Every different set of holders, with how many blocks are held by just these."""
        ...

    def count_unique(self, hashes: Iterable[int]) -> dict[str, int]:
        """Of these blocks, how many are held by just one instance, by that instance."""
        ...
