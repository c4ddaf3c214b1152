"""What an indexer leaves of a slice, so that the next one goes on from it: plain values and columns of rows.

A new indexer could learn everything anew from the engines' replays, but these reach back some thousand batches only, and an engine
that has run for a day is full of blocks from before. So a slice is *kept*: its rows as columns of bytes in row order, and what
little else it knows. Rows stay where they are, so a part of the table (4,096 rows) that nobody touched gives the same bytes
again and need not be written again. What mirrors need, own hashes and copies, is apart from what only an indexer needs.

    <table>.m<part>     own hashes (8 bytes each), then counts (4)                                       12 bytes a row
    <table>.h<part>     handles (8), parents (8), ticks (4), depths (4), adapters (2), each as a column    26 bytes a row

Table 0 is the main one, the others are those of adapters that are not loaded now. A row without copies is empty. Numbers are
little-endian.

Times are those of the process that kept; ``wall`` is its Unix time less its monotonic one, which is how the next process translates
them. Blocks that wait for their parent are *not* kept: they have token ids, which do not belong into Redis. They are missed until
the engine stores them again, which is a miss and never a ghost.
"""

import sys
from array import array
from collections.abc import Iterator
from typing import Final

from fairlead_kvstore.blockstore.block_table import COLUMNS, TICK_SECONDS, BlockTable
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.lora_generations import LoraGenerations
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.types import InstanceSnapshot, TableSnapshot
from fairlead_kvstore.errors import SnapshotError

ROWS_PER_PART: Final = 4_096
"""Rows of one part."""
_REPLICA_COLUMNS: Final = ("owns", "counts")
_INDEXER_COLUMNS: Final = ("handles", "parents", "ticks", "depths", "adapters")
_MAX_ROWS: Final = 1 << 26
_IS_BIG_ENDIAN: Final = sys.byteorder == "big"

RowParts = dict[str, bytes]
"""Columns of rows by the name of their part."""


def table_snapshot(blocks: BlockTable, content: int = 0, name: str = "") -> TableSnapshot:
    """What is to be known of a table beside its rows."""
    return TableSnapshot(len(blocks.handles), blocks.twin_leads(), content, name)


def table_parts(blocks: BlockTable, table: int) -> Iterator[tuple[str, bytes]]:
    """The rows of a table, by name of the part. Every row, the empty ones too, so that rows stay where they are."""
    rows = len(blocks.handles)
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        stop = min(rows, start + ROWS_PER_PART)
        for letter, names in (("m", _REPLICA_COLUMNS), ("h", _INDEXER_COLUMNS)):
            data = b"".join(_bytes(getattr(blocks, name)[start:stop]) for name in names)
            yield f"{table}.{letter}{number}", data


def decode_replica_part(data: bytes) -> "tuple[array[int], array[int]]":
    """Own hashes and counts of one part. Raises KeptError when it is none."""
    found = _columns(data, _REPLICA_COLUMNS)
    return found[0], found[1]


def decode_ticks(data: bytes) -> "array[int]":
    """When each row of a part of the other kind was stored or used, see ``Blocks``. Raises KeptError when it is none."""
    return _columns(data, _INDEXER_COLUMNS)[_INDEXER_COLUMNS.index("ticks")]


def restore_table(kept: TableSnapshot, number: int, data: RowParts, adapters: int, shift: int) -> BlockTable:
    """The table again, its ticks moved by ``shift``. Raises KeptError for what does not hold together."""
    if not 0 < kept.rows <= _MAX_ROWS:
        raise SnapshotError(f"table {number} has {kept.rows} rows", reason="rows")
    columns = {name: array(COLUMNS[name]) for name in (*_REPLICA_COLUMNS, *_INDEXER_COLUMNS)}
    for part in range(-(-kept.rows // ROWS_PER_PART)):
        for letter, names in (("m", _REPLICA_COLUMNS), ("h", _INDEXER_COLUMNS)):
            there = data.get(f"{number}.{letter}{part}")
            if there is None:
                raise SnapshotError(f"part {letter}{part} of table {number} is missing", reason="missing")
            for name, column in zip(names, _columns(there, names), strict=True):
                columns[name] += column
    if any(len(column) != kept.rows for column in columns.values()):
        raise SnapshotError(f"the columns of table {number} are not as long as its rows", reason="rows")
    if shift:
        columns["ticks"] = array(COLUMNS["ticks"], [max(0, tick + shift) for tick in columns["ticks"]])
    if max(columns["adapters"]) > adapters:
        raise SnapshotError(f"table {number} has rows of an adapter without a name", reason="adapters")
    blocks = BlockTable()
    if not blocks.load_rows(columns, kept.leads):
        raise SnapshotError(f"two rows of table {number} have the same name", reason="twice")
    return blocks


def _columns(data: bytes, names: tuple[str, ...]) -> "list[array[int]]":
    sizes = [array(COLUMNS[name]).itemsize for name in names]
    count, rest = divmod(len(data), sum(sizes))
    if rest or count > ROWS_PER_PART:
        raise SnapshotError(f"{len(data)} bytes are no rows of {sum(sizes)} bytes", reason="shape")
    found, at = [], 0
    for name, size in zip(names, sizes, strict=True):
        column = array(COLUMNS[name])
        column.frombytes(data[at : at + size * count])
        if _IS_BIG_ENDIAN:
            column.byteswap()
        found.append(column)
        at += size * count
    return found


def _bytes(column: "array[int]") -> bytes:
    if _IS_BIG_ENDIAN:
        column.byteswap()  # a slice is a copy
    return column.tobytes()


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
