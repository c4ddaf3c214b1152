# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Writes the changes of an entry of the index's stream as msgpack, without an object for each.

The bytes are those of `index/format.py`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

ctypedef struct Output:
    unsigned char *start
    Py_ssize_t size
    Py_ssize_t room

cdef enum:
    FIXARRAY = 0x90
    ARRAY16 = 0xDC
    ARRAY32 = 0xDD
    MAX_HEAD = 32
    MAX_NUMBER = 9


def encode_changes(list changes not None, stored, removed, dict instance_numbers not None, other):
    """Returns the msgpack array of changes.

    stored, removed: the types of changes that are written here.
    instance_numbers: gets the number of each instance, by name.
    other: returns the msgpack of any other change.
    """
    cdef Output output
    cdef bytes data
    output.start, output.size, output.room = NULL, 0, 0
    try:
        _reserve(&output, MAX_HEAD)
        _write_array_head(&output, len(changes))
        for change in changes:
            if type(change) is stored:
                _write_change(&output, c"s", change, instance_numbers, True)
            elif type(change) is removed:
                _write_change(&output, c"r", change, instance_numbers, False)
            else:
                data = other(change)
                _reserve(&output, PyBytes_GET_SIZE(data))
                memcpy(output.start + output.size, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
                output.size += PyBytes_GET_SIZE(data)
        return output.start[: output.size]
    finally:
        free(output.start)


cdef int _write_change(Output *output, unsigned char tag, object change, dict instance_numbers, bint has_reserved) except -1:
    """Writes blocks that were stored or removed: tag, instance, tier, a reserved 0 if any, hashes."""
    cdef list hashes = change.hashes
    cdef object name = change.instance, instance_number = instance_numbers.get(name)
    cdef uint64_t number
    if instance_number is None:
        instance_number = instance_numbers[name] = len(instance_numbers)
    _reserve(output, MAX_HEAD + MAX_NUMBER * (3 + len(hashes)))
    output.start[output.size] = FIXARRAY | (5 if has_reserved else 4)
    output.start[output.size + 1] = 0xA1
    output.start[output.size + 2] = tag
    output.size += 3
    _write_number(output, instance_number)
    _write_number(output, change.tier)
    if has_reserved:
        _write_number(output, 0)
    _write_array_head(output, len(hashes))
    for block_hash in hashes:
        number = block_hash
        _write_number(output, number)
    return 0


cdef int _reserve(Output *output, Py_ssize_t more) except -1:
    cdef void *start
    if output.size + more > output.room:
        start = realloc(output.start, 2 * output.room + more + 1024)
        if start == NULL:
            raise MemoryError
        output.start, output.room = <unsigned char *>start, 2 * output.room + more + 1024
    return 0


cdef inline void _write_big_endian(Output *output, unsigned char head, uint64_t value, int size) noexcept nogil:
    cdef int i
    output.start[output.size] = head
    for i in range(size):
        output.start[output.size + 1 + i] = <unsigned char>(value >> 8 * (size - 1 - i))
    output.size += 1 + size


cdef inline void _write_number(Output *output, uint64_t value) noexcept nogil:
    if value < 0x80:
        output.start[output.size] = <unsigned char>value
        output.size += 1
    elif value < 0x100:
        _write_big_endian(output, 0xCC, value, 1)
    elif value < 0x10000:
        _write_big_endian(output, 0xCD, value, 2)
    elif not value >> 32:
        _write_big_endian(output, 0xCE, value, 4)
    else:
        _write_big_endian(output, 0xCF, value, 8)


cdef inline void _write_array_head(Output *output, Py_ssize_t count) noexcept nogil:
    if count < 16:
        output.start[output.size] = <unsigned char>(FIXARRAY | count)
        output.size += 1
    elif count < 0x10000:
        _write_big_endian(output, ARRAY16, count, 2)
    else:
        _write_big_endian(output, ARRAY32, count, 4)
