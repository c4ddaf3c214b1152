"""A fuzz target: prompts in messages, whose lines on billing and marks of a cache are left out.

What parses still parses, and the texts that stay are what they were. The time is linear. The second
reader is the standard library's JSON parser.
"""

import re
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from zlib import crc32

from fuzzing.target import Target, decode_distinct

from fairlead_gateway.dialects.volatile_text import without_marks

_SIGN = "x-anthropic-billing-header"
_BLOCK_KEYS = {"type", "text", "cache_control"}
_LONG_BYTES = 1 << 16
_MAX_SECONDS = 0.25
"""For 64 KiB. They take a millisecond; in quadratic time it would be minutes."""


def check(data: bytes) -> Hashable:
    """Checks what stays of a prompt."""
    out = without_marks(data)
    assert len(out) <= len(data)
    if data and not crc32(data) % 16:
        repeated = data * (_LONG_BYTES // len(data))
        begun = time.thread_time()
        without_marks(repeated)
        assert time.thread_time() - begun < _MAX_SECONDS, "the time is not linear"
    was = decode_distinct(data)
    if not isinstance(was, dict | list):
        return None
    stays = decode_distinct(out)
    assert isinstance(stays, dict | list), "what parsed does not parse any more"
    before, after = list(texts(was)), list(texts(stays))
    assert before == after, "another text"
    return len(after), len(before), len(out) == len(data)


def texts(value: Any) -> Iterator[str]:
    """Yields the texts of a prompt, without marks of a cache and blocks with lines on billing."""
    if isinstance(value, str):
        if not value.startswith(_SIGN):
            yield value
    elif isinstance(value, list):
        for item in value:
            if not (isinstance(item, dict) and str(item.get("text")).startswith(_SIGN) and item.keys() <= _BLOCK_KEYS):
                yield from texts(item)
    elif isinstance(value, dict):
        for name, member in value.items():
            if name != "cache_control":
                yield name
                yield from texts(member)


_LINE = b'"x-anthropic-billing-header: cc_version=2.1.7; cch=a1;\\nYou are."'
_BLOCKS = [
    b'{"type":"text","text":%b}' % _LINE,
    b'{"text":%b,"type":"text"}' % _LINE,
    b'{"type": "text", "text": %b, "cache_control": {"type": "ephemeral"}}' % _LINE,
    b'{"cache_control":null,"type":"text","text":%b}' % _LINE,
    b'{"type":"text","text":"Be brief.","cache_control":{"type":"ephemeral","ttl":"1h"}}',
    b'{"type":"text","text":"say \\",\\"cache_control\\":null,\\" or {\\"text\\":"}',
    b'{"cache_control":{"type":"ephemeral"},"type":"tool_use","input":{"cache_control":"x","a":[1,{}]}}',
    b'{"cache_control":{"a":"}"}}',
]


def grow(draw: Callable[[], float]) -> bytes:
    """Writes a prompt of blocks."""
    comma = b"," if draw() < 0.7 else b" ,\n"
    blocks = comma.join(_BLOCKS[int(draw() * len(_BLOCKS))] for _ in range(int(draw() * 5)))
    if draw() < 0.5:
        return b"[%b]" % blocks
    return b'[{"role":"user","content":[%b]%b}]' % (blocks, b"" if draw() < 0.7 else b',"cache_control":null')


_SEEDS = [b"[%b]" % b",".join(_BLOCKS), _LINE, b'[{"role":"user","content":[%b]}]' % _BLOCKS[0], *_BLOCKS]
_WORDS = [
    b'"cache_control"', b'"cache_control":null', b',"cache_control":{', b'"text":"x-anthropic-billing-header', b'"type"',
    b'{"text":', b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'\\"', b"\\n", b"null", b" ", b"    ", b"\n", b"1", b'"a"',
    _LINE, *_BLOCKS,
]  # fmt: skip
_PIECES = re.compile(rb'"(?:[^"\\]|\\.)*"|[^"]')
VOLATILE_TEXT = Target("volatile_text", "prompts in messages", check, _SEEDS, _WORDS, _PIECES, 0.02, grow)
