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

from fairlead_kvstore.errors import KeptError
from fairlead_kvstore.truth.blocks import COLUMNS, Blocks
from fairlead_kvstore.truth.standing import Mark, doubtful

ROWS: Final = 4_096
"""Rows of one part."""
_MIRRORED: Final = ("owns", "counts")
_OTHERS: Final = ("handles", "parents", "ticks", "depths", "adapters")
_ROWS_MOST: Final = 1 << 26
_SWAP: Final = sys.byteorder == "big"

Number = int | str
Rows = dict[str, bytes]
"""Columns of rows by the name of their part."""


class KeptTable(msgspec.Struct, gc=False):
    """One table of rows; ``content`` and ``name`` say which adapter's, 0 for the main one. ``leads``: see ``Blocks.leads``."""

    rows: int
    leads: list[int] = []
    content: int = 0
    name: str = ""


class KeptAdapters(msgspec.Struct, gc=False):
    """See ``adapters.py``. Names are in the order of their index."""

    names: list[str] = []
    contents: list[tuple[str, Number, int]] = []
    current: dict[str, int] = {}
    newest: dict[str, Number] = {}
    places: list[tuple[int, str, str]] = []
    maybe: list[tuple[int, str, str]] = []
    ordinal: int = 0
    forgot: bool = False


class KeptSlice(msgspec.Struct, gc=False):
    """What is known of one instance beside its rows. Seconds are monotonic; add ``wall`` to get Unix time."""

    wall: float
    complete: bool
    reason: str
    since: float
    tables: list[KeptTable]
    adapters: KeptAdapters
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

    def mark(self) -> Mark:
        """How sure it is, the doubt included."""
        return doubtful((self.complete, self.reason, self.since), self.doubt)


def kept_table(blocks: Blocks, content: int = 0, name: str = "") -> KeptTable:
    """What is to be known of a table beside its rows."""
    return KeptTable(len(blocks.handles), blocks.leads(), content, name)


def parts(blocks: Blocks, table: int) -> Iterator[tuple[str, bytes]]:
    """The rows of a table, by name of the part. Every row, the empty ones too, so that rows stay where they are."""
    rows = len(blocks.handles)
    for number, start in enumerate(range(0, rows, ROWS)):
        stop = min(rows, start + ROWS)
        for letter, names in (("m", _MIRRORED), ("h", _OTHERS)):
            data = b"".join(_bytes(getattr(blocks, name)[start:stop]) for name in names)
            yield f"{table}.{letter}{number}", data


def mirrored(data: bytes) -> "tuple[array[int], array[int]]":
    """Own hashes and counts of one part. Raises KeptError when it is none."""
    found = _columns(data, _MIRRORED)
    return found[0], found[1]


def ticks(data: bytes) -> "array[int]":
    """When each row of a part of the other kind was stored or used, see ``Blocks``. Raises KeptError when it is none."""
    return _columns(data, _OTHERS)[_OTHERS.index("ticks")]


def table(kept: KeptTable, number: int, data: Rows, adapters: int, shift: int) -> Blocks:
    """The table again, its ticks moved by ``shift``. Raises KeptError for what does not hold together."""
    if not 0 < kept.rows <= _ROWS_MOST:
        raise KeptError(f"table {number} has {kept.rows} rows", reason="rows")
    columns = {name: array(COLUMNS[name]) for name in (*_MIRRORED, *_OTHERS)}
    for part in range(-(-kept.rows // ROWS)):
        for letter, names in (("m", _MIRRORED), ("h", _OTHERS)):
            there = data.get(f"{number}.{letter}{part}")
            if there is None:
                raise KeptError(f"part {letter}{part} of table {number} is missing", reason="missing")
            for name, column in zip(names, _columns(there, names), strict=True):
                columns[name] += column
    if any(len(column) != kept.rows for column in columns.values()):
        raise KeptError(f"the columns of table {number} are not as long as its rows", reason="rows")
    if shift:
        columns["ticks"] = array(COLUMNS["ticks"], [max(0, tick + shift) for tick in columns["ticks"]])
    if max(columns["adapters"]) > adapters:
        raise KeptError(f"table {number} has rows of an adapter without a name", reason="adapters")
    blocks = Blocks()
    if not blocks.fill(columns, kept.leads):
        raise KeptError(f"two rows of table {number} have the same name", reason="twice")
    return blocks


def _columns(data: bytes, names: tuple[str, ...]) -> "list[array[int]]":
    sizes = [array(COLUMNS[name]).itemsize for name in names]
    count, rest = divmod(len(data), sum(sizes))
    if rest or count > ROWS:
        raise KeptError(f"{len(data)} bytes are no rows of {sum(sizes)} bytes", reason="shape")
    found, at = [], 0
    for name, size in zip(names, sizes, strict=True):
        column = array(COLUMNS[name])
        column.frombytes(data[at : at + size * count])
        if _SWAP:
            column.byteswap()
        found.append(column)
        at += size * count
    return found


def _bytes(column: "array[int]") -> bytes:
    if _SWAP:
        column.byteswap()  # a slice is a copy
    return column.tobytes()
