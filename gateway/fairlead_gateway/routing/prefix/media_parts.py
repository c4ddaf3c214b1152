"""Pictures, audio, video and files in the JSON text of a prompt, which are work by part and not by
byte.

A picture of a megabyte is a thousand tokens or so, whatever its encoding. In the text that is
hashed and measured, a digest stands for it, repeated to the size that such a part usually has. So
equal pictures share a prefix, on every gateway.

A part is found by its key and form, never in a text: what a client writes into a message counts as
text.

The module is pure.
"""

import re
from typing import Final, NamedTuple

import xxhash

from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN

_DATA_URL: Final = b";base64,"
_MIN_BYTES: Final = 256
_MAX_PREFIX: Final = 128
"""The longest start of a data URL, and how far from its data the type of a part may stand."""
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
_REFERENCE: Final = re.compile(
    rb'"(image|audio|video|file)_url"[ \t\r\n]*:[ \t\r\n]*(?:\{[^{}]{0,64}?"url"[ \t\r\n]*:[ \t\r\n]*)?"https?:'
    rb'|"source"[ \t\r\n]*:[ \t\r\n]*\{[^{}]{0,64}?"type"[ \t\r\n]*:[ \t\r\n]*"url"'
    rb'|"file_id"[ \t\r\n]*:[ \t\r\n]*"'
)
_REFERENCE_SIGNS: Final = (b'_url"', b'"source"', b'"file_id"')
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
    """Returns the parts in a text that are not text themselves, in order."""
    parts = _data_urls(text, start, end)
    inline = len(parts)
    for key, kind in _RAW_KEYS:
        _add_raw_data(text, (start, end), (key, kind), parts, inline)
    if any(text.find(sign, start, end) >= 0 for sign in _REFERENCE_SIGNS):
        parts += _references(text, start, end, sorted(parts, key=lambda part: part.start))
    return sorted(parts, key=lambda part: part.start)


def without_media(text: bytes, start: int, end: int, parts: list[MediaPart]) -> bytes:
    """Returns the text with a digest in place of each part, as long as its nominal tokens are."""
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


def _data_urls(text: bytes, start: int, end: int) -> list[MediaPart]:
    parts: list[MediaPart] = []
    at = start
    while (at := text.find(_DATA_URL, at, end)) >= 0:
        data = at + len(_DATA_URL)
        opening = text.rfind(b'"', max(start, at - _MAX_PREFIX), at)
        close = text.find(b'"', data, end)
        at = data
        if opening < 0 or close < 0 or not text.startswith(b"data:", opening + 1):
            continue
        key = _KEY.search(text[max(start, opening - _MAX_PREFIX) : opening])
        if key is None or key[1] not in _URL_KEYS:
            continue
        kind = _KINDS.get(text[opening + 6 : data].partition(b"/")[0], "file")
        parts.append(MediaPart(kind, _size_class(close - data), data, close))
        at = close
    return parts


def _add_raw_data(
    text: bytes, bounds: tuple[int, int], sign: tuple[bytes, str], parts: list[MediaPart], inline: int
) -> None:
    """Adds the parts with base64 under a key without the form of a URL.

    inline: the parts from the front that are data URLs; nothing is looked for in them.
    """
    start, end = bounds
    at = start
    while (at := text.find(sign[0], at, end)) >= 0:
        skipped = next((part.end for part in parts[:inline] if part.start <= at < part.end), 0)
        value = _VALUE.match(text, at + len(sign[0]), end)
        key_start = at
        at = skipped or at + len(sign[0])
        if skipped or value is None:
            continue
        close = text.find(b'"', value.end(), end)
        if close - value.end() < _MIN_BYTES or text.startswith(b"data:", value.end()):
            continue
        kind = sign[1] or _kind_near(
            text[max(start, key_start - _MAX_PREFIX) : key_start], text[close + 1 : close + _MAX_PREFIX]
        )
        if kind:
            parts.append(MediaPart(kind, _size_class(close - value.end()), value.end(), close))
            at = close


def _kind_near(before: bytes, after: bytes) -> str:
    """Returns the kind of data by its neighbours, in the same object; empty for none."""
    for fields in (before.rpartition(b"{")[2], after.partition(b"}")[0]):
        media_type = _MEDIA_TYPE.search(fields)
        if media_type is not None:
            return _KINDS.get(media_type[1], "file")
        if _AUDIO_FORMAT.search(fields) is not None:
            return "audio"
    return ""


def _references(text: bytes, start: int, end: int, inline: list[MediaPart]) -> list[MediaPart]:
    """Returns the parts that are named by an address, outside of the data of others."""
    found: list[MediaPart] = []
    for gap_end, next_start in [*((part.start, part.end) for part in inline), (end, end)]:
        for match in _REFERENCE.finditer(text, start, gap_end):
            kind = (match[1] or b"file").decode() if match[0].startswith(b'"file_id"') or match[1] else "image"
            found.append(MediaPart(kind, _REFERENCE_CLASS, match.end(), match.end()))
        start = next_start
    return found
