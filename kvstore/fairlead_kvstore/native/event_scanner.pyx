# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Reads the usual batches of KV events: blocks that are stored in the GPU, and blocks removed from
it, without an object for each token.

A batch that is accepted is valid for `decoder.event_slices`, with the same events. Every other one
is left to it: extra keys, adapters, other media, hashes that are bytes, unknown fields, events that
clear the cache, and all that is invalid.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

ctypedef const unsigned char *Text

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)

cdef enum:
    NIL = 0xC0
    FLOAT64 = 0xCB
    STR8 = 0xD9
    ARRAY16 = 0xDC
    ARRAY32 = 0xDD
    MAP16 = 0xDE

cdef enum Field:
    HASHES = 0
    PARENT = 1
    TOKENS = 2
    BLOCK_SIZE = 3
    LORA_ID = 4
    MEDIUM = 5
    LORA_NAME = 6
    EXTRA_KEYS = 7
    GROUP = 8
    KIND = 9
    WINDOW = 10
    LOCALITY = 11
    UNKNOWN = 12

# In the order of `Field`.
cdef const char **_NAMES = [
    b"block_hashes", b"parent_block_hash", b"token_ids", b"block_size", b"lora_id", b"medium", b"lora_name",
    b"extra_keys", b"group_idx", b"kv_cache_spec_kind", b"kv_cache_spec_sliding_window", b"locality",
]
cdef Py_ssize_t *_NAME_SIZES = [12, 17, 9, 10, 7, 6, 9, 10, 9, 18, 28, 8]
cdef int *_REMOVED_FIELDS = [HASHES, MEDIUM, GROUP, LOCALITY]

ctypedef struct Array:
    # `start` is NULL for an absent field.
    Text start
    Text end
    uint32_t count

ctypedef struct Event:
    bint is_removed
    uint32_t seen
    Array hashes
    Array tokens
    bint has_parent
    uint64_t parent
    uint64_t block_size
    bint has_medium
    bint has_extra_keys
    uint32_t extra_keys
    bint has_group
    int64_t group
    Text kind
    Py_ssize_t kind_size

cdef str _GPU = "GPU"
cdef str _FULL_ATTENTION = "full_attention"


def scan_events(bytes payload not None, Py_ssize_t max_events, uint64_t max_blocks, uint64_t max_block_tokens):
    """Returns the events of a batch and its time; None if it is not accepted.

    max_events, max_blocks, max_block_tokens: bounds of the events of a batch, of the blocks of an
    event, and of the tokens of a block.

    The result: the engine's time, the medium of all events (None or GPU), their blocks, and the
    events. A stored event: (parent or -1, handles, token ids, tokens of a block, whether extra keys
    are reported, group, kind). A removed event: (handles, group). Handles have eight bytes each,
    token ids four, little-endian.
    """
    cdef Text at = <Text>PyBytes_AS_STRING(payload), end = at + PyBytes_GET_SIZE(payload)
    cdef double wall
    cdef uint64_t bits, blocks = 0
    cdef uint32_t count = 0, number
    cdef Event event
    cdef bint has_medium = False
    cdef int parts
    cdef list events
    # Every read is bounded by the end; the bytes of an object have a zero behind them.
    if end - at < 12 or (at[0] != 0x92 and at[0] != 0x93) or at[1] != FLOAT64:
        return None
    parts = at[0] & 0x0F
    bits = _big_endian(at + 2, 8)
    memcpy(&wall, &bits, 8)
    at = _array_head(at + 10, end, &count)
    if at == NULL or count > max_events:
        return None
    events = []
    for number in range(count):
        at = _read_event(at, end, &event)
        if at == NULL or not _is_consistent(&event, max_blocks, max_block_tokens):
            return None
        if number == 0:
            has_medium = event.has_medium
        elif has_medium != event.has_medium:
            return None
        blocks += event.hashes.count
        found = _event_tuple(&event)
        if found is None:
            return None
        events.append(found)
    if parts == 3:
        at = _skip_rank(at, end)
    if at != end:
        return None
    return wall, (_GPU if has_medium else None), blocks, events


