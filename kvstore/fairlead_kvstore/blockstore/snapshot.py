"""Snapshots of an instance's blocks, from which the next indexer continues: plain values and
columns of rows.

Why: replays reach back some thousand batches only, and an engine that has run for a day is full of
older blocks. So a new indexer cannot rebuild its state from them. A snapshot holds the rows as
columns of bytes in row order, and the few other values. Rows keep their number, so an unchanged
part of the table (4,096 rows) has the same bytes and is not written again. Readers of blocks need
block hashes and copies; these are apart from the columns that only an indexer needs.

    <table>.m<part>     block hashes (8 bytes each), then counts (4)                  12 B a row
    <table>.h<part>     handles (8), parents (8), ticks (4), depths (4), adapters (2)  26 B a row

Table 0 is the main one, the others are those of adapters that are not loaded now. A row without
copies is empty. Numbers are little-endian.

Times are those of the process that took the snapshot. ``wall`` is its Unix time minus its monotonic
time, by which the next process converts them. Orphans are left out: they have token ids, which must
not be stored in Redis. They are missed until the engine stores them again, which costs cache hits
and never leaves a ghost.
"""

import sys
from array import array
from collections.abc import Generator, Iterator
from typing import Final

from fairlead_kvstore.blockstore.block_table import COLUMNS, TICK_SECONDS, BlockTable
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.lora_generations import LoraGenerations
from fairlead_kvstore.blockstore.types import InstanceSnapshot, TableSnapshot
from fairlead_kvstore.errors import SnapshotError

ROWS_PER_PART: Final = 4_096
"""Rows of one part."""
_REPLICA_COLUMNS: Final = ("block_hashes", "counts")
_INDEXER_COLUMNS: Final = ("handles", "parents", "ticks", "depths", "adapters")
_MAX_ROWS: Final = 1 << 26
_IS_BIG_ENDIAN: Final = sys.byteorder == "big"

RowParts = dict[str, bytes]
"""Columns of rows by the name of their part."""


def table_snapshot(blocks: BlockTable, content: int = 0, name: str = "") -> TableSnapshot:
    """Returns the snapshot of a table without its rows: their number, and adapter."""
    return TableSnapshot(len(blocks.handles), content, name)


def table_parts(blocks: BlockTable, table: int) -> Iterator[tuple[str, bytes]]:
    """Yields the parts of a table, each with its name and the bytes of its rows.

    Empty rows are included, so that rows keep their number.
    """
    rows = len(blocks.handles)
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        stop = min(rows, start + ROWS_PER_PART)
        for letter, names in (("m", _REPLICA_COLUMNS), ("h", _INDEXER_COLUMNS)):
            data = b"".join(_bytes(getattr(blocks, name)[start:stop]) for name in names)
            yield f"{table}.{letter}{number}", data


def decode_replica_part(data: bytes) -> "tuple[array[int], array[int]]":
    """Returns the block hashes and counts of one part. Raises SnapshotError when ``data`` is not
    such a part.
    """
    found = _columns(data, _REPLICA_COLUMNS)
    return found[0], found[1]


def decode_ticks(data: bytes) -> "array[int]":
    """Returns the ``ticks`` column (``BlockTable``) of an indexer's part. Raises SnapshotError when
    ``data`` is not such a part.
    """
    return _columns(data, _INDEXER_COLUMNS)[_INDEXER_COLUMNS.index("ticks")]


