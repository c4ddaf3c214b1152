# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Replaces a range of a body, and copies each byte once."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy


def splice(bytes body not None, Py_ssize_t start, Py_ssize_t end, bytes text not None):
    """Returns the body with `text` in place of its bytes from `start` to `end`.

    start, end: 0 ≤ start ≤ end ≤ the body's size. Others are clamped, so that no other memory is
        read.
    """
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body), added = PyBytes_GET_SIZE(text)
    start = max(0, min(start, size))
    end = max(start, min(end, size))
    cdef bytes made = PyBytes_FromStringAndSize(NULL, start + added + size - end)
    cdef char *to = PyBytes_AS_STRING(made)
    memcpy(to, PyBytes_AS_STRING(body), start)
    memcpy(to + start, PyBytes_AS_STRING(text), added)
    memcpy(to + start + added, PyBytes_AS_STRING(body) + end, size - end)
    return made
