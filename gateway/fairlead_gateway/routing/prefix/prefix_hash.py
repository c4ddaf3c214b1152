"""The prefix hash of a prompt: a chain of keyed hashes over its raw JSON text.

A prompt is cut into blocks from its start. Each block's hash includes the one before, so equal
hashes mean equal text up to there. The text is what the client sent between the brackets of
`"messages"` (or `"prompt"`, `"input"`). Blocks grow: 256 B up to 8 KiB, 1 KiB up to 64 KiB, then 4
KiB. So a long prompt needs few hashes, and a match is never coarser than an eighth of its length.

The seed of the chain is everything else that decides what an engine caches: model, adapter, tenant
salt, tools. The key is the installation's secret, so clients cannot aim prompts at one instance.
The hash is XXH3-64.

Why: hashing tokens would cost hundreds of times more, and the engine's tokens are a function of
this text.

Pictures, audio, video and files in the JSON text of a prompt, which are work by part and not by
byte.

A picture of a megabyte is a thousand tokens or so, whatever its encoding. In the text that is
hashed and measured, a digest stands for it, repeated to the size that such a part usually has. So
equal pictures share a prefix, on every gateway.

A part is found by its key and form, never in a text: what a client writes into a message counts as
text.

The module is pure.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import xxhash

from fairlead_gateway.native import BLOCK_HASHES

BYTES_PER_TOKEN: Final = 4
"""Typical for English text. The router corrects it by what engines report."""

_SMALL_BLOCK: Final = 256
_SMALL_UNTIL: Final = 8 * 1024
_MIDDLE_BLOCK: Final = 1024
_MIDDLE_UNTIL: Final = 64 * 1024
_LARGE_BLOCK: Final = 4096
_SMALL_BLOCKS: Final = _SMALL_UNTIL // _SMALL_BLOCK
_MIDDLE_BLOCKS: Final = (_MIDDLE_UNTIL - _SMALL_UNTIL) // _MIDDLE_BLOCK
PREFIX_BLOCKS: Final = 4_096
"""Limit: hashed blocks of one prompt; later ones never decide a route."""
_FEW_BLOCKS: Final = 64
"""Fewer are found without a cache, whose lookup costs 500 instructions; that is up to 40 KiB."""
_MAX_CACHED_STARTS: Final = 4_096
_CHANGING_BYTES: Final = 65_536
"""The start of a prompt in which changing text is looked for."""
_HASH: Final[Callable[..., Any]] = xxhash.xxh3_64_intdigest
"""Typed `Any`, so that its results stay objects.

