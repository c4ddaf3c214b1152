# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The chained XXH3-64 hashes of the blocks of a prompt, without a call for each block.

Every block is longer than 240 bytes, so only XXH3's way for long inputs is needed here. A property
test compares the results with those of the package xxhash.

Source: the specification of xxHash, https://github.com/Cyan4973/xxHash/blob/v0.8.3/doc/xxhash_spec.md
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif

    /* Adds a stripe of 64 bytes to eight lanes. */
    static inline void accumulate(uint64_t *lanes, const unsigned char *text, const unsigned char *secret) {
    #ifdef __SSE2__
        for (int i = 0; i < 4; i++) {
            __m128i value = _mm_loadu_si128((const __m128i *)text + i);
            __m128i key = _mm_xor_si128(value, _mm_loadu_si128((const __m128i *)secret + i));
            __m128i product = _mm_mul_epu32(key, _mm_srli_epi64(key, 32));
            __m128i sum = _mm_add_epi64(product, _mm_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2)));
            __m128i lane = _mm_loadu_si128((const __m128i *)lanes + i);
            _mm_storeu_si128((__m128i *)lanes + i, _mm_add_epi64(lane, sum));
        }
    #else
        for (int i = 0; i < 8; i++) {
            uint64_t value, key;
            memcpy(&value, text + 8 * i, 8);
            memcpy(&key, secret + 8 * i, 8);
            key ^= value;
            lanes[i ^ 1] += value;
            lanes[i] += (key & 0xFFFFFFFF) * (key >> 32);
        }
    #endif
    }
    """
    ctypedef unsigned long long uint128_t "unsigned __int128"
    void accumulate(uint64_t *lanes, const unsigned char *text, const unsigned char *secret) noexcept nogil

cdef enum:
    MIN_BLOCK = 241
    LANES = 8
    STRIPE = 64
    SECRET = 192
    STRIPES_PER_ROUND = (SECRET - STRIPE) // 8

ctypedef const unsigned char *Text

cdef uint64_t PRIME32_1 = 0x9E3779B1
cdef uint64_t PRIME32_2 = 0x85EBCA77
cdef uint64_t PRIME32_3 = 0xC2B2AE3D
cdef uint64_t PRIME64_1 = 0x9E3779B185EBCA87
cdef uint64_t PRIME64_2 = 0xC2B2AE3D27D4EB4F
cdef uint64_t PRIME64_3 = 0x165667B19E3779F9
cdef uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63
cdef uint64_t PRIME64_5 = 0x27D4EB2F165667C5
cdef uint64_t PRIME_MX1 = 0x165667919E3779F9

cdef bytes _DEFAULT_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def block_hashes(bytes text not None, Py_ssize_t start, tuple ends not None, uint64_t state):
    """Returns the hash of each block of `text`; the seed of each is the hash before.

    start: where the first block begins.
    ends: of the blocks, counted from `start`; each is longer than 240 bytes.
    state: the seed of the first block.
    """
    cdef Text base = <Text>PyBytes_AS_STRING(text) + start
    cdef Text secret = <Text>PyBytes_AS_STRING(_DEFAULT_SECRET)
    cdef Py_ssize_t count = PyTuple_GET_SIZE(ends), size = PyBytes_GET_SIZE(text) - start
    cdef Py_ssize_t position = 0, end, i
    cdef tuple hashes = PyTuple_New(count)
    cdef object digest
    for i in range(count):
        end = ends[i]
        if start < 0 or end - position < MIN_BLOCK or end > size:
            raise ValueError("the blocks are outside of the text, or too short")
        state = _long_hash(base + position, end - position, state, secret)
        digest = state
        Py_INCREF(digest)
        PyTuple_SET_ITEM(hashes, i, digest)
        position = end
    return hashes


cdef inline uint64_t _word(Text at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef uint64_t _long_hash(Text at, Py_ssize_t size, uint64_t seed, Text default_secret) noexcept nogil:
    """Returns the XXH3-64 hash of more than 240 bytes."""
    cdef unsigned char[SECRET] secret
    cdef uint64_t[LANES] lanes
    cdef uint64_t value
    cdef Py_ssize_t stripes = (size - 1) // STRIPE, stripe, i
    for i in range(SECRET // 16):
        value = _word(default_secret + 16 * i) + seed
        memcpy(secret + 16 * i, &value, 8)
        value = _word(default_secret + 16 * i + 8) - seed
        memcpy(secret + 16 * i + 8, &value, 8)
    lanes[0], lanes[1], lanes[2], lanes[3] = PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3
    lanes[4], lanes[5], lanes[6], lanes[7] = PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1
    for stripe in range(stripes):
        accumulate(lanes, at + STRIPE * stripe, secret + 8 * (stripe % STRIPES_PER_ROUND))
        if stripe % STRIPES_PER_ROUND == STRIPES_PER_ROUND - 1:
            for i in range(LANES):
                lanes[i] = ((lanes[i] ^ lanes[i] >> 47) ^ _word(secret + SECRET - STRIPE + 8 * i)) * PRIME32_1
    accumulate(lanes, at + size - STRIPE, secret + SECRET - STRIPE - 7)
    value = <uint64_t>size * PRIME64_1
    for i in range(0, LANES, 2):
        value += _folded(lanes[i] ^ _word(secret + 11 + 8 * i), lanes[i + 1] ^ _word(secret + 19 + 8 * i))
    value = (value ^ value >> 37) * PRIME_MX1
    return value ^ value >> 32


cdef inline uint64_t _folded(uint64_t first, uint64_t second) noexcept nogil:
    cdef uint128_t product = <uint128_t>first * second
    return <uint64_t>product ^ <uint64_t>(product >> 64)
