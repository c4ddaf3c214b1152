# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The blocks of a replica of the index in flat arrays: a key of eight bytes and a shared mask each.

Methods do what those of `MaskTable` in `dict_mask_table.py` do.

A table has 256 parts, by the lowest bits of the key. A part uses open addressing with linear
probing, is at most four fifths full, and grows by itself. So no growth moves more than a 256th of
the blocks.
"""

import secrets

from cpython cimport array
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "Python.h":
    PyObject *PyDict_GetItem(object mapping, object key)

cdef extern from *:
    ctypedef unsigned long long uint128_t "unsigned __int128"

cdef enum:
    PARTS = 256
    MIN_CELLS = 16
    MAX_INTERNED = 65536

ctypedef struct Cell:
    # `mask` is NULL for an empty cell.
    uint64_t key
    PyObject *mask

ctypedef struct Part:
    Cell *cells
    Py_ssize_t size
    Py_ssize_t used

cdef uint64_t FACTOR = secrets.randbits(64) | 1


cdef class NativeMaskTable:
    """Masks by block hash; equal masks are one object."""

    cdef Part[PARTS] parts
    cdef Py_ssize_t count
    cdef int next_part
    cdef dict interned

    def __cinit__(self):
        self.interned = {}
        self.next_part = -1

    def __dealloc__(self):
        cdef int number
        for number in range(PARTS):
            _clear(&self.parts[number])

    def __len__(self):
        return self.count

    def __contains__(self, uint64_t block_hash):
        return _find(&self.parts[block_hash & (PARTS - 1)], block_hash) != NULL

    def __iter__(self):
        cdef int number
        cdef Py_ssize_t at
        for number in range(PARTS):
            at = 0
            while at < self.parts[number].size:
                if self.parts[number].cells[at].mask != NULL:
                    yield self.parts[number].cells[at].key
                at += 1

    @property
    def bytes(self):
        """Memory of the table, in bytes."""
        cdef Py_ssize_t size = 0
        cdef int number
        for number in range(PARTS):
            size += self.parts[number].size * sizeof(Cell)
        return size

    def get(self, uint64_t block_hash):
        """Returns the mask of a block; None if it is not cached."""
        cdef Cell *cell = _find(&self.parts[block_hash & (PARTS - 1)], block_hash)
        return None if cell == NULL else <object>cell.mask

    def masks_of(self, hashes):
        """Returns the masks of a chain of blocks, up to the first that is not cached: None."""
        cdef list found = []
        cdef uint64_t block_hash
        cdef Cell *cell
        for item in hashes:
            block_hash = item
            cell = _find(&self.parts[block_hash & (PARTS - 1)], block_hash)
            if cell == NULL:
                found.append(None)
                break
            found.append(<object>cell.mask)
        return found

    def add(self, hashes, bit, Py_ssize_t max_blocks):
        """Adds a bit to blocks, and returns how many were left out, as the table has ``max_blocks``."""
        cdef uint64_t block_hash
        cdef Cell *cell
        cdef Part *part
        cdef Py_ssize_t left_out = 0
        cdef object new = self._intern(bit), last = None, shared = None
        for item in hashes:
            block_hash = item
            part = &self.parts[block_hash & (PARTS - 1)]
            cell = _find(part, block_hash)
            if cell == NULL:
                if self.count >= max_blocks:
                    left_out += 1
                else:
                    self._insert(part, block_hash, new)
            else:
                if cell.mask != <PyObject *>last:
                    last = <object>cell.mask
                    shared = self._intern(last | bit)
                _replace(cell, shared)
        self._limit_interned()
        return left_out

    def remove(self, hashes, bit):
        """Removes a bit from blocks, and blocks that have no other."""
        cdef uint64_t block_hash
        cdef Cell *cell
        cdef Part *part
        cdef object mask
        for item in hashes:
            block_hash = item
            part = &self.parts[block_hash & (PARTS - 1)]
            cell = _find(part, block_hash)
            if cell == NULL:
                continue
            mask = <object>cell.mask
            if not mask & bit:
                continue
            if mask == bit:
                self._delete(part, cell)
            else:
                _replace(cell, self._intern(mask ^ bit))
        self._limit_interned()

    def load(self, array.array block_hashes not None, array.array counts not None, dict bits not None, Py_ssize_t max_blocks):
        """Adds the rows of a snapshot, and returns how many were left out.

        bits: by copies, for each number in ``counts`` but 0.
        """
        cdef Py_ssize_t number, left_out = 0
        cdef uint64_t block_hash
        cdef uint32_t count, last_count = 0
        cdef Cell *cell
        cdef Part *part
        cdef object bit = None, shared = None
        if block_hashes.typecode != "Q" or counts.typecode != "I" or len(block_hashes) != len(counts):
            raise ValueError("the columns of a snapshot do not fit")
        for number in range(len(block_hashes)):
            count = counts.data.as_uints[number]
            if not count:
                continue
            if count != last_count:
                bit, last_count = bits[count], count
                shared = self._intern(bit)
            block_hash = block_hashes.data.as_ulonglongs[number]
            part = &self.parts[block_hash & (PARTS - 1)]
            cell = _find(part, block_hash)
            if cell != NULL:
                _replace(cell, self._intern(<object>cell.mask | bit))
            elif self.count >= max_blocks:
                left_out += 1
            else:
                self._insert(part, block_hash, shared)
        self._limit_interned()
        return left_out

    def begin_sweep(self):
        """Begins to look at every block once."""
        self.next_part = 0

    def sweep(self, dead, Py_ssize_t max_blocks):
        """Clears bits from some blocks, about ``max_blocks``. Returns whether that was the rest."""
        cdef Py_ssize_t seen = 0
        if self.next_part < 0:
            return True
        while self.next_part < PARTS and seen < max_blocks:
            seen += self.parts[self.next_part].used + 1
            self._sweep_part(&self.parts[self.next_part], dead)
            self.next_part += 1
        self._limit_interned()
        if self.next_part < PARTS:
            return False
        self.next_part = -1
        return True

    cdef object _sweep_part(self, Part *part, dead):
        cdef Py_ssize_t at
        cdef Cell *cell
        cdef bint has_removed = False
        cdef object left
        for at in range(part.size):
            cell = part.cells + at
            if cell.mask == NULL or not <object>cell.mask & dead:
                continue
            left = <object>cell.mask & ~dead
            if left:
                _replace(cell, self._intern(left))
            else:
                _replace(cell, None)
                has_removed = True
        if has_removed:
            self.count -= _refill(part, part.size)
        return None

    cdef object _intern(self, mask):
        cdef PyObject *known = PyDict_GetItem(self.interned, mask)
        if known != NULL:
            return <object>known
        self.interned[mask] = mask
        return mask

    cdef object _limit_interned(self):
        if len(self.interned) > MAX_INTERNED:
            self.interned = {}

    cdef int _insert(self, Part *part, uint64_t block_hash, mask) except -1:
        cdef Cell *cell
        if (part.used + 1) * 5 > part.size * 4:
            _refill(part, max(MIN_CELLS, part.size + part.size // 2))
        cell = _place(part, block_hash)
        cell.key, cell.mask = block_hash, <PyObject *>mask
        Py_INCREF(mask)
        part.used += 1
        self.count += 1
        return 0

    cdef int _delete(self, Part *part, Cell *hole) except -1:
        """Removes a block, and moves later ones of its run into the hole."""
        cdef Py_ssize_t empty = hole - part.cells, at = empty
        cdef Cell *cell
        Py_DECREF(<object>hole.mask)
        while True:
            at = at + 1 if at + 1 < part.size else 0
            cell = part.cells + at
            if cell.mask == NULL:
                break
            if (at - _first(part, cell.key) + part.size) % part.size >= (at - empty + part.size) % part.size:
                part.cells[empty] = cell[0]
                empty = at
        part.cells[empty].mask = NULL
        part.used -= 1
        self.count -= 1
        return 0


cdef inline Py_ssize_t _first(const Part *part, uint64_t key) noexcept nogil:
    """Returns the first cell of a key: the part of the table is a fraction of the hash."""
    return <Py_ssize_t>(<uint128_t>(key * FACTOR) * <uint64_t>part.size >> 64)


cdef inline Cell *_place(Part *part, uint64_t key) noexcept nogil:
    """Returns the cell of a key, or the empty one for it."""
    cdef Py_ssize_t at = _first(part, key)
    while part.cells[at].mask != NULL and part.cells[at].key != key:
        at += 1
        if at == part.size:
            at = 0
    return part.cells + at


cdef inline Cell *_find(Part *part, uint64_t key) noexcept nogil:
    cdef Cell *cell
    if not part.used:
        return NULL
    cell = _place(part, key)
    return NULL if cell.mask == NULL else cell


cdef inline int _replace(Cell *cell, mask) except -1:
    cdef PyObject *old = cell.mask
    cell.mask = <PyObject *>mask
    Py_INCREF(mask)
    Py_DECREF(<object>old)
    return 0


cdef Py_ssize_t _refill(Part *part, Py_ssize_t size) except -1:
    """Moves the blocks to new cells, without those whose mask is None; returns how many these
    were.
    """
    cdef Part fresh
    cdef Py_ssize_t at
    cdef Cell *cell
    fresh.cells, fresh.size, fresh.used = <Cell *>calloc(size, sizeof(Cell)), size, 0
    if fresh.cells == NULL:
        raise MemoryError
    for at in range(part.size):
        cell = part.cells + at
        if cell.mask == NULL:
            continue
        if <object>cell.mask is None:
            Py_DECREF(None)
            continue
        _place(&fresh, cell.key)[0] = cell[0]
        fresh.used += 1
    at = part.used - fresh.used
    free(part.cells)
    part[0] = fresh
    return at


cdef void _clear(Part *part):
    cdef Py_ssize_t at
    for at in range(part.size):
        if part.cells[at].mask != NULL:
            Py_DECREF(<object>part.cells[at].mask)
    free(part.cells)
    part.cells, part.size, part.used = NULL, 0, 0