def table_steps(
    snapshot: TableSnapshot, number: int, data: RowParts, adapters: int, shift: int
) -> Generator[None, None, BlockTable]:
    """Returns the table ``number`` of a snapshot, its ticks moved by ``shift``. Yields after each
    step of some milliseconds. Raises SnapshotError when the snapshot is inconsistent.

    data: the parts by name.
    adapters: the number of adapter names in the snapshot.
    """
    if not 0 < snapshot.rows <= _MAX_ROWS:
        raise SnapshotError(f"table {number} has {snapshot.rows} rows", reason="rows")
    columns = {name: array(COLUMNS[name]) for name in (*_REPLICA_COLUMNS, *_INDEXER_COLUMNS)}
    for part in range(-(-snapshot.rows // ROWS_PER_PART)):
        for letter, names in (("m", _REPLICA_COLUMNS), ("h", _INDEXER_COLUMNS)):
            part_data = data.get(f"{number}.{letter}{part}")
            if part_data is None:
                raise SnapshotError(f"part {letter}{part} of table {number} is missing", reason="missing")
            for name, column in zip(names, _columns(part_data, names), strict=True):
                if shift and name == "ticks":
                    column = array(column.typecode, [max(0, tick + shift) for tick in column])
                if name == "adapters" and max(column, default=0) > adapters:
                    raise SnapshotError(f"table {number} refers to an adapter that has no name", reason="adapters")
                columns[name] += column
        yield
    if any(len(column) != snapshot.rows for column in columns.values()):
        raise SnapshotError(f"the columns of table {number} do not have {snapshot.rows} rows", reason="rows")
    blocks = BlockTable()
    is_consistent = yield from blocks.load_steps(columns)
    if not is_consistent:
        raise SnapshotError(f"table {number} has two rows with the same handle", reason="twice")
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


_PLAIN_FIELDS: Final = ("epoch", "block_size", "hybrid", "evicted_age_seconds", "group", "names_extras")


def take_snapshot(item: InstanceBlocks, wall: float) -> tuple[InstanceSnapshot, RowParts]:
    """Returns the state of an instance for another process, with the rows by name of their part.

    wall: Unix time minus monotonic time, in seconds.
    """
    parked = item.adapters.parked.items()
    tables = [
        table_snapshot(item.blocks),
        *(table_snapshot(blocks, content, name) for content, (name, blocks) in parked),
    ]
    numbered = enumerate((item.blocks, *item.adapters))
    rows = {name: data for number, blocks in numbered for name, data in table_parts(blocks, number)}
    snapshot = InstanceSnapshot(
        wall,
        *item.completeness.mark_after_resume(),
        tables,
        item.adapters.snapshot(),
        doubt=item.completeness.doubt,
    )
    for name in _PLAIN_FIELDS:
        setattr(snapshot, name, getattr(item, name))
    return snapshot, rows


def tables_steps(snapshot: InstanceSnapshot, rows: RowParts, wall: float) -> Generator[None, None, list[BlockTable]]:
    """Returns the tables of a snapshot, with times of this process. Yields after each step of some
    milliseconds. Raises SnapshotError when the snapshot is inconsistent.

    Why: a million blocks take 2.6 s, longer than a lease of the index.
    """
    shift, names = round((snapshot.wall - wall) / TICK_SECONDS), len(snapshot.adapters.names)
    tables = list[BlockTable]()
    for number, table in enumerate(snapshot.tables):
        restored = yield from table_steps(table, number, rows, names, shift)
        tables.append(restored)
    if not tables:
        raise SnapshotError("the snapshot has no table", reason="rows")
    return tables


def install_tables(
    item: InstanceBlocks,
    snapshot: InstanceSnapshot,
    tables: list[BlockTable],
    wall: float,
    now: float,
    out: list[Change],
) -> None:
    """Replaces an instance's state by a snapshot's, as if its stream was interrupted at ``now``.

    The blocks are not reported as changes, because consumers have them from where the snapshot
    was kept.
    """
    later = snapshot.wall - wall
    for name in _PLAIN_FIELDS:
        setattr(item, name, getattr(snapshot, name))
    item.blocks, *others = tables
    item.adapters = LoraGenerations(item.instance, item.blocks, item.limits.kv_adapter_versions)
    named = zip(snapshot.tables[1:], others, strict=True)
    item.adapters.restore(snapshot.adapters, {table.content: (table.name, blocks) for table, blocks in named})
    mark = (snapshot.complete, snapshot.reason, snapshot.since + later)
    item.completeness.restore(mark, item.adapters.doubt(), "the indexer restarted", now, out)