Why: compiled code would convert 64-bit numbers to its own integers and back at every step.
"""


_BLOCK_HASHES: Final[Callable[..., Any] | None] = BLOCK_HASHES

_DATA_URL: Final = b";base64,"
_MIN_BYTES: Final = 256
_MAX_PREFIX: Final = 128
"""The longest start of a data URL, and how far from its data the type of a part may stand."""
MAX_PARTS: Final = 512
"""Parts that are counted by part; engines take fewer. What is beyond counts as text."""
_MAX_PLACES: Final = 4_096
"""Places of one sign that are looked at, of parts or not."""
_SLICE_BYTES: Final = 1 << 20
"""A search goes in steps of this size, so that other threads get their turn."""
_KEY: Final = re.compile(rb'"([a-z_]{1,32})"[ \t\r\n]*:[ \t\r\n]*$')
_URL_KEYS: Final = frozenset(
    {
        *(b"url", b"data", b"image", b"file_data", b"file_url", b"input_image"),
        *(b"image_url", b"audio_url", b"video_url"),
    }
)
_RAW_KEYS: Final = ((b'"data"', ""), (b'"file_data"', "file"), (b'"image_embeds"', "image"))
_VALUE: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"')
_MEDIA_TYPE: Final = re.compile(rb'"media_type"[ \t\r\n]*:[ \t\r\n]*"([a-z]{1,16})/')
_AUDIO_FORMAT: Final = re.compile(rb'"format"[ \t\r\n]*:[ \t\r\n]*"[a-z0-9]{1,8}"')
_ADDRESS: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*(?:\{[^{}]{0,64}?"url"[ \t\r\n]*:[ \t\r\n]*)?"https?:')
_SOURCE: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*\{[^{}]{0,64}?"type"[ \t\r\n]*:[ \t\r\n]*"url"')
_REFERENCES: Final = (
    *((b'"%b_url"' % kind.encode(), kind, _ADDRESS) for kind in ("image", "audio", "video", "file")),
    (b'"source"', "image", _SOURCE),
    (b'"file_id"', "file", _VALUE),
)
"""The keys of parts that are named by an address, with their kind and what follows the key."""
_SIGNS: Final = (_DATA_URL, *[sign for sign, _ in _RAW_KEYS], *[sign for sign, _, _ in _REFERENCES])
_KINDS: Final = {b"image": "image", b"audio": "audio", b"video": "video"}
_CLASS_BYTES: Final = (64 << 10, 512 << 10, 4 << 20)
"""The bounds of the size classes, in bytes of base64."""
NOMINAL_TOKENS: Final[dict[str, tuple[int, ...]]] = {
    "image": (256, 768, 1_536, 3_072),
    "audio": (128, 512, 3_072, 8_192),
    "video": (512, 2_048, 8_192, 16_384),
    "file": (512, 2_048, 8_192, 16_384),
}
"""The tokens of a part by size class, before an engine has reported any. Parts that are named by an
address have the second class.
"""
_REFERENCE_CLASS: Final = 1


class PrefixChain:
    """The prefix hash of one prompt. It is never changed.

    - hashes: `hashes[i]` names the first `ends[i]` bytes of the text.
    - tail: names the whole text.

    Why: not frozen, since a frozen class is expensive to create.
    """

    __slots__ = ("ends", "hashes", "tail")

    def __init__(self, hashes: tuple[int, ...], ends: tuple[int, ...], tail: int) -> None:
        self.hashes = hashes
        self.ends = ends
        self.tail = tail

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PrefixChain):
            return False
        return self.tail == other.tail and self.hashes == other.hashes and self.ends == other.ends


def chain_seed(secret: bytes, seed: bytes) -> int:
    start: int = _HASH(secret + b"\0" + seed)
    return start


class ChainStarts:
    """The starts of chains with one secret. Those of models are computed once.

    changing_text: matches text that is left out of all chains; None: nothing is.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.changing_text: re.Pattern[bytes] | None = None
        self._by_model: dict[str, Any] = {}

    def of_model(self, key: str) -> Any:
        """Returns the start of chains that only the model decides."""
        start = self._by_model.get(key)
        if start is None:
            if len(self._by_model) >= _MAX_CACHED_STARTS:
                self._by_model.clear()
            start = self._by_model[key] = self.of_seed(key.encode())
        return start

    def of_seed(self, seed: bytes) -> Any:
        return chain_seed(self.secret, seed)