cdef object _event_tuple(const Event *event):
    """Returns an event as a tuple; None if its handles or token ids cannot be read."""
    cdef bytes handles = PyBytes_FromStringAndSize(NULL, 8 * event.hashes.count)
    cdef bytes tokens
    cdef object group = event.group if event.has_group else None, kind = None, parent = -1
    if not _read_handles(&event.hashes, <uint64_t *>PyBytes_AS_STRING(handles)):
        return None
    if event.is_removed:
        return handles, group
    tokens = PyBytes_FromStringAndSize(NULL, 4 * event.tokens.count)
    if not _read_tokens(&event.tokens, <uint32_t *>PyBytes_AS_STRING(tokens)):
        return None
    if event.kind != NULL:
        if event.kind_size == 14 and memcmp(event.kind, b"full_attention", 14) == 0:
            kind = _FULL_ATTENTION
        else:
            try:
                kind = PyUnicode_DecodeUTF8(<const char *>event.kind, event.kind_size, NULL)
            except UnicodeDecodeError:
                return None
    if event.has_parent and event.parent:
        parent = event.parent
    return parent, handles, tokens, event.block_size, event.has_extra_keys, group, kind


cdef bint _is_consistent(const Event *event, uint64_t max_blocks, uint64_t max_block_tokens) noexcept nogil:
    """Returns whether the required fields are there, and each block has its tokens."""
    cdef uint64_t blocks = event.hashes.count
    if event.hashes.start == NULL or not 0 < blocks <= max_blocks:
        return False
    if event.is_removed:
        return True
    if event.tokens.start == NULL or not event.seen >> PARENT & 1 or not 0 < event.block_size <= max_block_tokens:
        return False
    if event.has_extra_keys and event.extra_keys != blocks:
        return False
    return event.tokens.count == blocks * event.block_size


cdef Text _read_event(Text at, Text end, Event *event) noexcept nogil:
    """Reads an event, which is a map or an array. Returns its end; NULL if it is not accepted."""
    cdef uint32_t count, number
    cdef Text name
    cdef Py_ssize_t size = 0
    cdef bint has_kind = False
    event.is_removed = event.has_parent = event.has_medium = event.has_extra_keys = event.has_group = False
    event.hashes.start = event.tokens.start = event.kind = NULL
    event.seen, event.block_size, event.hashes.count, event.parent, event.group = 0, 0, 0, 0, 0
    if at >= end:
        return NULL
    if 0x80 <= at[0] <= 0x8F:
        count, at = at[0] & 0x0F, at + 1
        for number in range(count):
            at = _read_text(at, end, &name, &size)
            if at == NULL:
                return NULL
            if size == 4 and memcmp(name, b"type", 4) == 0:
                if number:  # before the type, fields are not known
                    return NULL
                at = _read_type(at, end, event)
                has_kind = True
            elif not number:
                return NULL
            else:
                at = _read_field(_field(name, size), at, end, event)
            if at == NULL:
                return NULL
        return at if has_kind else NULL
    at = _array_head(at, end, &count)
    if at == NULL or not count:
        return NULL
    at = _read_type(at, end, event)
    if at == NULL or count > (5 if event.is_removed else 13):
        return NULL
    for number in range(count - 1):
        at = _read_field(_REMOVED_FIELDS[number] if event.is_removed else number, at, end, event)
        if at == NULL:
            return NULL
    return at


cdef Text _read_type(Text at, Text end, Event *event) noexcept nogil:
    cdef Text name
    cdef Py_ssize_t size
    at = _read_text(at, end, &name, &size)
    if at == NULL:
        return NULL
    if size == 11 and memcmp(name, b"BlockStored", 11) == 0:
        return at
    if size == 12 and memcmp(name, b"BlockRemoved", 12) == 0:
        event.is_removed = True
        return at
    return NULL


cdef int _field(Text name, Py_ssize_t size) noexcept nogil:
    """Returns the field with this name."""
    cdef int field
    for field in range(UNKNOWN):
        if size == _NAME_SIZES[field] and memcmp(name, _NAMES[field], size) == 0:
            return field
    return UNKNOWN


cdef Text _read_field(int field, Text at, Text end, Event *event) noexcept nogil:
    """Reads the value of a field, which is accepted once."""
    cdef uint64_t value = 0
    cdef bint is_negative
    if field == UNKNOWN or event.seen >> field & 1 or at >= end:
        return NULL
    if event.is_removed and field not in (HASHES, MEDIUM, GROUP, LOCALITY):
        return NULL
    event.seen |= 1 << field
    if field == HASHES:
        return _skip_numbers(at, end, &event.hashes)
    if field == TOKENS:
        return _skip_numbers(at, end, &event.tokens)
    if field == BLOCK_SIZE:
        at = _read_number(at, end, &event.block_size, &is_negative)
        return NULL if at == NULL or is_negative else at
    if at[0] == NIL:
        return at + 1
    if field == PARENT:
        event.has_parent = True
        return _read_number(at, end, &event.parent, &is_negative)
    if field == MEDIUM:
        event.has_medium = True
        return at + 4 if end - at >= 4 and memcmp(at, b"\xa3GPU", 4) == 0 else NULL
    if field == EXTRA_KEYS:
        event.has_extra_keys = True
        return _skip_nils(at, end, &event.extra_keys)
    if field == GROUP:
        event.has_group = True
        at = _read_number(at, end, &value, &is_negative)
        event.group = <int64_t>value
        return NULL if at == NULL or is_negative or value >> 31 else at
    if field == KIND:
        return _read_text(at, end, &event.kind, &event.kind_size)
    if field == WINDOW:
        return _read_number(at, end, &value, &is_negative)
    return NULL  # adapters and localities


