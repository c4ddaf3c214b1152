# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Reads the token ids in the events of a stream.

`SentTokens` is the reference, to which other ids and events are left.
"""

from cpython.array cimport array, clone
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from fairlead_gateway.native.json_text cimport Text

cdef extern from *:
    """
    /* Macros, since Cython writes its structure of arrays below. An array's own `append` makes room
       ahead, for a sixteenth of its items. */
    #define has_room(ids, count) (((PyVarObject *)(ids))->ob_size + (count) <= (ids)->allocated)
    #define set_size(ids, size) Py_SET_SIZE((PyVarObject *)(ids), size)
    """
    bint has_room(array ids, Py_ssize_t count)
    void set_size(array ids, Py_ssize_t size)

cdef enum:
    MAX_IDS = 64  # of one event
    MAX_ID_DIGITS = 9
    NULL_BYTES = 4
    WORD_BYTES = 5

cdef array _TEMPLATE = array("I")


def read_ids(bytes event not None, Py_ssize_t start, Py_ssize_t end):
    """Returns the ids of a list in brackets between two places, as an array of type `I`.

    None if they are left to the reference, as negative ones and other JSON than integers are.
    """
    cdef Py_ssize_t count
    if not 0 <= start < end <= PyBytes_GET_SIZE(event):
        return None
    cdef Text text = <Text>PyBytes_AS_STRING(event)
    cdef array ids = clone(_TEMPLATE, (end - start) // 2, False)  # each has a digit and a delimiter
    if _read_ids(text + start, ids.data.as_uints, len(ids), &count) != text + end:
        return None
    found = clone(_TEMPLATE, count, False)
    memcpy((<array>found).data.as_uints, ids.data.as_uints, count * sizeof(uint32_t))
    return found


def take_text(bytes event not None, bytes head not None, bytes middle not None, bytes tail not None, array ids not None):
    """Adds an event's ids to `ids`, an array of type `I`; returns the event with null in their place.

    The event has `head`, a text, `middle`, the ids in brackets, and `tail`. Returns None for
    another one, and adds nothing then. A text with a bracket, or that may end as a key does, is left
    to the reference, too.
    """
    cdef Text start = <Text>PyBytes_AS_STRING(event)
    cdef Text end = start + PyBytes_GET_SIZE(event)
    cdef Py_ssize_t head_bytes = PyBytes_GET_SIZE(head), middle_bytes = PyBytes_GET_SIZE(middle)
    cdef Py_ssize_t tail_bytes = PyBytes_GET_SIZE(tail), kept_bytes, before, count, i
    cdef uint32_t found[MAX_IDS]
    cdef Text text, at
    cdef unsigned char *made
    if end - start < head_bytes or memcmp(start, PyBytes_AS_STRING(head), head_bytes) != 0:
        return None
    text = start + head_bytes
    at = _text_end(text, end)
    if at == NULL or end - at < middle_bytes + tail_bytes:
        return None
    if memcmp(at, PyBytes_AS_STRING(middle), middle_bytes) != 0:
        return None
    at += middle_bytes
    kept_bytes = at - start
    at = _read_ids(at, found, MAX_IDS, &count)
    if at == NULL or end - at != tail_bytes or memcmp(at, PyBytes_AS_STRING(tail), tail_bytes) != 0:
        return None
    if has_room(ids, count):
        before = len(ids)
        memcpy(ids.data.as_uints + before, found, count * sizeof(uint32_t))
        set_size(ids, before + count)
    else:
        for i in range(count):
            ids.append(found[i])
    taken = PyBytes_FromStringAndSize(NULL, kept_bytes + NULL_BYTES + tail_bytes)
    made = <unsigned char *>PyBytes_AS_STRING(taken)
    memcpy(made, start, kept_bytes)
    memcpy(made + kept_bytes, b"null", NULL_BYTES)
    memcpy(made + kept_bytes + NULL_BYTES, at, tail_bytes)
    return taken


cdef inline Text _text_end(Text text, Text end) noexcept nogil:
    """Returns the quote behind a text; NULL if it is empty or left to the reference."""
    cdef Text at = text
    while at < end and at[0] != c'"':
        if at[0] == c"[" or at[0] == c"\n":
            return NULL
        at += 2 if at[0] == c"\\" else 1
    if at >= end or at == text:
        return NULL
    if at - text < WORD_BYTES or (at - text > WORD_BYTES and at[-WORD_BYTES - 1] != c'"'):
        return at
    if memcmp(at - WORD_BYTES, b"usage", WORD_BYTES) == 0 or memcmp(at - WORD_BYTES, b"error", WORD_BYTES) == 0:
        return NULL
    return at


cdef inline Text _read_ids(Text at, uint32_t *found, Py_ssize_t max_ids, Py_ssize_t *count) noexcept nogil:
    """Reads at most so many ids in brackets; returns what follows, NULL if it is something else.

    It ends at the NUL byte behind each `bytes` object.
    """
    cdef uint32_t value, digit
    cdef Py_ssize_t number = 0
    cdef Text first
    if at[0] != c"[":
        return NULL
    while number < max_ids:
        at += 1
        first, value = at, 0
        while True:
            digit = <uint32_t>at[0] - c"0"  # wraps for what is below
            if digit > 9:
                break
            value = value * 10 + digit
            at += 1
        if at == first or at - first > MAX_ID_DIGITS or (first[0] == c"0" and at - first > 1):
            return NULL
        found[number] = value
        number += 1
        if at[0] == c"]":
            count[0] = number
            return at + 1
        if at[0] != c",":
            return NULL
    return NULL
