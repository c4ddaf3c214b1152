from collections.abc import Callable
from typing import Any

def encode_changes(
    changes: list[Any], stored: type, removed: type, places: dict[str, int], other: Callable[[Any], bytes]
) -> bytes: ...
