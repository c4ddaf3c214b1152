"""What a batch of events changed, in order: values that whoever keeps a copy (Redis, a mirror, a test) applies one by one.

Blocks are own hashes (``identity.py``). ``Stored`` and ``Removed`` speak of the first and the last copy only: a block that is
there twice is stored once. Applying a change again does no harm.
"""

import msgspec

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class BlocksStored(msgspec.Struct, gc=False):
    """``hashes`` follow one another, the first after ``parent`` (the chain's root, or a block), and are now in ``tier``."""

    instance: str
    tier: StorageTier
    parent: int
    hashes: list[int]


class BlocksRemoved(msgspec.Struct, gc=False):
    """``hashes``, in no order of a chain, are no longer in ``tier``."""

    instance: str
    tier: StorageTier
    hashes: list[int]


class InstanceCleared(msgspec.Struct, frozen=True, gc=False):
    """Nothing of this instance counts any more, in any tier. ``epoch`` is of what comes next."""

    instance: str
    epoch: int
    reason: str


class InstanceDetached(msgspec.Struct, frozen=True, gc=False):
    """The instance is not read any more: after its ``Cleared``, what was marked of it is of no interest either."""

    instance: str


class CompletenessChanged(msgspec.Struct, frozen=True, gc=False):
    """Whether the instance's slice is all that it holds, and if not, why and since when (monotonic seconds)."""

    instance: str
    complete: bool
    reason: str
    since: float


class HintsAdded(msgspec.Struct, gc=False):
    """``hashes`` of a model were written to a store that its instances share; forget them at ``until`` (monotonic seconds)."""

    model_key: str
    hashes: list[int]
    until: float


class HintsExpired(msgspec.Struct, gc=False):
    """These hints ran out, or had to go."""

    model_key: str
    hashes: list[int]


Change = (
    BlocksStored | BlocksRemoved | InstanceCleared | InstanceDetached | CompletenessChanged | HintsAdded | HintsExpired
)
