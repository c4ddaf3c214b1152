"""The replica of the KV-cache index, as the prefix map reads it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class CompletenessView(Protocol):
    """The completeness of an instance, as `fairlead_kvstore.index.replica` has it."""

    @property
    def complete(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> float: ...


class IndexView(Protocol):
    """The interface of an index replica; `fairlead_kvstore.index.replica` implements it."""

    def holders(self, token_hash: int) -> dict[str, tuple[StorageTier, ...]]:
        """Returns the instances that have one block, with their tiers."""
        ...

    def completeness(self, instance: str) -> CompletenessView | None:
        """Returns how complete the blocks of an instance are known."""
        ...

    def instances(self) -> tuple[str, ...]:
        """Returns all instances with reports."""
        ...

    def holder_sets(self) -> Iterator[tuple[Mapping[str, tuple[StorageTier, ...]], int]]:
        """Yields each different set of holders, with its number of blocks."""
        ...

    def count_unique(self, hashes: Iterable[int]) -> dict[str, int]:
        """Returns, by instance, how many of these blocks no other instance has."""
        ...