def without_changing_text(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    """Returns a prompt without the text that changes with every request.

    Only its start is searched, where such text makes all that follows another prefix.
    """
    return pattern.sub(b"", text[:_CHANGING_BYTES]) + text[_CHANGING_BYTES:]


def prefix_chain(
    text: bytes, *, secret: bytes, seed: bytes, blocks: int = PREFIX_BLOCKS, start: int = 0, end: int = -1
) -> PrefixChain:
    """Returns the chain of `text`, or of its part from `start` to `end`.

    blocks: the maximum number of blocks; the tail names the rest.
    """
    return hash_blocks(text, chain_seed(secret, seed), blocks=blocks, start=start, end=end)


def hash_blocks(text: bytes, state: Any, *, blocks: int = PREFIX_BLOCKS, start: int = 0, end: int = -1) -> PrefixChain:
    """Like `prefix_chain`, from the start of a chain.

    state: that start, an integer of 64 bits.
    """
    end = len(text) if end < 0 else end
    ends = block_ends(min(full_block_count(end - start), blocks))
    if _BLOCK_HASHES is not None:
        digests: tuple[int, ...] = _BLOCK_HASHES(text, start, ends, state)
        tail_start = start
        if ends:
            state, tail_start = digests[-1], start + ends[-1]
        return PrefixChain(digests, ends, _tail_hash(text, tail_start, end, state))
    hashes: list[Any] = []
    position = start
    view = None
    for block_end in ends:
        block_stop = start + block_end
        if block_stop - position <= _MIDDLE_BLOCK:  # a short part is cheaper to copy than to view
            state = _HASH(text[position:block_stop], state)
        else:
            view = memoryview(text) if view is None else view
            state = _HASH(view[position:block_stop], state)
        hashes.append(state)
        position = block_stop
    return PrefixChain(tuple(hashes), ends, _tail_hash(text, position, end, state))


def _tail_hash(text: bytes, start: int, end: int, state: Any) -> int:
    tail: int = _HASH(text[start:end] if end - start <= _MIDDLE_BLOCK else memoryview(text)[start:end], state)
    return tail


def full_block_count(size: int) -> int:
    """Returns how many complete blocks a text of `size` bytes has."""
    if size < _SMALL_UNTIL:
        return size // _SMALL_BLOCK
    if size < _MIDDLE_UNTIL:
        return _SMALL_BLOCKS + (size - _SMALL_UNTIL) // _MIDDLE_BLOCK
    return _SMALL_BLOCKS + _MIDDLE_BLOCKS + (size - _MIDDLE_UNTIL) // _LARGE_BLOCK


def block_bytes(position: float) -> int:
    return _SMALL_BLOCK if position < _SMALL_UNTIL else _MIDDLE_BLOCK if position < _MIDDLE_UNTIL else _LARGE_BLOCK


def block_ends(count: int) -> tuple[int, ...]:
    """Returns the ends of the first `count` blocks in bytes; the same object for equal counts."""
    return _FEW_ENDS[count] if count < _FEW_BLOCKS else _many_ends(count)


@cache
def _many_ends(count: int) -> tuple[int, ...]:
    return _first_block_ends(max(count, PREFIX_BLOCKS))[:count]


@cache
def _first_block_ends(count: int) -> tuple[int, ...]:
    """Returns where the first `count` blocks of a prompt end, in bytes. Later blocks are larger."""
    ends: list[int] = []
    position = 0
    while len(ends) < count:
        position += block_bytes(position)
        ends.append(position)
    return tuple(ends)


_FEW_ENDS: Final[tuple[tuple[int, ...], ...]] = tuple(
    _first_block_ends(max(count, PREFIX_BLOCKS))[:count] for count in range(_FEW_BLOCKS)
)


def shared_bytes(chain: PrefixChain, other: PrefixChain) -> int:
    """Returns how many bytes in complete blocks two prompts have in common from their start."""
    count = 0
    for digest, other_digest in zip(chain.hashes, other.hashes, strict=False):
        if digest != other_digest:
            break
        count += 1
    return chain.ends[count - 1] if count else 0


class MediaPart(NamedTuple):
    """A part that is not text: its kind and size class, and where its data lies in the text.

    start, end: equal for a part that is named by its address.
    """

    kind: str
    size_class: int
    start: int
    end: int

    @property
    def nominal_tokens(self) -> int:
        """The tokens of such a part, before an engine has reported any."""
        return NOMINAL_TOKENS[self.kind][self.size_class]


def find_media(text: bytes, start: int, end: int) -> list[MediaPart]:
    """Returns the parts in a text that are not text themselves, in order.

    A caller chooses the text. So the time for it grows with its length alone, and the parts are at
    most `MAX_PARTS`.
    """
    for sign in _SIGNS:
        if text.find(sign, start, end) >= 0:
            break
    else:
        return []
    inline = _data_urls(text, start, end)
    parts = list(inline)
    for key, kind in _RAW_KEYS:
        parts += _raw_data(text, (start, end), (key, kind), inline)
    parts.sort(key=_start_of)
    parts += _references(text, start, end, list(parts))
    parts.sort(key=_start_of)
    del parts[MAX_PARTS:]
    return parts


def without_media(text: bytes, start: int, end: int, parts: list[MediaPart]) -> bytes:
    """Returns `text[start:end]` with each part replaced by its digest, repeated to the length
    of its nominal tokens.

    A part that is named by its address has no data to digest: a filler stands for its tokens.
    """
    pieces: list[bytes] = []
    for part in parts:
        pieces.append(text[start : part.start])
        size = part.nominal_tokens * BYTES_PER_TOKEN
        digest = xxhash.xxh3_128_digest(memoryview(text)[part.start : part.end]) if part.end > part.start else b"-" * 16
        pieces.append((digest * (size // len(digest) + 1))[:size])
        start = part.end
    pieces.append(text[start:end])
    return b"".join(pieces)


def estimated_tokens(body: bytes) -> int:
    """Returns the tokens of a whole body, by its text and its parts, for any model."""
    parts = find_media(body, 0, len(body))
    inline = sum(part.end - part.start for part in parts)
    return (len(body) - inline) // BYTES_PER_TOKEN + sum(part.nominal_tokens for part in parts)


def _size_class(size: int) -> int:
    return sum(size >= bound for bound in _CLASS_BYTES)


def _start_of(part: MediaPart) -> int:
    return part.start


def _places(text: bytes, sign: bytes, start: int, end: int) -> Iterator[int]:
    """Yields where a sign stands in a text, in order and without overlaps."""
    at, overlap = start, len(sign) - 1
    for _ in range(_MAX_PLACES):
        found = -1
        while found < 0 and at < end:
            found = text.find(sign, at, min(end, at + _SLICE_BYTES + overlap))
            at = at + _SLICE_BYTES if found < 0 else found + len(sign)
        if found < 0:
            return
        yield found


class _Data:
    """The data of some parts, in order, for questions about places that only grow."""

    def __init__(self, parts: Sequence[MediaPart]) -> None:
        self._parts = parts
        self._next = 0

    def holds(self, at: int) -> bool:
        """Returns whether the data of a part holds a place."""
        parts = self._parts
        while self._next < len(parts) and parts[self._next].end <= at:
            self._next = self._next + 1
        return self._next < len(parts) and parts[self._next].start <= at


def _data_urls(text: bytes, start: int, end: int) -> list[MediaPart]:
    parts: list[MediaPart] = []
    close = start
    for at in _places(text, _DATA_URL, start, end):
        data = at + len(_DATA_URL)
        opening = text.rfind(b'"', max(start, at - _MAX_PREFIX), at)
        if at < close or opening < 0 or not text.startswith(b"data:", opening + 1):
            continue
        key = _KEY.search(text[max(start, opening - _MAX_PREFIX) : opening])
        if key is None or key[1] not in _URL_KEYS:
            continue
        close = text.find(b'"', data, end)
        if close < 0:
            return parts
        kind = _KINDS.get(text[opening + 6 : data].partition(b"/")[0], "file")
        parts.append(MediaPart(kind, _size_class(close - data), data, close))
    return parts


def _raw_data(
    text: bytes, bounds: tuple[int, int], sign: tuple[bytes, str], inline: Sequence[MediaPart]
) -> list[MediaPart]:
    """Returns the parts with base64 under a key without the form of a URL.

    inline: the parts that are data URLs; nothing is looked for in them.
    """
    start, end = bounds
    parts: list[MediaPart] = []
    urls, close = _Data(inline), start
    for at in _places(text, sign[0], start, end):
        value = None if at < close or urls.holds(at) else _VALUE.match(text, at + len(sign[0]), end)
        if value is None:
            continue
        close = text.find(b'"', value.end(), end)
        if close < 0:
            return parts
        if close - value.end() < _MIN_BYTES or text.startswith(b"data:", value.end()):
            continue
        kind = sign[1] or _kind_near(text[max(start, at - _MAX_PREFIX) : at], text[close + 1 : close + _MAX_PREFIX])
        if kind:
            parts.append(MediaPart(kind, _size_class(close - value.end()), value.end(), close))
    return parts


def _kind_near(before: bytes, after: bytes) -> str:
    """Returns the kind of data by its neighbours, in the same object; empty for none."""
    for fields in (before.rpartition(b"{")[2], after.partition(b"}")[0]):
        media_type = _MEDIA_TYPE.search(fields)
        if media_type is not None:
            return _KINDS.get(media_type[1], "file")
        if _AUDIO_FORMAT.search(fields) is not None:
            return "audio"
    return ""


def _references(text: bytes, start: int, end: int, inline: Sequence[MediaPart]) -> list[MediaPart]:
    """Returns the parts that are named by an address, outside of the data of others."""
    found: list[MediaPart] = []
    for sign, kind, follows in _REFERENCES:
        data = _Data(inline)
        for at in _places(text, sign, start, end):
            match = None if data.holds(at) else follows.match(text, at + len(sign), end)
            if match is not None:
                found.append(MediaPart(kind, _REFERENCE_CLASS, match.end(), match.end()))
    return found
