# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Reads the token counts in a whole response of an engine, without objects for the rest.

Every response that is accepted is valid for `attempt`, with the same counts. Others are left
to it, in particular each invalid one, and each whose choices are null or empty.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fairlead_gateway.native.json_text cimport (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_EXPONENT_DIGITS,
    MAX_SKIPPED_DIGITS,
    Scan,
    Text,
    delimiter_behind,
    integer_value,
    is_named,
    is_utf8,
    skip_integer,
    skip_key,
    skip_literal,
    skip_number,
    skip_space,
    skip_string,
    value_after,
)

ctypedef struct Counts:
    # `has_usage`: the response has the field, null or not.
    bint has_usage
    bint is_present
    bint has_details
    bint is_split
    bint is_named_form
    int64_t prompt_tokens
    int64_t completion_tokens
    int64_t cached_tokens
    int64_t created_tokens

cdef enum Level:
    RESPONSE = 1
    USAGE = 2
    DETAILS = 3


def scan_usage(bytes body not None):
    """Returns the token counts of a response; None if it is not accepted.

    The result: whether the response has a usage, and its tokens of prompt, completion and cache. An
    absent count is -1.
    """
    return _scanned(body, False)


def scan_named_usage(bytes body not None):
    """Returns the same for a message or a response, which have names of their own for counts."""
    return _scanned(body, True)


cdef _scanned(bytes body, bint is_named_form):
    cdef Text start = <Text>PyBytes_AS_STRING(body)
    cdef Scan scan
    cdef Counts counts
    scan.end, scan.has_other_bytes = start + PyBytes_GET_SIZE(body), False
    counts.has_usage = counts.is_present = counts.has_details = counts.is_split = False
    counts.prompt_tokens = counts.completion_tokens = counts.cached_tokens = -1
    counts.created_tokens, counts.is_named_form = -1, is_named_form
    cdef Text at = _read_object(RESPONSE, skip_space(start), &scan, &counts)
    if at == NULL or skip_space(at) != scan.end or not is_utf8(&scan, start):
        return None
    if counts.prompt_tokens >= 0:  # the parts of a message's prompt add up
        if counts.created_tokens > 0:
            counts.prompt_tokens += counts.created_tokens
        if counts.is_split and counts.cached_tokens > 0:
            counts.prompt_tokens += counts.cached_tokens
    return (
        True if counts.is_present else False,
        counts.prompt_tokens,
        counts.completion_tokens,
        counts.cached_tokens,
    )


cdef Text _read_object(Level level, Text at, Scan *scan, Counts *counts) noexcept nogil:
    """Reads the counts in one of the objects around them."""
    cdef Text name, end
    if at[0] != c"{":
        return NULL
    while True:
        name = skip_space(at + 1) + 1
        end = skip_key(name, scan)
        if end == NULL:
            return NULL
        at = value_after(end)
        if level == RESPONSE:
            at = _read_response_field(name, end, at, scan, counts)
        elif level == USAGE:
            at = _read_usage_field(name, end, at, scan, counts)
        elif is_named(name, end, b"cached_tokens", 13):
            at = _read_count(at, scan, &counts.cached_tokens)
        else:
            at = _skip_value(at, DETAILS, scan)
        at = delimiter_behind(at, c"}")
        if at == NULL:
            return NULL
        if at[0] == c"}":
            return at + 1


cdef inline Text _read_response_field(Text name, Text end, Text at, Scan *scan, Counts *counts) noexcept nogil:
    if not is_named(name, end, b"usage", 5):
        if is_named(name, end, b"choices", 7) and (at[0] == c"n" or (at[0] == c"[" and skip_space(at + 1)[0] == c"]")):
            return NULL
        return _skip_value(at, RESPONSE, scan)
    if counts.has_usage:
        return NULL
    counts.has_usage = True
    if at[0] == c"n":
        return skip_literal(at, scan)
    counts.is_present = True
    return _read_object(USAGE, at, scan, counts)


cdef inline Text _read_usage_field(Text name, Text end, Text at, Scan *scan, Counts *counts) noexcept nogil:
    if counts.is_named_form:
        if is_named(name, end, b"input_tokens", 12):
            return _read_count(at, scan, &counts.prompt_tokens)
        if is_named(name, end, b"output_tokens", 13):
            return _read_count(at, scan, &counts.completion_tokens)
        if is_named(name, end, b"cache_read_input_tokens", 23):
            counts.is_split = True
            return _read_count(at, scan, &counts.cached_tokens)
        if is_named(name, end, b"cache_creation_input_tokens", 27):
            return _read_count(at, scan, &counts.created_tokens)
        if _is_chat_count(name, end):
            return NULL
        if not is_named(name, end, b"input_tokens_details", 20):
            return _skip_value(at, USAGE, scan)
    else:
        if is_named(name, end, b"prompt_tokens", 13):
            return _read_count(at, scan, &counts.prompt_tokens)
        if is_named(name, end, b"completion_tokens", 17):
            return _read_count(at, scan, &counts.completion_tokens)
        if not is_named(name, end, b"prompt_tokens_details", 21):
            return _skip_value(at, USAGE, scan)
    if counts.has_details:
        return NULL
    counts.has_details = True
    return skip_literal(at, scan) if at[0] == c"n" else _read_object(DETAILS, at, scan, counts)


cdef inline bint _is_chat_count(Text name, Text end) noexcept nogil:
    """Returns whether a count has the name that it has in chats."""
    return (
        is_named(name, end, b"prompt_tokens", 13)
        or is_named(name, end, b"completion_tokens", 17)
        or is_named(name, end, b"prompt_tokens_details", 21)
    )


cdef Text _read_count(Text at, const Scan *scan, int64_t *count) noexcept nogil:
    """Reads a count, which is accepted once, or null."""
    cdef Text end
    if count[0] >= 0 or at[0] == c"-":
        return NULL
    if at[0] == c"n":
        return skip_literal(at, scan)
    end = skip_integer(at, MAX_DIGITS)
    if end != NULL:
        count[0] = integer_value(at, end)
    return end


cdef Text _skip_value(Text at, int depth, Scan *scan) noexcept nogil:
    """Returns the end of any value that is not nested too deep."""
    cdef unsigned char closing
    if at[0] == c'"':
        return skip_string(at + 1, scan)
    if at[0] != c"{" and at[0] != c"[":
        return skip_literal(at, scan) if at[0] > c"9" else skip_number(at, MAX_SKIPPED_DIGITS, MAX_EXPONENT_DIGITS)
    closing = c"}" if at[0] == c"{" else c"]"
    if depth == MAX_DEPTH:
        return NULL
    at = skip_space(at + 1)
    if at[0] == closing:
        return at + 1
    while True:
        if closing == c"}":
            at = skip_key(at + 1, scan)
            if at == NULL:
                return NULL
            at = value_after(at)
        at = delimiter_behind(_skip_value(at, depth + 1, scan), closing)
        if at == NULL:
            return NULL
        if at[0] == closing:
            return at + 1
        at = skip_space(at + 1)
