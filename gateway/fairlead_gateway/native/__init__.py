"""Loops over the bytes of requests and responses, in Cython: where compiled Python is slow.

- `json_text.pxd`: the grammar of JSON, for the scanners
- `chat_scanner.pyx`: the fields of a usual chat, message or response
- `conversation_scanner.pyx`: the first message of a user
- `body_splicer.pyx`: a body with another text at one place
- `usage_scanner.pyx`: the token counts in a response
- `block_hashes.pyx`: the hashes of a prompt's blocks
- `token_ids.pyx`: the token ids in the events of a stream
- `word_search.pyx`: several words in an event at once

They exist only where the data plane is compiled (`scripts/compile.py`). Each is None elsewhere, and
its caller runs the Python code. That code is the reference: results are equal, and what a scanner
does not accept is left to it.

Source: docs/decisions/0058.
"""

import sys
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

ScannedChat = tuple[str, str | None, str | None, int | None, bool, int, int, int, int]
ScannedUsage = tuple[bool, int, int, int]
ChatScan = Callable[[bytes, int], ScannedChat | None]
UsageScan = Callable[[bytes], ScannedUsage | None]
UserMessageEnd = Callable[[bytes, int, int, int], int]
Splice = Callable[[bytes, int, int, bytes], bytes]
BlockHashes = Callable[[bytes, int, tuple[int, ...], int], tuple[int, ...]]
ReadIds = Callable[[bytes, int, int], "array[int] | None"]
TakeText = Callable[[bytes, bytes, bytes, bytes, "array[int]"], bytes | None]
WordSearch = Callable[[bytes, tuple[bytes, ...]], int]


class _Loops(NamedTuple):
    scan_chat: ChatScan | None = None
    scan_usage: UsageScan | None = None
    block_hashes: BlockHashes | None = None
    user_message_end: UserMessageEnd | None = None
    splice: Splice | None = None
    scan_messages: ChatScan | None = None
    scan_responses: ChatScan | None = None
    scan_named_usage: UsageScan | None = None
    take_text: TakeText | None = None
    read_ids: ReadIds | None = None
    find_words: WordSearch | None = None


def _load() -> _Loops:
    """Returns what was compiled; empty on a big-endian machine."""
    if sys.byteorder != "little":
        return _Loops()
    try:
        from fairlead_gateway.native.block_hashes import block_hashes
        from fairlead_gateway.native.body_splicer import splice
        from fairlead_gateway.native.chat_scanner import scan_chat, scan_messages, scan_responses
        from fairlead_gateway.native.conversation_scanner import user_message_end
        from fairlead_gateway.native.token_ids import read_ids, take_text
        from fairlead_gateway.native.usage_scanner import scan_named_usage, scan_usage
        from fairlead_gateway.native.word_search import find_words
    except ImportError:
        return _Loops()
    scans = scan_messages, scan_responses, scan_named_usage
    streams = take_text, read_ids, find_words
    return _Loops(scan_chat, scan_usage, block_hashes, user_message_end, splice, *scans, *streams)


_LOADED: Final = _load()
SCAN_CHAT: Final = _LOADED.scan_chat
SCAN_USAGE: Final = _LOADED.scan_usage
BLOCK_HASHES: Final = _LOADED.block_hashes
USER_MESSAGE_END: Final = _LOADED.user_message_end
SPLICE: Final = _LOADED.splice
SCAN_MESSAGES: Final = _LOADED.scan_messages
SCAN_RESPONSES: Final = _LOADED.scan_responses
SCAN_NAMED_USAGE: Final = _LOADED.scan_named_usage
TAKE_TEXT: Final = _LOADED.take_text
READ_IDS: Final = _LOADED.read_ids
FIND_WORDS: Final = _LOADED.find_words
