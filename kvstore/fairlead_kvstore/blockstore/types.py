"""One slice as status and metrics show it."""

import msgspec

from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.truth.counts import EventCounters


class InstanceState(msgspec.Struct, frozen=True):
    """One slice as status and metrics show it. Seconds are monotonic times (``since``) and durations."""

    instance: str
    model_key: str
    epoch: int
    complete: bool
    reason: str
    since: float
    blocks: int
    orphans: int
    bytes: int
    block_size: int | None
    hybrid: bool
    vague: tuple[StorageTier, ...]
    evicted_age_seconds: float | None
    counts: EventCounters
