# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Finds the first message of a user that is written as most clients do.

It does the same as `usual_end` of `routes.worker.route_choice`, for every text.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp

ctypedef const unsigned char *Text

cdef enum:
    COMPACT_SIZE = 26
    SPACED_SIZE = 29

cdef const char *COMPACT = b'{"role":"user","content":"'
cdef const char *SPACED = b'{"role": "user", "content": "'
cdef const char *USER = b'"user"'


def user_message_end(bytes text not None, Py_ssize_t start, Py_ssize_t end, Py_ssize_t max_bytes):
    """Returns the end of that message, or of the part of it that counts; 0 if it is absent or
    written in another way.

    start, end: where the messages lie, within the text.
    max_bytes: the size of the part that counts.
    """
    cdef Text whole = <Text>PyBytes_AS_STRING(text)
    cdef Text first = whole + start, last = whole + end, behind = whole + PyBytes_GET_SIZE(text)
    cdef Text opening, limit, at
    cdef Py_ssize_t size
    if start < 0 or start > end or last > behind:
        return 0
    opening = _first_opening(first, last, &size)
    if opening == NULL or _names_user(first, opening):
        return 0
    limit = opening + min(max_bytes, behind - opening + 1)
    at = _string_end(opening + size, limit if limit < behind else behind)
    if at >= limit or (at == NULL and limit <= behind):
        return (limit if limit < last else last) - whole
    if at != NULL and at < last and at[0] == c"}":
        return at + 1 - whole
    return 0


cdef inline Text _first_opening(Text at, Text last, Py_ssize_t *size) noexcept nogil:
    """Returns where the message begins, with the size up to its text; NULL without one."""
    while last - at >= COMPACT_SIZE:
        at = <Text>memchr(at, c"{", last - at - COMPACT_SIZE + 1)
        if at == NULL:
            return NULL
        if memcmp(at, COMPACT, COMPACT_SIZE) == 0:
            size[0] = COMPACT_SIZE
            return at
        if last - at >= SPACED_SIZE and memcmp(at, SPACED, SPACED_SIZE) == 0:
            size[0] = SPACED_SIZE
            return at
        at += 1
    return NULL


cdef inline bint _names_user(Text at, Text last) noexcept nogil:
    while last - at >= 6:
        at = <Text>memchr(at, c'"', last - at - 5)
        if at == NULL:
            return False
        if memcmp(at, USER, 6) == 0:
            return True
        at += 1
    return False


cdef inline Text _string_end(Text at, Text limit) noexcept nogil:
    """Returns what follows the closing quote of a text that begins at `at`; NULL if the quote is
    not before `limit`."""
    cdef Text quote, escapes
    while at < limit:
        quote = <Text>memchr(at, c'"', limit - at)
        if quote == NULL:
            return NULL
        escapes = quote
        while escapes > at and escapes[-1] == c"\\":
            escapes -= 1
        if (quote - escapes) % 2 == 0:
            return quote + 1
        at = quote + 1
    return NULL
