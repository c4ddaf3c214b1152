# cython: language_level=3
"""Steps over JSON text, which the scanners of this package share.

Each function takes the place where something begins, and returns the place behind it; NULL if it is
invalid or not accepted. What is accepted is a strict subset of JSON.

Loops end at the NUL byte behind each `bytes` object, which no rule accepts.
"""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif

    /* Returns the place of the first quote, backslash, control or non-ASCII character; 16 without one. */
    static inline int special_character(const unsigned char *text) {
    #ifdef __SSE2__
        __m128i bytes = _mm_loadu_si128((const __m128i *)text);
        __m128i marks = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(92))),
            _mm_cmplt_epi8(bytes, _mm_set1_epi8(' ')));
        return __builtin_ctz(_mm_movemask_epi8(marks) | 1 << 16);
    #else
        typedef signed char sixteen_bytes __attribute__((vector_size(16)));
        typedef uint64_t two_words __attribute__((vector_size(16)));
        sixteen_bytes bytes;
        memcpy(&bytes, text, 16);
        two_words marks = (two_words)((bytes == '"') | (bytes == 92) | (bytes < ' '));
        if (marks[0]) return __builtin_ctzll(marks[0]) >> 3;
        return marks[1] ? 8 + (__builtin_ctzll(marks[1]) >> 3) : 16;
    #endif
    }
    """
    int special_character(const unsigned char *text) noexcept nogil

ctypedef const unsigned char *Text

cdef enum:
    MAX_DIGITS = 15  # of values that are read: exact as integers and as floats
    MAX_SKIPPED_DIGITS = 64
    MAX_EXPONENT_DIGITS = 2
    MAX_DEPTH = 32

ctypedef struct Scan:
    # The end of the text, and whether it holds other bytes than those of ASCII.
    Text end
    bint has_other_bytes


cdef inline bint is_utf8(const Scan *scan, Text start):
    """Returns whether a scanned text is UTF-8."""
    if not scan.has_other_bytes:
        return True
    try:
        PyUnicode_DecodeUTF8(<const char *>start, scan.end - start, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef inline Text skip_space(Text at) noexcept nogil:
    while at[0] == c" " or at[0] == c"\n" or at[0] == c"\r" or at[0] == c"\t":
        at += 1
    return at


cdef inline bint is_named(Text name, Text end, const char *expected, Py_ssize_t size) noexcept nogil:
    return end - name == size and memcmp(name, expected, size) == 0


cdef inline Text skip_key(Text name, Scan *scan) noexcept nogil:
    """Returns the quote behind a key that begins behind a quote, and that a colon follows.

    Keys with escapes are not accepted, since they may spell any name.
    """
    cdef Text end
    if name[-1] != c'"':
        return NULL
    end = skip_plain_string(name, scan)
    return end - 1 if end != NULL and skip_space(end)[0] == c":" else NULL


cdef inline Text skip_plain_string(Text at, Scan *scan) noexcept nogil:
    """Like `skip_string`, for a string without escapes only."""
    cdef Text end
    cdef int offset
    if scan.end - at >= 16:  # most of them are short
        offset = special_character(at)
        if offset < 16 and at[offset] == c'"':
            return at + offset + 1
    end = skip_string(at, scan)
    return NULL if end == NULL or memchr(at, c"\\", end - at) != NULL else end


cdef inline Text delimiter_behind(Text at, unsigned char closing) noexcept nogil:
    """Returns the comma or the closing bracket behind a member that ends at `at`.

    NULL for anything else, and behind a member that is NULL itself.
    """
    if at == NULL:
        return NULL
    at = skip_space(at)
    return at if at[0] == c"," or at[0] == closing else NULL


cdef inline Text value_after(Text key_end) noexcept nogil:
    """Returns where the value of a key begins."""
    return skip_space(skip_space(key_end + 1) + 1)


cdef inline Text skip_string(Text at, Scan *scan) noexcept nogil:
    """Returns what follows the closing quote of a string whose text begins at `at`."""
    cdef int offset
    while True:
        while scan.end - at >= 16:
            offset = special_character(at)
            at += offset
            if offset < 16:
                break
        while at[0] >= c" " and at[0] < 0x80 and at[0] != c'"' and at[0] != c"\\":
            at += 1
        if at[0] == c'"':
            return at + 1
        if at[0] == c"\\":
            at = skip_escape(at)
            if at == NULL:
                return NULL
        elif at[0] < c" ":
            return NULL
        else:
            scan.has_other_bytes = True
            while at[0] >= 0x80:
                at += 1


cdef inline Text skip_escape(Text at) noexcept nogil:
    """Half of a pair of surrogates is not accepted."""
    cdef unsigned char kind = at[1]
    if kind == c"n" or kind == c'"' or kind == c"\\" or kind == c"t" or kind == c"/":
        return at + 2
    if kind == c"r" or kind == c"b" or kind == c"f":
        return at + 2
    if kind != c"u":
        return NULL
    cdef int code = hexadecimal(at + 2)
    if code < 0 or 0xDC00 <= code <= 0xDFFF:
        return NULL
    if code < 0xD800 or code > 0xDFFF:
        return at + 6
    if at[6] != c"\\" or at[7] != c"u":
        return NULL
    return at + 12 if 0xDC00 <= hexadecimal(at + 8) <= 0xDFFF else NULL


cdef inline int hexadecimal(Text at) noexcept nogil:
    """Returns the value of four hexadecimal digits; -1 for anything else."""
    cdef int value = 0, i
    cdef unsigned char digit
    for i in range(4):
        digit = at[i]
        if c"0" <= digit <= c"9":
            value = value * 16 + digit - c"0"
        elif c"a" <= (digit | 0x20) <= c"f":
            value = value * 16 + (digit | 0x20) - c"a" + 10
        else:
            return -1
    return value


cdef inline Text skip_text_or_null(Text at, Scan *scan) noexcept nogil:
    if at[0] == c'"':
        return skip_string(at + 1, scan)
    return skip_literal(at, scan) if at[0] == c"n" else NULL


cdef inline Text skip_literal(Text at, const Scan *scan) noexcept nogil:
    """Returns the end of `true`, `false` or `null`."""
    if scan.end - at < 5:  # a bracket follows each of them in a valid body
        return NULL
    if memcmp(at, b"null", 4) == 0 or memcmp(at, b"true", 4) == 0:
        return at + 4
    return at + 5 if memcmp(at, b"false", 5) == 0 else NULL


cdef inline Text skip_digits(Text at) noexcept nogil:
    while c"0" <= at[0] <= c"9":
        at += 1
    return at


cdef inline Text skip_integer(Text at, int max_digits) noexcept nogil:
    """Returns the end of the digits of an integer without exponent or fraction; no `-0`."""
    cdef Text digits = at + 1 if at[0] == c"-" else at
    cdef Text end = skip_digits(digits)
    if end == digits or end - digits > max_digits or (digits[0] == c"0" and end - at > 1):
        return NULL
    return end


cdef inline Text skip_number(Text at, int max_digits, int max_exponent_digits) noexcept nogil:
    cdef Text start = at + 1 if at[0] == c"-" else at
    cdef Text digits
    at = skip_digits(start)
    if at == start or (start[0] == c"0" and at - start > 1):
        return NULL
    if at[0] == c".":
        digits = at + 1
        at = skip_digits(digits)
        if at == digits:
            return NULL
    if at - start > max_digits:
        return NULL
    if at[0] == c"e" or at[0] == c"E":
        digits = at + 2 if at[1] == c"+" or at[1] == c"-" else at + 1
        at = skip_digits(digits)
        if at == digits or at - digits > max_exponent_digits:
            return NULL
    return at


cdef inline int64_t integer_value(Text at, Text end) noexcept nogil:
    """Returns the value of digits, at most `MAX_DIGITS`."""
    cdef int64_t value = 0
    while at != end:
        value = value * 10 + at[0] - c"0"
        at += 1
    return value
