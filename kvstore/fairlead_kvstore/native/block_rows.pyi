from array import array
from typing import Any

def find_row(index: tuple[Any, ...], keys: array[int], factor: int, key: int) -> int: ...
def add_run(
    columns: tuple[Any, ...],
    by_handle: tuple[Any, ...],
    by_own: tuple[Any, ...],
    factor: int,
    handles: bytes,
    tokens: bytes,
    width: int,
    own: int,
    depth: int,
    adapter: int,
    shift: int,
    tick: int,
    start: int,
    found: list[Any],
    is_open: bool,
) -> tuple[int, int, int, int, int, bool]: ...
