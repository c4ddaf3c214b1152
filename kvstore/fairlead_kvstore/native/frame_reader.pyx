# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Divides the bytes of a ZMQ publisher into messages: those of three frames, as engines send KV
events.

Each message is one that `ZmtpStream.next_message` would return. What is not whole yet, and every
other frame, is left to it.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t

ctypedef const unsigned char *Text

cdef enum:
    MORE = 1
    LONG = 2
    PARTS = 3


def read_messages(
    bytearray buffer not None,
    Py_ssize_t at,
    Py_ssize_t max_bytes,
    Py_ssize_t overhead,
    Py_ssize_t max_cost,
    list found not None,
):
    """Appends messages to `found`, each a list of its parts, and returns where the next one begins
    and their cost.

    at: where the first message begins.
    max_bytes: of a message with its frames; a larger one is left.
    overhead, max_cost: the fixed cost of a message besides its parts, and the cost at which to end.
    """
    cdef Text start = <Text>PyByteArray_AS_STRING(buffer)
    cdef Py_ssize_t end = PyByteArray_GET_SIZE(buffer), cost = 0, position, i
    cdef Py_ssize_t[PARTS] begins
    cdef Py_ssize_t[PARTS] sizes
    if at < 0:
        raise ValueError("the position is outside of the buffer")
    while cost < max_cost:
        position = at
        for i in range(PARTS):
            position = _read_head(start, position, end, i < PARTS - 1, &sizes[i])
            if position < 0:
                return at, cost
            begins[i] = position
            position += sizes[i]
        if position - at > max_bytes:
            return at, cost
        found.append(
            [
                PyBytes_FromStringAndSize(<const char *>start + begins[0], sizes[0]),
                PyBytes_FromStringAndSize(<const char *>start + begins[1], sizes[1]),
                PyBytes_FromStringAndSize(<const char *>start + begins[2], sizes[2]),
            ]
        )
        cost += sizes[0] + sizes[1] + sizes[2] + overhead
        at = position
    return at, cost


cdef inline Py_ssize_t _read_head(Text start, Py_ssize_t at, Py_ssize_t end, bint more, Py_ssize_t *size) noexcept nogil:
    """Returns where the body of a frame begins; -1 for one that is not whole, or not expected."""
    cdef uint64_t found = 0
    cdef int i
    if at + 2 > end or start[at] & ~LONG != (MORE if more else 0):
        return -1
    if start[at] & LONG:
        if at + 9 > end:
            return -1
        for i in range(1, 9):
            found = found << 8 | start[at + i]
        at += 9
    else:
        found = start[at + 1]
        at += 2
    if found > <uint64_t>(end - at):
        return -1
    size[0] = <Py_ssize_t>found
    return at
