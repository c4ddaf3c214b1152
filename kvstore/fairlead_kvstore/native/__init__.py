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
from contextlib import suppress
from typing import Any

ScannedEvent = tuple[Any, ...]
ScannedBatch = tuple[float, str | None, int, list[ScannedEvent]]
EventScan = Callable[[bytes, int, int, int], ScannedBatch | None]
MessageRead = Callable[[bytearray, int, int, int, int, list[list[bytes]]], tuple[int, int]]
RowAdd = Callable[..., tuple[int, int, int, int, int]]
RowFind = Callable[[tuple[Any, ...], "array[int]", int, int], int]
RowsEnter = Callable[[tuple[Any, ...], "array[int]", "array[int]", int, int, int, list[int]], tuple[int, int, int]]
RowsMove = Callable[["array[int]", "array[int]", "array[int]", "array[int]", int, int], int]
RowsTouch = Callable[[tuple[Any, ...], "array[int]", "array[int]", "array[int]", int, int, int, int], int]

SCAN_EVENTS: EventScan | None = None
READ_MESSAGES: MessageRead | None = None
ADD_RUN: RowAdd | None = None
FIND_ROW: RowFind | None = None
ENTER_ROWS: RowsEnter | None = None
MOVE_ROWS: RowsMove | None = None
TOUCH_ROWS: RowsTouch | None = None
if sys.byteorder == "little":  # nothing of it on a machine with the other order of bytes
    with suppress(ImportError):
        from fairlead_kvstore.native.block_rows import add_run, enter_rows, find_row, move_rows, touch_rows
        from fairlead_kvstore.native.event_scanner import scan_events
        from fairlead_kvstore.native.frame_reader import read_messages

        SCAN_EVENTS, READ_MESSAGES = scan_events, read_messages
        ADD_RUN, FIND_ROW, ENTER_ROWS = add_run, find_row, enter_rows
        MOVE_ROWS, TOUCH_ROWS = move_rows, touch_rows
