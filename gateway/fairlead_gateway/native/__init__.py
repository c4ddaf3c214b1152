"""Loops over the bytes of requests and responses, in Cython: where compiled Python is slow.

- `json_text.pxd`: the grammar of JSON, for the scanners
- `chat_scanner.pyx`: the fields of a usual chat
- `usage_scanner.pyx`: the token counts in a response
- `block_hashes.pyx`: the hashes of a prompt's blocks

They exist only where the data plane is compiled (`scripts/compile.py`). Each is None elsewhere, and
its caller takes the way in Python. That way is the reference: results are equal, and what a scanner
does not accept is left to it.

Source: docs/decisions/0058.
"""

import sys
from collections.abc import Callable
from typing import Final

ScannedChat = tuple[str, str | None, str | None, int | None, bool, int, int]
ScannedUsage = tuple[bool, int, int, int]
ChatScan = Callable[[bytes, int], ScannedChat | None]
UsageScan = Callable[[bytes], ScannedUsage | None]
BlockHashes = Callable[[bytes, int, tuple[int, ...], int], tuple[int, ...]]


def _load() -> tuple[ChatScan | None, UsageScan | None, BlockHashes | None]:
    """Returns what was compiled; nothing of it on a machine with the other order of bytes."""
    if sys.byteorder != "little":
        return None, None, None
    try:
        from fairlead_gateway.native.block_hashes import block_hashes
        from fairlead_gateway.native.chat_scanner import scan_chat
        from fairlead_gateway.native.usage_scanner import scan_usage
    except ImportError:
        return None, None, None
    return scan_chat, scan_usage, block_hashes


_LOADED: Final = _load()
SCAN_CHAT: Final = _LOADED[0]
SCAN_USAGE: Final = _LOADED[1]
BLOCK_HASHES: Final = _LOADED[2]
