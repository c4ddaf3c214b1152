from typing import Any

def scan_events(
    payload: bytes, max_events: int, max_blocks: int, max_block_tokens: int
) -> tuple[float, str | None, int, list[tuple[Any, ...]]] | None: ...
