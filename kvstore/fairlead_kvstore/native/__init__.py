"""Loops over the bytes of KV events and over the rows of a block table, in Cython: where compiled
Python is slow.

- `frame_reader.pyx`: the messages of a publisher
- `event_scanner.pyx`: the events of a usual batch
- `block_rows.pyx`: rows of a `BlockTable`

They exist only where the data plane is compiled (`scripts/compile.py`). Each is None elsewhere, and
its caller takes the way in Python. That way is the reference: results are equal, and what these do
not accept is left to it.

Source: docs/decisions/0058.
"""

import sys
from array import array
from collections.abc import Callable
from typing import Any, Final, NamedTuple

ScannedEvent = tuple[Any, ...]
ScannedBatch = tuple[float, str | None, int, list[ScannedEvent]]
EventScan = Callable[[bytes, int, int, int], ScannedBatch | None]
MessageRead = Callable[[bytearray, int, int, int, int, list[list[bytes]]], tuple[int, int]]
RowAdd = Callable[..., tuple[int, int, int, int, int]]
RowFind = Callable[[tuple[Any, ...], "array[int]", int, int], int]
RowsEnter = Callable[[tuple[Any, ...], "array[int]", "array[int]", int, int, int, list[int]], tuple[int, int, int]]


class _Loaded(NamedTuple):
    """The compiled functions; each is None where it is not compiled."""

    scan_events: EventScan | None = None
    read_messages: MessageRead | None = None
    add_run: RowAdd | None = None
    find_row: RowFind | None = None
    enter_rows: RowsEnter | None = None


def _load() -> _Loaded:
    """Returns what was compiled; nothing of it on a machine with the other order of bytes."""
    if sys.byteorder != "little":
        return _Loaded()
    try:
        from fairlead_kvstore.native.block_rows import add_run, enter_rows, find_row
        from fairlead_kvstore.native.event_scanner import scan_events
        from fairlead_kvstore.native.frame_reader import read_messages
    except ImportError:
        return _Loaded()
    return _Loaded(scan_events, read_messages, add_run, find_row, enter_rows)


_LOADED: Final = _load()
SCAN_EVENTS: Final = _LOADED.scan_events
READ_MESSAGES: Final = _LOADED.read_messages
ADD_RUN: Final = _LOADED.add_run
FIND_ROW: Final = _LOADED.find_row
ENTER_ROWS: Final = _LOADED.enter_rows
