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

import msgspec

from fairlead_kvstore.blockstore.block_table import COLUMNS, BlockTable
from fairlead_kvstore.blockstore.completeness import CompletenessMark, with_doubt
from fairlead_kvstore.errors import SnapshotError

ROWS_PER_PART: Final = 4_096
"""Rows of one part."""
_REPLICA_COLUMNS: Final = ("owns", "counts")
_INDEXER_COLUMNS: Final = ("handles", "parents", "ticks", "depths", "adapters")
_MAX_ROWS: Final = 1 << 26
_IS_BIG_ENDIAN: Final = sys.byteorder == "big"

LoadNumber = int | str
RowParts = dict[str, bytes]
"""Columns of rows by the name of their part."""


class TableSnapshot(msgspec.Struct, gc=False):
    """One table of rows; ``content`` and ``name`` say which adapter's, 0 for the main one. ``leads``: see ``Blocks.leads``."""

    rows: int
    leads: list[int] = []
    content: int = 0
    name: str = ""


class AdapterSnapshot(msgspec.Struct, gc=False):
    """See ``adapters.py``. Names are in the order of their index."""

    names: list[str] = []
    contents: list[tuple[str, LoadNumber, int]] = []
    current: dict[str, int] = {}
    newest: dict[str, LoadNumber] = {}
    places: list[tuple[int, str, str]] = []
    maybe: list[tuple[int, str, str]] = []
    ordinal: int = 0
    forgot: bool = False


class InstanceSnapshot(msgspec.Struct, gc=False):
    """What is known of one instance beside its rows. Seconds are monotonic; add ``wall`` to get Unix time."""

    wall: float
    complete: bool
    reason: str
    since: float
    tables: list[TableSnapshot]
    adapters: AdapterSnapshot
    vague: list[int] = []
    epoch: int = 1
    block_size: int | None = None
    hybrid: bool = False
    evicted_age_seconds: float | None = None
    group: int | None = None
    names_extras: bool = False
    awaited_until: float | None = None
    last_clear: float | None = None
    doubt: str = ""

    def completeness(self) -> CompletenessMark:
        """How sure it is, the doubt included."""
        return with_doubt((self.complete, self.reason, self.since), self.doubt)


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
