# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Searches an event for several words at once.

`upstream/event_words.py` is the reference.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp, memset

from fairlead_gateway.native.json_text cimport Text

cdef extern from *:
    int __builtin_ctz(uint32_t)

cdef enum:
    SECOND_BYTES = 256


def find_words(bytes event not None, tuple words not None):
    """Returns a number whose bit i is set if the event has word i.

    There are at most 32 words. Each begins with a quote and has two bytes or more.
    """
    cdef uint32_t begin[SECOND_BYTES]  # by their second byte
    cdef uint32_t found = 0, candidates
    cdef Py_ssize_t i, size
    cdef Text at = <Text>PyBytes_AS_STRING(event)
    cdef Text end = at + PyBytes_GET_SIZE(event)
    cdef Text word
    memset(begin, 0, sizeof(begin))
    for i in range(len(words)):
        begin[(<Text>PyBytes_AS_STRING(words[i]))[1]] |= <uint32_t>1 << i
    while True:
        at = <Text>memchr(at, c'"', end - at)
        if at == NULL:
            return found
        candidates = begin[at[1]] & ~found  # behind the last byte is a NUL
        while candidates:
            i = __builtin_ctz(candidates)
            candidates &= candidates - 1
            word, size = <Text>PyBytes_AS_STRING(words[i]), PyBytes_GET_SIZE(words[i])
            if end - at >= size and memcmp(at, word, size) == 0:
                found |= <uint32_t>1 << i
        at += 1
