"""The blocks of one engine, by the engine's name and by ours, in about 60 bytes each.

A dict from 64-bit number to 64-bit number costs Python 140 bytes an entry: the table, and an object for each number. A million
blocks need two such maps (engine's handle → block, own hash → block) and six more values each. So blocks are *rows* in typed
arrays (38 bytes), and a map is an array of row numbers that is searched from ``key % size`` on until the key or an empty cell
comes: open addressing with linear probing, at most two thirds full, four bytes a cell. Deleting moves later rows of a run into
the hole, so that there are no tombstones and a table that is churned all day does not decay. The size is odd and no multiple of
3, 5 or 7, because engines' numbers may have a pattern. Row 0 is nobody's, so 0 means empty.

    handles     the engine's hash, 64 bits
    owns        what the block holds, see identity.py
    parents     own hash of the block before it (the root for the first)
    counts      copies in GPU, CPU and disk, eight bits each
    ticks       when it was last stored or used
    depths      how many blocks come before it
    adapters    which adapter it was computed with, an index

**Copies are counted.** An engine announces a block once per physical copy: a prompt that is fully cached and ends with a block
stores its last block again, ``prompt_logprobs`` stores everything again, and each copy is removed by itself. A set forgets blocks
that are there (measured: 91 % of predictions exact, against 100 % with counts). Beyond 255 copies of one tier the next are not
counted, which can only forget too early.

**Two handles, one block**: where an engine does not announce a salt, or was told to load another adapter under a name, two of its
hashes mean the same to us. Their rows are *twins*: the own hash leads to one of them, a small dict to the rest, and the block is
gone only when all of them are.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

TICK_SECONDS: Final = 16.0
_TICK_ZERO: Final = 1 << 24
"""Ticks of blocks that are older than the process's clock must be numbers, too: this is some eight years."""
COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {"handles": "Q", "owns": "Q", "parents": "Q", "counts": "I", "ticks": "I", "depths": "I", "adapters": "H"}
)
"""The type codes of ``array``; I has four bytes wherever CPython runs."""
_MIN_CELLS: Final = 13
MAX_COPIES: Final = 255
TIER_SHIFT: Final = (0, 8, 16)
"""By tier: where its copies are in ``counts``."""


def tick_of(now: float) -> int:
    """The tick of a time in monotonic seconds."""
    return _TICK_ZERO + int(now / TICK_SECONDS)


def time_of(tick: int) -> float:
    """When a tick began."""
    return (tick - _TICK_ZERO) * TICK_SECONDS


class RowIndex:
    """From a 64-bit key to the row that has it in ``keys``; at most one row per key."""

    __slots__ = ("_cells", "_keys", "_size", "_used")

    def __init__(self, keys: "array[int]") -> None:
        self._keys = keys
        self._size = _MIN_CELLS
        self._used = 0
        self._cells = array("I", bytes(4 * _MIN_CELLS))

    def __len__(self) -> int:
        return self._used

    def __iter__(self) -> Iterator[int]:
        """Every row; nothing may be put or dropped meanwhile."""
        return (row for row in self._cells if row)

    @property
    def bytes(self) -> int:
        """What the cells take."""
        return self._cells.itemsize * self._size

    def find(self, key: int) -> int:
        """The row, or 0."""
        return self._cells[self.seek(key)]

    def seek(self, key: int) -> int:
        """The cell that leads to the key's row, or the empty one where it is to be entered."""
        cells, keys, size = self._cells, self._keys, self._size
        at = key % size
        while row := cells[at]:
            if keys[row] == key:
                break
            at += 1
            if at == size:
                at = 0
        return at

    def row(self, at: int) -> int:
        """What a cell leads to; 0 is nothing."""
        return self._cells[at]

    def enter(self, at: int, row: int) -> None:
        """Enter a row at the empty cell that ``seek`` found for its key, with nothing done in between."""
        self._cells[at] = row
        self._used += 1
        if self._used * 3 > self._size * 2:
            self._grow()

    def put(self, row: int) -> int:
        """Enter a row, whose key is in ``keys``. If another row has that key, it stays, and is returned; else 0."""
        at = self.seek(self._keys[row])
        if other := self._cells[at]:
            return other
        self.enter(at, row)
        return 0

    def redirect(self, old: int, new: int) -> None:
        """Lead to ``new``, which has the same key, instead of ``old``."""
        cells, size = self._cells, self._size
        at = self._keys[old] % size
        while cells[at] != old:
            at += 1
            if at == size:
                at = 0
        cells[at] = new

    def remove(self, row: int) -> None:
        """Take a row out."""
        cells, keys, size = self._cells, self._keys, self._size
        at = keys[row] % size
        while cells[at] != row:
            at += 1
            if at == size:
                at = 0
        hole = at
        while True:
            at += 1
            if at == size:
                at = 0
            other = cells[at]
            if not other:
                break
            if (at - keys[other]) % size >= (at - hole) % size:  # it was put behind the hole only because that was full
                cells[hole] = other
                hole = at
        cells[hole] = 0
        self._used -= 1

    def _grow(self) -> None:
        old, keys = self._cells, self._keys
        size = self._used * 3 | 1
        while not (size % 3 and size % 5 and size % 7):
            size += 2
        cells = array("I", bytes(4 * size))
        for row in old:
            if row:
                at = keys[row] % size
                while cells[at]:
                    at += 1
                    if at == size:
                        at = 0
                cells[at] = row
        self._cells, self._size = cells, size


