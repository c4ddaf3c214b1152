"""Snapshots of an instance's blocks, from which the next indexer continues: plain values and
columns of rows.

Why: replays reach back some thousand batches only, and an engine that has run for a day is full of
older blocks. So a new indexer cannot rebuild its state from them. A snapshot holds the rows as
columns of bytes in row order, and the few other values. Rows keep their number, so an unchanged
part of the table (4,096 rows) has the same bytes and is not written again. Block hashes and copies
are apart from the columns that change with each use.

    0.m<part>     block hashes (8 bytes each), then counts (4)                  12 B a row
    0.h<part>     handles (8), parents (8), ticks (4), depths (4), adapters (2)  26 B a row

A row without copies is empty. Numbers are little-endian.

Times are those of the process that took the snapshot. ``wall`` is its Unix time minus its monotonic
time, by which the next process converts them. Orphans are left out: they have token ids, which must
not be stored in Redis. They are missed until the engine stores them again, which costs cache hits
and never leaves a ghost.
"""

import sys
from array import array
from collections.abc import Generator
from typing import Final

from fairlead_kvstore.blockstore.block_table import COLUMNS, TICK_SECONDS, BlockTable
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.types import InstanceSnapshot, TableSnapshot
from fairlead_kvstore.errors import SnapshotError

ROWS_PER_PART: Final = 4_096
"""Rows of one part."""
_COLUMNS_BY_LETTER: Final = (
    ("m", ("block_hashes", "counts")),
    ("h", ("handles", "parents", "ticks", "depths", "adapters")),
)
_MAX_ROWS: Final = 1 << 26
_MAX_TICK: Final = (1 << 32) - 1
MAX_WALL: Final = 1e11
"""Seconds from which on a time is no time; it may be infinite in a damaged value."""
_IS_BIG_ENDIAN: Final = sys.byteorder == "big"

RowParts = dict[str, bytes]
"""Columns of rows by the name of their part."""

_FIELDS: Final = ("epoch", "block_size", "hybrid", "evicted_age_seconds", "group", "names_extras", "is_reloaded")


def table_steps(snapshot: InstanceSnapshot, data: RowParts, wall: float) -> Generator[None, None, BlockTable]:
    """Returns the table of a snapshot, with times of this process. Yields after each step of some
    milliseconds. Raises SnapshotError when the snapshot is inconsistent.

    Why: a million blocks take 2.6 s, longer than a lease of the index.

    data: the parts by name.
    wall: Unix time minus monotonic time, in seconds.
    """
    if len(snapshot.tables) != 1:
        raise SnapshotError(f"the snapshot has {len(snapshot.tables)} tables", reason="rows")
    if not abs(snapshot.wall) < MAX_WALL:
        raise SnapshotError("the snapshot has no valid time", reason="wall")
    rows, adapters = snapshot.tables[0].rows, len(snapshot.adapters.loads)
    shift = round((snapshot.wall - wall) / TICK_SECONDS)
    if not 0 < rows <= _MAX_ROWS:
        raise SnapshotError(f"the table has {rows} rows", reason="rows")
    columns = {name: array(code) for name, code in COLUMNS.items()}
    for part in range(-(-rows // ROWS_PER_PART)):
        for letter, names in _COLUMNS_BY_LETTER:
            part_data = data.get(f"0.{letter}{part}")
            if part_data is None:
                raise SnapshotError(f"part {letter}{part} of the table is missing", reason="missing")
            for name, column in zip(names, _columns(part_data, names), strict=True):
                # Ticks count the monotonic time of the process that wrote the snapshot.
                if shift and name == "ticks":
                    column = array(column.typecode, [min(max(0, tick + shift), _MAX_TICK) for tick in column])
                if name == "adapters" and max(column, default=0) > adapters:
                    raise SnapshotError("the table refers to an adapter that has no name", reason="adapters")
                columns[name] += column
        yield
    if any(len(column) != rows for column in columns.values()):
        raise SnapshotError(f"the columns of the table do not have {rows} rows", reason="rows")
    blocks = BlockTable()
    is_consistent = yield from blocks.load_steps(columns)
    if not is_consistent:
        raise SnapshotError("the table has two rows with the same handle", reason="twice")
    return blocks


def _columns(data: bytes, names: tuple[str, ...]) -> "list[array[int]]":
    sizes = [array(COLUMNS[name]).itemsize for name in names]
    count, rest = divmod(len(data), sum(sizes))
    if rest or count > ROWS_PER_PART:
        raise SnapshotError(
            f"a part of {len(data)} bytes does not consist of rows of {sum(sizes)} bytes", reason="shape"
        )
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


def take_snapshot(item: InstanceBlocks, wall: float) -> tuple[InstanceSnapshot, RowParts]:
    """Returns the state of an instance for another process, with the rows by name of their part.

    Empty rows are included, so that rows keep their number.

    wall: Unix time minus monotonic time, in seconds.
    """
    blocks, rows, parts = item.blocks, len(item.blocks.handles), dict[str, bytes]()
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        stop = min(rows, start + ROWS_PER_PART)
        for letter, names in _COLUMNS_BY_LETTER:
            parts[f"0.{letter}{number}"] = b"".join(_bytes(getattr(blocks, name)[start:stop]) for name in names)
    mark = item.completeness.mark_after_resume()
    snapshot = InstanceSnapshot(wall, *mark, [TableSnapshot(rows)], item.adapters.snapshot())
    for name in _FIELDS:
        setattr(snapshot, name, getattr(item, name))
    return snapshot, parts


def install_table(
    item: InstanceBlocks, snapshot: InstanceSnapshot, table: BlockTable, wall: float, now: float, out: list[Change]
) -> None:
    """Replaces an instance's state by a snapshot's, as if its stream was interrupted at ``now``.

    The blocks are not reported as changes, because consumers have them from where the snapshot
    was kept.
    """
    for name in _FIELDS:
        setattr(item, name, getattr(snapshot, name))
    item.blocks = table
    item.adapters.restore(snapshot.adapters)
    mark = (snapshot.complete, snapshot.reason, snapshot.since + snapshot.wall - wall)
    item.completeness.restore(mark, "the indexer restarted", now, out)
