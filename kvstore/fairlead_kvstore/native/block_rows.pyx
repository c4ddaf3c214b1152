# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Finds, adds and removes rows of a `BlockTable`, without objects for the numbers in its columns.

The rows, the cells of the indexes and the results are those of the way in Python. What is rare is
left to it: second handles, blocks with too many copies, and the growth of an index.
"""

from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from xxhash import xxh3_64_intdigest

cdef extern from *:
    ctypedef unsigned long long uint128_t "unsigned __int128"
    int _bits "__builtin_ctzll"(unsigned long long value) nogil

ctypedef const unsigned char *Text

cdef extern from "Python.h":
    void Py_SET_SIZE(object thing, Py_ssize_t size)

cdef extern from *:
    ctypedef struct arrayobject:
        Py_ssize_t allocated

cdef enum:
    COLUMNS = 7
    MIN_SHORT = 17
    MAX_SHORT = 128
    MAX_COPIES = 255

cdef uint64_t PRIME64_1 = 0x9E3779B185EBCA87
cdef uint64_t PRIME_MX1 = 0x165667919E3779F9
cdef bytes _SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
)


def find_row(tuple index not None, array.array keys not None, uint64_t factor, uint64_t key):
    """Returns the row of a key; 0 if there is none.

    index: see `RowIndex.parts`. keys: the column of the keys. factor: that of the hash of keys.
    """
    cdef uint32_t segment
    return _seek(index, keys.data.as_ulonglongs, factor, key, &segment)[0]


def enter_rows(
    tuple index not None, array.array keys not None, array.array counts not None, uint64_t factor,
    Py_ssize_t start, Py_ssize_t stop, list taken not None,
):
    """Enters the rows from `start` on that have copies, until a segment must grow.

    keys, counts: the columns of the keys and of the copies.
    taken: gets each row whose key another row has already, after that row.

    Returns the next row, how many were entered, and the segment that must grow (-1: none).
    """
    cdef Py_ssize_t row = start, entered = 0
    cdef uint32_t segment
    cdef uint32_t *cell
    if not 0 <= start or stop > len(keys) or stop > len(counts):
        raise ValueError("there are not so many rows")
    while row < stop:
        if counts.data.as_uints[row]:
            cell = _seek(index, keys.data.as_ulonglongs, factor, keys.data.as_ulonglongs[row], &segment)
            if cell[0]:
                taken.append(cell[0])
                taken.append(row)
            else:
                cell[0] = <uint32_t>row
                entered += 1
                if _is_full(index, segment):
                    return row + 1, entered, segment
        row += 1
    return row, entered, -1


def move_rows(
    array.array cells not None, array.array first not None, array.array second not None,
    array.array keys not None, uint64_t factor, int bit,
):
    """Enters the rows of a segment in two others of one size, which have room for all of them: in
    the second one if this bit of the key's hash is set. Returns how many these are.
    """
    cdef Py_ssize_t i, rows = 0, in_second = 0
    cdef uint32_t row, at, size = <uint32_t>len(first)
    cdef uint32_t *target
    cdef uint128_t mixed
    for i in range(len(cells)):
        rows += cells.data.as_uints[i] != 0
    if not 0 <= bit < 64 or len(second) != size or size <= rows:
        raise ValueError("there is no room for the rows")
    for i in range(len(cells)):
        row = cells.data.as_uints[i]
        if row:
            mixed = <uint128_t>keys.data.as_ulonglongs[row] * factor
            target = second.data.as_uints if mixed >> bit & 1 else first.data.as_uints
            in_second += mixed >> bit & 1
            at = <uint32_t>(<uint64_t>(mixed >> 40) % size)
            while target[at]:
                at = at + 1 if at + 1 < size else 0
            target[at] = row
    return in_second


def touch_rows(
    tuple index not None, array.array keys not None, array.array parents not None, array.array ticks not None,
    uint64_t factor, uint64_t key, uint32_t tick, Py_ssize_t max_rows,
):
    """Gives a tick to the row of a key and to those before it, up to one that has it or a later
    one. Returns the key from which to continue; 0 if that is all.

    parents, ticks: the columns of the key before each row's, and of its tick.
    """
    cdef Py_ssize_t number
    cdef uint32_t row, segment
    for number in range(max_rows):
        row = _seek(index, keys.data.as_ulonglongs, factor, key, &segment)[0]
        if not row or ticks.data.as_uints[row] >= tick:
            return 0
        ticks.data.as_uints[row] = tick
        key = parents.data.as_ulonglongs[row]
    return key


def add_run(
    tuple columns not None,
    tuple by_handle not None,
    tuple by_block_hash not None,
    uint64_t factor,
    bytes handles not None,
    bytes tokens not None,
    Py_ssize_t width,
    uint64_t block_hash,
    uint32_t depth,
    uint32_t adapter,
    int shift,
    uint32_t tick,
    Py_ssize_t start,
    list new not None,
):
    """Adds one copy of each block of a run to a table, until an index must grow, or up to a block
    that must be added in Python.

    columns, by_handle, by_block_hash: see `BlockTable.columns` and `RowIndex.parts`.
    handles, tokens: eight bytes for each block, and `width` bytes of token ids.
    block_hash, depth: the hash of the block before the next one, and the depth of the first one.
    shift: of the tier, in the column of copies.
    start: the number of blocks that were added before.
    new: gets the hashes of new blocks.

    Returns how many blocks are added now, the hash of the last one, how many rows were entered, and
    the segment of each index that must grow (-1: none).
    """
    cdef array.array handle_column = <array.array>PyTuple_GET_ITEM(columns, 0)
    cdef array.array hash_column = <array.array>PyTuple_GET_ITEM(columns, 1)
    cdef array.array counts = <array.array>PyTuple_GET_ITEM(columns, 3)
    cdef array.array ticks = <array.array>PyTuple_GET_ITEM(columns, 4)
    cdef array.array free_rows = <array.array>PyTuple_GET_ITEM(columns, 7)
    cdef const uint64_t *keys = <const uint64_t *>PyBytes_AS_STRING(handles)
    cdef Text text = <Text>PyBytes_AS_STRING(tokens)
    cdef Py_ssize_t blocks = PyBytes_GET_SIZE(handles) // 8, number
    cdef uint64_t key, parent, value
    cdef uint32_t segment, hash_segment, row, copies, unit = 1 << shift
    cdef uint32_t *cell
    cdef uint32_t *hash_cell
    cdef int64_t full = -1, full_hash = -1
    cdef Py_ssize_t entered = 0
    if width <= 0 or PyBytes_GET_SIZE(tokens) < blocks * width or not 0 <= shift <= 16:
        raise ValueError("each block needs its tokens")
    number = start
    while number < blocks and full < 0 and full_hash < 0:
        key, parent = keys[number], block_hash
        cell = _seek(by_handle, handle_column.data.as_ulonglongs, factor, key, &segment)
        row = cell[0]
        if row:
            copies = counts.data.as_uints[row] >> shift & MAX_COPIES
            if copies == MAX_COPIES:
                break
            block_hash = hash_column.data.as_ulonglongs[row]
            counts.data.as_uints[row] += unit
            if ticks.data.as_uints[row] < tick:
                ticks.data.as_uints[row] = tick
            if copies:
                number += 1
                continue
        else:
            value = _hash(tokens, text + number * width, number * width, width, block_hash)
            hash_cell = _seek(by_block_hash, hash_column.data.as_ulonglongs, factor, value, &hash_segment)
            if hash_cell[0]:
                break
            block_hash = value
            if len(free_rows):
                row = free_rows.pop()
            else:
                row = <uint32_t>len(handle_column)
                _append_row(columns)
            handle_column.data.as_ulonglongs[row] = key
            hash_column.data.as_ulonglongs[row] = block_hash
            (<array.array>PyTuple_GET_ITEM(columns, 2)).data.as_ulonglongs[row] = parent
            counts.data.as_uints[row] = unit
            ticks.data.as_uints[row] = tick
            (<array.array>PyTuple_GET_ITEM(columns, 5)).data.as_uints[row] = depth + <uint32_t>number
            (<array.array>PyTuple_GET_ITEM(columns, 6)).data.as_ushorts[row] = <uint16_t>adapter
            cell[0] = hash_cell[0] = row
            entered += 1
            if _is_full(by_handle, segment):
                full = segment
            if _is_full(by_block_hash, hash_segment):
                full_hash = hash_segment
        new.append(block_hash)
        number += 1
    return number, block_hash, entered, full, full_hash


cdef inline uint32_t *_seek(tuple index, const uint64_t *keys, uint64_t factor, uint64_t key, uint32_t *segment):
    """Returns the cell with the row of a key, or the empty one for it; and the number of its
    segment.
    """
    cdef array.array directory = <array.array>PyTuple_GET_ITEM(index, 2), cells
    cdef Py_ssize_t entries = len(directory)
    cdef uint128_t mixed = <uint128_t>key * factor
    cdef uint64_t entry = 0
    cdef uint32_t size, at, row
    if entries > 1:
        entry = <uint64_t>mixed >> (64 - _bits(entries))
    segment[0] = directory.data.as_uints[entry]
    cells = <array.array>PyList_GET_ITEM(<list>PyTuple_GET_ITEM(index, 0), segment[0])
    size = <uint32_t>len(cells)
    at = <uint32_t>(<uint64_t>(mixed >> 40) % size)
    while True:
        row = cells.data.as_uints[at]
        if not row or keys[row] == key:
            return cells.data.as_uints + at
        at += 1
        if at == size:
            at = 0


cdef inline bint _is_full(tuple index, uint32_t segment):
    """Counts a row in its segment. Returns whether the segment must grow."""
    cdef array.array used = <array.array>PyTuple_GET_ITEM(index, 1)
    cdef array.array cells = <array.array>PyList_GET_ITEM(<list>PyTuple_GET_ITEM(index, 0), segment)
    used.data.as_uints[segment] += 1
    return used.data.as_uints[segment] * 3 > len(cells) * 2


cdef int _append_row(tuple columns) except -1:
    """Adds a row of any content behind the last one. Columns grow as they do in Python."""
    cdef array.array column
    cdef int i
    for i in range(COLUMNS):
        column = <array.array>PyTuple_GET_ITEM(columns, i)
        if len(column) < (<arrayobject *>column).allocated:
            Py_SET_SIZE(column, len(column) + 1)
        else:
            column.append(0)
    return 0


cdef inline uint64_t _hash(bytes tokens, Text at, Py_ssize_t begin, Py_ssize_t width, uint64_t seed) except? 0:
    """Returns the XXH3-64 hash of a block's tokens.

    Source: the specification of xxHash, https://github.com/Cyan4973/xxHash/blob/v0.8.3/doc/xxhash_spec.md
    """
    cdef Text secret
    cdef uint64_t value
    cdef Py_ssize_t i
    if width < MIN_SHORT or width > MAX_SHORT:
        return xxh3_64_intdigest(tokens[begin : begin + width], seed)
    secret = <Text>PyBytes_AS_STRING(_SECRET)
    value = <uint64_t>width * PRIME64_1
    for i in range((width - 1) // 32, -1, -1):
        value += _mixed(at + 16 * i, secret + 32 * i, seed)
        value += _mixed(at + width - 16 * (i + 1), secret + 32 * i + 16, seed)
    value = (value ^ value >> 37) * PRIME_MX1
    return value ^ value >> 32


cdef inline uint64_t _mixed(Text at, Text secret, uint64_t seed) noexcept nogil:
    cdef uint64_t[2] words
    cdef uint64_t[2] keys
    cdef uint128_t product
    memcpy(words, at, 16)
    memcpy(keys, secret, 16)
    product = <uint128_t>(words[0] ^ (keys[0] + seed)) * (words[1] ^ (keys[1] - seed))
    return <uint64_t>product ^ <uint64_t>(product >> 64)