class BlockTable:
    """Rows with their two indexes. The columns are read freely; rows are made by ``add`` and ended by ``release``."""

    __slots__ = (
        "_free",
        "adapters",
        "by_handle",
        "by_own",
        "counts",
        "depths",
        "handles",
        "owns",
        "parents",
        "ticks",
        "twins",
    )

    handles: "array[int]"
    owns: "array[int]"
    parents: "array[int]"
    counts: "array[int]"
    ticks: "array[int]"
    depths: "array[int]"
    adapters: "array[int]"

    def __init__(self) -> None:
        for name, code in COLUMNS.items():
            setattr(self, name, array(code, [0]))
        self.by_handle = RowIndex(self.handles)
        self.by_own = RowIndex(self.owns)
        self.twins: dict[int, list[int]] = {}
        self._free = array("I")

    def twin_leads(self) -> list[int]:
        """Of all twins, the row that the own hash leads to."""
        return [rows[0] for rows in self.twins.values()]

    def load_rows(self, columns: "Mapping[str, array[int]]", leads: Sequence[int]) -> bool:
        """Take rows that another process kept, row 0 and empty ones included. False when two of them have one handle."""
        for name in COLUMNS:
            setattr(self, name, columns[name])
        self.by_handle, self.by_own = RowIndex(self.handles), RowIndex(self.owns)
        counts, rows, twice = self.counts, len(self.counts), 0
        counts[0] = 0
        for row in leads:
            twice |= not 0 < row < rows or not counts[row] or self.by_own.put(row)
        for row in range(1, rows):
            if not counts[row]:
                self._free.append(row)
                continue
            twice |= self.by_handle.put(row)
            first = self.by_own.put(row)
            if first and first != row:
                self.twins.setdefault(self.owns[row], [first]).append(row)
        return not twice

    def __len__(self) -> int:
        return len(self.by_handle)

    @property
    def bytes(self) -> int:
        """What the columns and indexes take, within a few hundredths."""
        columns = (
            self.handles,
            self.owns,
            self.parents,
            self.counts,
            self.ticks,
            self.depths,
            self.adapters,
            self._free,
        )
        return sum(item.__sizeof__() for item in columns) + self.by_handle.bytes + self.by_own.bytes

    def add(self, handle: int, own: int, parent: int, depth: int, adapter: int, count: int, tick: int) -> bool:
        """A row for a handle that has none. Whether no other row has this own hash."""
        return self.add_at(self.by_handle.seek(handle), handle, own, parent, depth, adapter, count, tick)

    def add_at(
        self, at: int, handle: int, own: int, parent: int, depth: int, adapter: int, count: int, tick: int
    ) -> bool:
        """The same where ``by_handle.seek`` has just not found the handle: at ``at``."""
        if self._free:
            row = self._free.pop()
            self.handles[row] = handle
            self.owns[row] = own
            self.parents[row] = parent
            self.counts[row] = count
            self.ticks[row] = tick
            self.depths[row] = depth
            self.adapters[row] = adapter
        else:
            row = len(self.handles)
            self.handles.append(handle)
            self.owns.append(own)
            self.parents.append(parent)
            self.counts.append(count)
            self.ticks.append(tick)
            self.depths.append(depth)
            self.adapters.append(adapter)
        self.by_handle.enter(at, row)
        there = self.by_own.seek(own)
        first = self.by_own.row(there)
        if first:
            self.twins.setdefault(own, [first]).append(row)
            return False
        self.by_own.enter(there, row)
        return True

    def release(self, row: int) -> None:
        """End a row."""
        self.by_handle.remove(row)
        own = self.owns[row] if self.twins else 0
        rows = self.twins.get(own) if self.twins else None
        if rows is None:
            self.by_own.remove(row)
        else:
            if self.by_own.find(own) == row:
                self.by_own.redirect(row, rows[1] if rows[0] == row else rows[0])
            rows.remove(row)
            if len(rows) == 1:
                del self.twins[own]
        self.counts[row] = 0  # which tells whoever copies the columns that nobody is here
        self._free.append(row)

    def is_in_twin(self, row: int, shift: int) -> bool:
        """Whether a twin of ``row`` is held in the tier."""
        rows = self.twins.get(self.owns[row])
        return rows is not None and any(self.counts[other] >> shift & MAX_COPIES for other in rows if other != row)

    def copies(self, own: int) -> int:
        """``counts`` of a block by its own hash; of twins, the tiers of all of them."""
        row = self.by_own.find(own)
        if not row:
            return 0
        counts = self.counts
        if self.twins and (rows := self.twins.get(own)):
            found = 0
            for other in rows:
                found |= counts[other]
            return found
        return counts[row]

    def touch(self, own: int, tick: int) -> None:
        """This block was used, hence all before it: they are as young as it is.

        The walk ends at the first that is that young already, since then all before it are, too.
        """
        find, ticks, parents = self.by_own.find, self.ticks, self.parents
        while row := find(own):
            if ticks[row] >= tick:
                break
            ticks[row] = tick
            own = parents[row]

    def oldest(self, count: int) -> list[int]:
        """``count`` rows that were not used for longest; of those equally long, the ends of chains first."""
        ticks, depths = self.ticks, self.depths
        rows = list(self.by_handle)
        rows.sort(key=lambda row: (ticks[row] << 32) - depths[row])
        return rows[:count]
