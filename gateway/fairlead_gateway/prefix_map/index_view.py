"""The interfaces through which the prefix map reads a replica of the KV-cache index."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class CompletenessView(Protocol):
    """The completeness mark of an instance: complete or not, why, and since when."""

    @property
    def complete(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> float: ...


class IndexView(Protocol):
    """The interface of an index replica; `fairlead_kvstore.index.replica` implements it."""

    def holders(self, token_hash: int) -> dict[str, tuple[StorageTier, ...]]:
        """Returns the instances that have a block cached, with the tiers where they have it."""
        ...

    def completeness(self, instance: str) -> CompletenessView | None:
        """Returns the completeness mark of an instance; None for an unknown instance."""
        ...

    def instances(self) -> tuple[str, ...]:
        """Returns all instances whose KV events the index has received."""
        ...

    def holder_sets(self) -> Iterator[tuple[Mapping[str, tuple[StorageTier, ...]], int]]:
        """Yields sets of holders, each with its number of blocks. A set may come more than once."""
        ...

    def count_unique(self, hashes: Iterable[int]) -> dict[str, int]:
        """Returns, by instance, how many of these blocks no other instance has."""
        ...
