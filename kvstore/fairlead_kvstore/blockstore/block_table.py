"""The blocks of one engine, indexed by handle (engine hash) and by block hash, in about 60 bytes
each.

Why: a dict from 64-bit number to 64-bit number costs Python 140 bytes an entry, for the table and
an object per number. A million blocks need two such maps (handle → row, block hash → row) and six
more values each. So blocks are *rows* in typed arrays (38 bytes). A map is an array of row numbers,
four bytes a cell, with open addressing and linear probing. It is at most two thirds full. A
deletion moves later rows of a run into the hole. So there are no tombstones, and a table with
constant churn does not decay. The first cell is a multiply-shift hash with a factor that each
process draws: engines choose their hashes, and with ``key % size`` consecutive ones would make each
search of a missing key as long as the table. Row 0 is unused, so 0 means empty.

    handles       the engine's hash, 64 bits
    block_hashes  the block hash, see block_hash.py
    parents       block hash of the block before the row's (the root for the first)
    counts        copies in GPU, CPU and disk, eight bits each
    ticks         when it was last stored or used
    depths        number of blocks before it
    adapters      index of the adapter that it was computed with

**Copies are counted.** An engine reports a block once per physical copy, and each copy is removed
by itself. A prompt that is fully cached and ends with a block stores its last block again;
``prompt_logprobs`` stores everything again. A set forgets blocks that are present (measured: 91 %
of predictions exact, against 100 % with counts). Above 255 copies of one tier, further ones are not
counted, which can only forget too early.

**Two handles for one block** occur where an engine does not report a salt, or loads another adapter
under a name. Two of its hashes then have the same block hash, which leads to the first of them. A
*second handle* has only a row. When the first row is removed, the block counts as removed although
the second one may remain. That is reported when the engine stores it again under another handle,
which can only forget too early. So an engine, which chooses its handles, causes no search among
them.
"""

import secrets
from array import array
from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from fairlead_kvstore.native import ADD_RUN, ENTER_ROWS, FIND_ROW, MOVE_ROWS, TOUCH_ROWS

TICK_SECONDS: Final = 16.0
_TICK_ZERO: Final = 1 << 24
"""The tick at time 0, some eight years in ticks, so that blocks older than the process have
positive ticks.
"""
COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {"handles": "Q", "block_hashes": "Q", "parents": "Q", "counts": "I", "ticks": "I", "depths": "I", "adapters": "H"}
)
"""The type codes of ``array``; I has four bytes wherever CPython runs."""
ArrayParts = tuple[Any, ...]
"""Arrays and lists of arrays, for ``fairlead_kvstore.native``."""
RunBytes = tuple[bytes, bytes, int]
"""The blocks of one event: their handles, eight bytes each in the machine's order, their token ids,
and the bytes of a block's token ids.
"""
_MIN_CELLS: Final = 13
_SEGMENT_CELLS: Final = 509
"""The cells of a segment: a prime number, since the cell in it is a remainder."""
_SEGMENT_BYTES: Final = 104
"""The memory of a segment besides its cells."""
_SPARE_DEPTH: Final = 5
"""The directory may double so many times beyond its minimum size."""
_POSITION_SHIFT: Final = 32
_POSITION_MASK: Final = 0xFFFF_FFFF
_HASH_BITS: Final = 64
_HASH_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_AT_BITS: Final = 40
"""The 64 bits of the hash from this one on lead to the first cell in a segment."""
HASH_FACTOR: Final = secrets.randbits(64) | 1 << 63 | 1
"""The factor of the hash of keys. It decides where rows lie, and nothing else."""
_ROWS_PER_STEP: Final = 1_024 if ENTER_ROWS is None else 16_384
"""The rows that one step of ``load_steps`` enters: some 3 ms."""
_RESERVED_ROWS: Final = 272
"""The rows of a segment for which ``RowIndex.reserve`` makes room: almost no segment grows then."""
MAX_ROWS_AT_ONCE: Final = 8_192
"""The rows that are sorted at once: some 5 ms."""
_MAX_WALKED_ROWS: Final = 2_048
"""The rows that one call of ``touch`` visits: some 3 ms."""
MAX_COPIES: Final = 255
TIER_SHIFT: Final = (0, 8, 16)
"""The bit position of a tier's copies in ``counts``."""


