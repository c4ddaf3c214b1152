"""Text that changes with every request, which engines leave out of the prompt.

Claude Code puts a line about its version and its billing in front of its system prompt. A part of
it is another number in each request. vLLM leaves the block or the line out, so the key does, too.
`cache_control` is a mark for the API of Anthropic. Clients move it to the last block of each
request.

Source: `vllm/entrypoints/anthropic/serving.py`, `_convert_system_message`.
"""

import re
from typing import Final

_SIGN: Final = b"x-anthropic-billing-header"
_OBJECT: Final = rb'\{(?:[^{}"]|"[^{}"\\]*+")*+\}'
_FIELD: Final = rb'"(?:type|cache_control)"\s*:\s*(?:"[a-z_]*"|%b|null)' % _OBJECT
_BLOCKS: Final = re.compile(
    rb'([\[,])\s*(?:\{\s*(?:%b\s*,\s*){0,8}"text"\s*:\s*"x-anthropic-billing-header(?:[^"\\]|\\.)*+"'
    rb"(?:\s*,\s*%b){0,8}\s*\}\s*(,?)\s*){1,64}" % (_FIELD, _FIELD)
)
"""Blocks of text in an array that begin with such a line, and what stands around them."""
_LINE: Final = re.compile(rb'\A"x-anthropic-billing-header(?:[^"\\]|\\[^n])*+(?:\\n)?')
"""Such a line at the start of a system prompt that is one text."""
_MARK_SIGN: Final = b'"cache_control"'
_MARK: Final = re.compile(
    rb',\s*"cache_control"\s*:\s*(?:%b|null)|(?<!\\)"cache_control"\s*:\s*(?:%b|null)\s*,' % (_OBJECT, _OBJECT)
)


def without_marks(text: bytes) -> bytes:
    """Returns the JSON text of a prompt in messages without lines on billing and marks of a cache.

    Quotes inside a text are escaped, so no text of a client looks like a block or a mark.
    """
    if text.find(_SIGN) >= 0:
        text = _BLOCKS.sub(_between, _LINE.sub(b'"', text))
    return text if text.find(_MARK_SIGN) < 0 else _MARK.sub(b"", text)


def _between(found: re.Match[bytes]) -> bytes:
    return found[1] if found[1] == b"[" or found[2] else b""
