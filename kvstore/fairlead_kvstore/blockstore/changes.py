"""Changes of a block store, in order, for the consumers that keep a copy: Redis, a gateway, a test.

Blocks are block hashes (``block_hash.py``). ``BlocksStored`` and ``BlocksRemoved`` report the first
and the last copy only: a block with two copies is stored once. Applying a change again does no
harm. Blocks that are stored in succession, or removed, are one change.
"""

import msgspec

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class BlocksStored(msgspec.Struct, gc=False):
    """Blocks that are now in ``tier``, in the order of their events."""

    instance: str
    tier: StorageTier
    hashes: list[int]


class BlocksRemoved(msgspec.Struct, gc=False):
    """Blocks that are no longer in ``tier``, in any order."""

    instance: str
    tier: StorageTier
    hashes: list[int]


class InstanceCleared(msgspec.Struct, frozen=True, gc=False):
    """The removal of all blocks of an instance, in all tiers. ``epoch`` is the one that begins."""

    instance: str
    epoch: int
    reason: str


class InstanceDetached(msgspec.Struct, frozen=True, gc=False):
    """The end of an instance, which is no longer read, and of its completeness mark.

    ``InstanceCleared`` precedes it.
    """

    instance: str


class CompletenessChanged(msgspec.Struct, frozen=True, gc=False):
    """A new completeness mark: whether all blocks are known, and if not, why and since when
    (monotonic seconds).
    """

    instance: str
    complete: bool
    reason: str
    since: float


Change = BlocksStored | BlocksRemoved | InstanceCleared | InstanceDetached | CompletenessChanged