def tick_of(now: float) -> int:
    """Returns the tick of a time in monotonic seconds."""
    return _TICK_ZERO + int(now / TICK_SECONDS)


def time_of(tick: int) -> float:
    """Returns when a tick began, in monotonic seconds."""
    return (tick - _TICK_ZERO) * TICK_SECONDS


class RowIndex:
    """A map from a 64-bit key to the row that has it in ``keys``; at most one row per key.

    The map consists of segments of at most 509 cells. The upper bits of a key's hash lead through a
    directory to its segment. A full segment is divided in two, and the directory doubles when one
    of its entries leads to it (extendible hashing).

    Why: to move 87,000 rows to a larger map at once takes some 45 ms. To move them step by step
    needs both maps meanwhile.
    """

    def __init__(self, keys: "array[int]") -> None:
        self._keys = keys
        self._used = 0
        self._segments = [array("I", bytes(4 * _MIN_CELLS))]
        self._used_cells = array("I", [0])  # of each segment
        self._depths = array("B", [0])  # the bits of the hash that all keys of a segment share
        self._directory = array("I", [0])
        self._shift = _HASH_BITS  # the bits of the hash that do not lead through the directory
        self._parts: ArrayParts = (self._segments, self._used_cells, self._directory)

    def __len__(self) -> int:
        return self._used

    @property
    def parts(self) -> ArrayParts:
        """The segments, the used cells of each, and the directory: the same objects as long as the
        index exists.
        """
        return self._parts

    def on_entered(self, rows: int, full_segment: int) -> None:
        """Counts rows that were entered directly in ``parts``.

        full_segment: the segment that must grow now; -1: none.
        """
        self._used += rows
        if full_segment >= 0:
            self._grow(full_segment)

    def __iter__(self) -> Iterator[int]:
        return (row for cells in self._segments for row in cells if row)

    @property
    def bytes(self) -> int:
        """Memory of the cells, in bytes."""
        cells = sum(len(segment) for segment in self._segments) * self._directory.itemsize
        return cells + len(self._segments) * _SEGMENT_BYTES + self._directory.__sizeof__()

    def find(self, key: int) -> int:
        """Returns the row of a key; 0 if there is none."""
        if FIND_ROW is not None:
            return FIND_ROW(self._parts, self._keys, HASH_FACTOR, key)
        mixed, keys = key * HASH_FACTOR, self._keys
        cells = self._segments[self._directory[(mixed & _HASH_MASK) >> self._shift]]
        size = len(cells)
        at = (mixed >> _AT_BITS & _HASH_MASK) % size
        while row := cells[at]:
            if keys[row] == key:
                break
            at += 1
            if at == size:
                at = 0
        return row

    def seek(self, key: int) -> int:
        """Returns the position of the key's row, or of the empty cell for a new row."""
        mixed, keys = key * HASH_FACTOR, self._keys
        number = self._directory[(mixed & _HASH_MASK) >> self._shift]
        cells = self._segments[number]
        size = len(cells)
        at = (mixed >> _AT_BITS & _HASH_MASK) % size
        while row := cells[at]:
            if keys[row] == key:
                break
            at += 1
            if at == size:
                at = 0
        return number << _POSITION_SHIFT | at

    def row(self, position: int) -> int:
        """Returns the row of a cell; 0 for an empty one."""
        return self._segments[position >> _POSITION_SHIFT][position & _POSITION_MASK]

    def enter(self, position: int, row: int) -> None:
        """Enters a row at the empty cell that ``seek`` found for its key; nothing may change in
        between.
        """
        number = position >> _POSITION_SHIFT
        cells = self._segments[number]
        cells[position & _POSITION_MASK] = row
        self._used += 1
        used = self._used_cells[number] = self._used_cells[number] + 1
        if used * 3 > len(cells) * 2:
            self._grow(number)

    def put(self, row: int) -> int:
        """Enters a row, whose key is in ``keys``, and returns 0.

        If another row has this key already, returns that row and changes nothing.
        """
        position = self.seek(self._keys[row])
        if other := self.row(position):
            return other
        self.enter(position, row)
        return 0

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows in an empty index."""
        bits = ((rows - 1) // _RESERVED_ROWS).bit_length() if rows > 0 else 0
        if bits:
            empty, segments = bytes(4 * _SEGMENT_CELLS), 1 << bits
            self._segments[:] = [array("I", empty) for _ in range(segments)]
            self._used_cells[:] = array("I", bytes(4 * segments))
            self._depths[:] = array("B", bytes([bits]) * segments)
            self._directory[:] = array("I", range(segments))
            self._shift = _HASH_BITS - bits

    def put_rows(self, counts: "array[int]", start: int, stop: int) -> list[int]:
        """Enters the rows from ``start`` to ``stop`` that have copies. Returns each row whose key
        another row has already, after that row.
        """
        taken: list[int] = []
        while ENTER_ROWS is not None and start < stop:
            start, entered, full = ENTER_ROWS(self._parts, self._keys, counts, HASH_FACTOR, start, stop, taken)
            self.on_entered(entered, full)
        for row in range(start, stop):
            if counts[row] and (other := self.put(row)):
                taken += (other, row)
        return taken

    def remove(self, row: int) -> int:
        """Removes a row and returns 0.

        If it is not in the index, returns the row that has its key there, or 0.
        """
        position = self.seek(self._keys[row])
        number, at = position >> _POSITION_SHIFT, position & _POSITION_MASK
        cells, keys = self._segments[number], self._keys
        size, hole = len(cells), at
        if cells[at] != row:
            return cells[at]
        while True:
            at += 1
            if at == size:
                at = 0
            other = cells[at]
            if not other:
                break
            if (at - (keys[other] * HASH_FACTOR >> _AT_BITS & _HASH_MASK)) % size >= (
                at - hole
            ) % size:  # it is behind the hole only because that was full
                cells[hole] = other
                hole = at
        cells[hole] = 0
        self._used -= 1
        self._used_cells[number] -= 1
        return 0

    def _grow(self, number: int) -> None:
        """Makes room in a full segment: more cells while it is small, else it is divided.

        A segment that would need too large a directory gets more cells, too. Its hashes have many
        bits in common.
        """
        cells, depth, used = self._segments[number], self._depths[number], self._used_cells[number]
        needed = (self._used // _SEGMENT_CELLS).bit_length() + _SPARE_DEPTH
        if len(cells) < _SEGMENT_CELLS or depth >= needed:
            max_cells = _SEGMENT_CELLS if len(cells) < _SEGMENT_CELLS else len(cells) * 2 | 1
            larger = _empty_cells(max(min(max_cells, used * 3 | 1), used * 3 // 2 | 1))
            self._move(cells, larger, larger, 0)
            self._segments[number] = larger
            return
        if depth + self._shift == _HASH_BITS:
            self._directory[:] = array("I", [number for number in self._directory for _ in range(2)])
            self._shift -= 1
        second, depth = len(self._segments), depth + 1
        self._depths[number] = depth
        self._depths.append(depth)
        span = 1 << _HASH_BITS - self._shift - depth
        row = next(row for row in cells if row)
        start = ((self._keys[row] * HASH_FACTOR & _HASH_MASK) >> self._shift) // (2 * span) * 2 * span
        for entry in range(start + span, start + 2 * span):
            self._directory[entry] = second
        size = max(_SEGMENT_CELLS, used * 3 // 2 | 1)
        halves = _empty_cells(size), _empty_cells(size)
        moved = self._move(cells, *halves, _HASH_BITS - depth)
        self._segments[number] = halves[0]
        self._segments.append(halves[1])
        self._used_cells[number] = used - moved
        self._used_cells.append(moved)

    def _move(self, cells: "array[int]", first: "array[int]", second: "array[int]", bit: int) -> int:
        """Enters the rows of a segment in empty cells: the second ones if this bit of the key's
        hash is set. Returns how many these are.
        """
        if MOVE_ROWS is not None:
            return MOVE_ROWS(cells, first, second, self._keys, HASH_FACTOR, bit)
        keys, size, in_second = self._keys, len(first), 0
        for row in cells:
            if row:
                mixed = keys[row] * HASH_FACTOR
                is_second = mixed >> bit & 1
                target = second if is_second else first
                at = (mixed >> _AT_BITS & _HASH_MASK) % size
                while target[at]:
                    at += 1
                    if at == size:
                        at = 0
                target[at] = row
                in_second += is_second
        return in_second


def _empty_cells(size: int) -> "array[int]":
    return array("I", bytes(4 * size))


class BlockTable:
    """The rows of one engine's blocks, with their indexes by handle and by block hash.

    Columns may be read directly; ``add_at`` creates rows, ``release`` ends them.
    """

    handles: "array[int]"
    block_hashes: "array[int]"
    parents: "array[int]"
    counts: "array[int]"
    ticks: "array[int]"
    depths: "array[int]"
    adapters: "array[int]"

    def __init__(self) -> None:
        for name, code in COLUMNS.items():
            setattr(self, name, array(code, [0]))
        self.by_handle = RowIndex(self.handles)
        self.by_block_hash = RowIndex(self.block_hashes)
        self._free = array("I")
        self._columns: ArrayParts | None = None
        self._scanned_to = 1

    def load_steps(self, columns: "Mapping[str, array[int]]") -> Generator[None, None, bool]:
        """Replaces all rows by the columns of a snapshot, which include row 0 and the empty rows.
        Returns False when two rows have the same handle. Yields after each some thousand rows.
        """
        for name in COLUMNS:
            setattr(self, name, columns[name])
        self._columns = None
        self.by_handle, self.by_block_hash = RowIndex(self.handles), RowIndex(self.block_hashes)
        counts, rows, twice = self.counts, len(self.counts), 0
        counts[0] = 0
        self.by_handle.reserve(rows)
        self.by_block_hash.reserve(rows)
        for start in range(1, rows, _ROWS_PER_STEP):
            stop = min(rows, start + _ROWS_PER_STEP)
            if counts[start:stop].count(0):
                self._free.extend([row for row in range(start, stop) if not counts[row]])
            twice |= bool(self.by_handle.put_rows(counts, start, stop))
            self.by_block_hash.put_rows(counts, start, stop)
            if stop < rows:
                yield
        return not twice

    def __len__(self) -> int:
        return len(self.by_handle)

    @property
    def columns(self) -> ArrayParts:
        """The columns, in the order of ``COLUMNS``, and the free rows."""
        if self._columns is None:
            numbers = (self.handles, self.block_hashes, self.parents, self.counts, self.ticks, self.depths)
            self._columns = (*numbers, self.adapters, self._free)
        return self._columns

    @property
    def bytes(self) -> int:
        """Memory of columns and indexes in bytes, to within a few percent."""
        size: int = sum(item.__sizeof__() for item in self.columns)
        return size + self.by_handle.bytes + self.by_block_hash.bytes

    def add_at(
        self, at: int, handle: int, block_hash: int, parent: int, depth: int, adapter: int, count: int, tick: int
    ) -> int:
        """Adds a row at the cell that ``by_handle.seek`` just found for its new handle. Returns the
        row that this block hash leads to, if it is another one; else 0.
        """
        if self._free:
            row = self._free.pop()
            self.handles[row] = handle
            self.block_hashes[row] = block_hash
            self.parents[row] = parent
            self.counts[row] = count
            self.ticks[row] = tick
            self.depths[row] = depth
            self.adapters[row] = adapter
        else:
            row = len(self.handles)
            self.handles.append(handle)
            self.block_hashes.append(block_hash)
            self.parents.append(parent)
            self.counts.append(count)
            self.ticks.append(tick)
            self.depths.append(depth)
            self.adapters.append(adapter)
        self.by_handle.enter(at, row)
        cell = self.by_block_hash.seek(block_hash)
        first = self.by_block_hash.row(cell)
        if not first:
            self.by_block_hash.enter(cell, row)
        return first

    def add_run(
        self,
        start: tuple[int, int],
        run: RunBytes,
        adapter: int,
        shift: int,
        tick: int,
        new: list[int],
    ) -> tuple[int, int]:
        """Adds one copy of each block of a run with compiled code, where that exists.

        It stops at a block that must be added in Python: a second handle, or too many copies.

        start: hash and depth of the block before the run.
        shift: position of the tier in ``counts`` (``TIER_SHIFT``).
        new: gets the hashes of new blocks.

        Returns how many blocks were added, and the hash of the last one.
        """
        (block_hash, depth), done = start, 0
        handles, tokens, width = run
        while ADD_RUN is not None:
            done, block_hash, entered, full, full_hash = ADD_RUN(
                self.columns,
                self.by_handle.parts,
                self.by_block_hash.parts,
                HASH_FACTOR,
                handles,
                tokens,
                width,
                block_hash,
                depth + 1,
                adapter,
                shift,
                tick,
                done,
                new,
            )
            self.by_handle.on_entered(entered, full)
            self.by_block_hash.on_entered(entered, full_hash)
            if full < 0 and full_hash < 0:
                break
        return done, block_hash

    def release(self, row: int) -> int:
        """Removes a row and frees it for reuse. Returns the row that its block hash leads to; 0 if
        there is none any more.
        """
        self.by_handle.remove(row)
        self.counts[row] = 0  # marks the row as empty in copies of the columns
        self._free.append(row)
        return self.by_block_hash.remove(row)

    def copies(self, block_hash: int) -> int:
        return self.counts[self.by_block_hash.find(block_hash)]

    def touch(self, block_hash: int, tick: int) -> int:
        """Marks a block and those before it as used. Returns the block from which to continue; 0
        if all are marked.

        The walk ends at the first block with this tick, since all before it have the same tick or a
        later one. One call visits some thousand blocks.
        """
        find, ticks, parents = self.by_block_hash.find, self.ticks, self.parents
        if TOUCH_ROWS is not None:
            parts = self.by_block_hash.parts
            return TOUCH_ROWS(parts, self.block_hashes, parents, ticks, HASH_FACTOR, block_hash, tick, _MAX_WALKED_ROWS)
        for _ in range(_MAX_WALKED_ROWS):
            row = find(block_hash)
            if not row or ticks[row] >= tick:
                return 0
            ticks[row] = tick
            block_hash = parents[row]
        return block_hash

    def oldest(self, count: int) -> list[int]:
        """Returns the ``count`` least recently used rows; among equally old ones, the ends of
        chains first.

        Of a large table, some ``MAX_ROWS_AT_ONCE`` in turn are considered.

        Why: to sort four million rows takes seconds, in which the indexer would do nothing else.
        """
        ticks, depths = self.ticks, self.depths
        rows = self._next_rows(count)
        rows.sort(key=lambda row: (ticks[row] << 32) - depths[row])
        return rows[:count]

    def _next_rows(self, min_rows: int) -> list[int]:
        """Returns rows that are in use, in order: all, or the next ones, at least ``min_rows``."""
        if len(self.by_handle) <= max(MAX_ROWS_AT_ONCE, min_rows):
            return sorted(self.by_handle)  # the index has another order in each process
        counts = self.counts
        found: dict[int, None] = {}  # the last rows of a whole turn may be those of its first ones
        while len(found) < min_rows:
            start = self._scanned_to if self._scanned_to < len(counts) else 1
            self._scanned_to = min(start + MAX_ROWS_AT_ONCE, len(counts))
            for row in range(start, self._scanned_to):
                if counts[row]:
                    found[row] = None
        return list(found)
