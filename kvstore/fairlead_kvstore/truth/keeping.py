"""A slice is kept for the next indexer, and is again what was kept; see ``kept.py``."""

from typing import Final

from fairlead_kvstore.blockstore.block_table import TICK_SECONDS
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.lora_generations import LoraGenerations
from fairlead_kvstore.blockstore.snapshot import InstanceSnapshot, RowParts, restore_table, table_parts, table_snapshot
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.errors import SnapshotError

_PLAIN_FIELDS: Final = ("epoch", "block_size", "hybrid", "evicted_age_seconds", "group", "names_extras")
_TIME_FIELDS: Final = ("awaited_until", "last_clear")


def take_snapshot(item: InstanceBlocks, wall: float) -> tuple[InstanceSnapshot, RowParts]:
    """What another process needs to go on from here; the rows by the name of their part.

    ``wall`` is Unix time less monotonic time, in seconds.
    """
    parked = item.adapters.parked.items()
    tables = [
        table_snapshot(item.blocks),
        *(table_snapshot(blocks, content, name) for content, (name, blocks) in parked),
    ]
    numbered = enumerate((item.blocks, *item.adapters))
    rows = {name: data for number, blocks in numbered for name, data in table_parts(blocks, number)}
    vague = [int(tier) for tier in sorted(item.unknown_tiers)]
    kept = InstanceSnapshot(
        wall,
        *item.completeness.mark_after_resume(),
        tables,
        item.adapters.snapshot(),
        vague,
        doubt=item.completeness.doubt,
    )
    for name in (*_PLAIN_FIELDS, *_TIME_FIELDS):
        setattr(kept, name, getattr(item, name))
    return kept, rows


def restore_snapshot(
    item: InstanceBlocks, kept: InstanceSnapshot, rows: RowParts, wall: float, now: float, out: list[Change]
) -> None:
    """Be what was kept, as if the stream had broken off at ``now``. Raises KeptError, having changed nothing.

    The blocks are not told as changes: they are where the slice was kept.
    """
    later = kept.wall - wall
    shift = round(later / TICK_SECONDS)
    names = len(kept.adapters.names)
    tables = [restore_table(one, number, rows, names, shift) for number, one in enumerate(kept.tables)]
    if not tables:
        raise SnapshotError("nothing was kept", reason="rows")
    for name in _PLAIN_FIELDS:
        setattr(item, name, getattr(kept, name))
    for name in _TIME_FIELDS:
        then = getattr(kept, name)
        setattr(item, name, None if then is None else then + later)
    item.unknown_tiers = {StorageTier(tier) for tier in kept.vague if tier in (StorageTier.CPU, StorageTier.DISK)}
    item.blocks, *others = tables
    item.adapters = LoraGenerations(item.instance, item.blocks, item.limits.kv_adapter_versions)
    named = zip(kept.tables[1:], others, strict=True)
    item.adapters.restore(kept.adapters, {one.content: (one.name, blocks) for one, blocks in named})
    standing = (kept.complete, kept.reason, kept.since + later)
    item.completeness.restore(standing, item.adapters.doubt(), "the indexer was restarted", now, out)