cdef Text _array_head(Text at, Text end, uint32_t *count) noexcept nogil:
    """Returns where the items of an array begin."""
    if at >= end:
        return NULL
    if 0x90 <= at[0] <= 0x9F:
        count[0] = at[0] & 0x0F
        return at + 1
    if at[0] == ARRAY16 and end - at >= 3:
        count[0] = <uint32_t>_big_endian(at + 1, 2)
        return at + 3
    if at[0] == ARRAY32 and end - at >= 5:
        count[0] = <uint32_t>_big_endian(at + 1, 4)
        return at + 5
    return NULL


cdef Text _read_text(Text at, Text end, Text *start, Py_ssize_t *size) noexcept nogil:
    """Reads a text of up to 255 bytes."""
    if at >= end:
        return NULL
    if 0xA0 <= at[0] <= 0xBF:
        start[0], size[0] = at + 1, at[0] & 0x1F
    elif at[0] == STR8 and end - at >= 2:
        start[0], size[0] = at + 2, at[1]
    else:
        return NULL
    at = start[0] + size[0]
    return at if at <= end else NULL


cdef inline uint64_t _big_endian(Text at, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | at[i]
    return value


cdef inline int _number_size(unsigned char first) noexcept nogil:
    """Returns the bytes of a number behind its first one; -1 for anything else."""
    if first <= 0x7F or first >= 0xE0:
        return 0
    if 0xCC <= first <= 0xD3:
        return 1 << (first & 3)
    return -1


cdef inline Text _read_number(Text at, Text end, uint64_t *value, bint *is_negative) noexcept nogil:
    """Reads a whole number, a negative one as its lowest 64 bits."""
    cdef int size
    cdef uint64_t found
    cdef unsigned char first
    if at >= end:
        return NULL
    first = at[0]
    size = _number_size(first)
    if size < 0 or end - at < 1 + size:
        return NULL
    if not size:
        value[0], is_negative[0] = <uint64_t><int64_t><signed char>first, first >= 0xE0
        return at + 1
    found = _big_endian(at + 1, size)
    is_negative[0] = first >= 0xD0 and found >> (8 * size - 1)
    if is_negative[0] and size < 8:
        found |= ~<uint64_t>0 << (8 * size)
    value[0] = found
    return at + 1 + size


cdef Text _skip_numbers(Text at, Text end, Array *array) noexcept nogil:
    """Returns the end of an array of whole numbers."""
    cdef uint32_t number
    cdef int size
    at = _array_head(at, end, &array.count)
    if at == NULL:
        return NULL
    array.start = at
    for number in range(array.count):
        if at >= end:
            return NULL
        size = _number_size(at[0])
        if size < 0:
            return NULL
        at += 1 + size
    array.end = at
    return at if at <= end else NULL


cdef Text _skip_nils(Text at, Text end, uint32_t *count) noexcept nogil:
    """Returns the end of an array that has nothing but nil."""
    cdef uint32_t number
    at = _array_head(at, end, count)
    if at == NULL or count[0] > <uint64_t>(end - at):
        return NULL
    for number in range(count[0]):
        if at[number] != NIL:
            return NULL
    return at + count[0]


cdef Text _skip_rank(Text at, Text end) noexcept nogil:
    cdef uint64_t value
    cdef bint is_negative
    if at >= end:
        return NULL
    return at + 1 if at[0] == NIL else _read_number(at, end, &value, &is_negative)


cdef bint _read_handles(const Array *array, uint64_t *into) noexcept nogil:
    cdef Text at = array.start
    cdef uint32_t number
    cdef bint is_negative
    for number in range(array.count):
        at = _read_number(at, array.end, into + number, &is_negative)
        if at == NULL:
            return False
    return True


cdef bint _read_tokens(const Array *array, uint32_t *into) noexcept nogil:
    """Writes the token ids; False if one of them does not fit 32 bits."""
    cdef Text at = array.start
    cdef uint32_t number
    cdef uint64_t value
    cdef bint is_negative
    for number in range(array.count):
        at = _read_number(at, array.end, &value, &is_negative)
        if at == NULL or is_negative or value >> 32:
            return False
        into[number] = <uint32_t>value
    return True
