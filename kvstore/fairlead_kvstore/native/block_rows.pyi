from array import array
from typing import Any

def find_row(index: tuple[Any, ...], keys: array[int], factor: int, key: int) -> int: ...
def enter_rows(
    index: tuple[Any, ...],
    keys: array[int],
    counts: array[int],
    factor: int,
    start: int,
    stop: int,
    taken: list[int],
) -> tuple[int, int, int]: ...
def add_run(
    columns: tuple[Any, ...],
    by_handle: tuple[Any, ...],
    by_block_hash: tuple[Any, ...],
    factor: int,
    handles: bytes,
    tokens: bytes,
    width: int,
    block_hash: int,
    depth: int,
    adapter: int,
    shift: int,
    tick: int,
    start: int,
    new: list[int],
) -> tuple[int, int, int, int, int]: ...
def move_rows(
    cells: array[int], first: array[int], second: array[int], keys: array[int], factor: int, bit: int
) -> int: ...
def touch_rows(
    index: tuple[Any, ...],
    keys: array[int],
    parents: array[int],
    ticks: array[int],
    factor: int,
    key: int,
    tick: int,
    max_rows: int,
) -> int: ...
