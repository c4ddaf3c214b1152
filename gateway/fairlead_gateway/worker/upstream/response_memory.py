"""The memory of a worker for parts of engines' responses that cannot be passed on yet.

A plain response is buffered until it is whole, and an event of a stream until its end. Each has a
limit of its own, and all together have one.

Why: an engine could begin thousands of responses and complete none.
"""

from typing import Final

_MIN_COUNTED_BYTES: Final = 16_384
_MIN_CHUNKS: Final = 64


class ResponseMemory:
    """The buffered bytes of all unfinished responses of a worker."""

    __slots__ = ("max_bytes", "used_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether more is buffered than may be."""
        return self.used_bytes > self.max_bytes


class BufferedBytes:
    """The part of one response in the memory of all."""

    __slots__ = ("_counted_bytes", "_memory")

    def __init__(self, memory: ResponseMemory) -> None:
        self._memory = memory
        self._counted_bytes = 0

    def set_size(self, size: int) -> bool:
        """Counts `size` bytes, unless they are few. Returns whether they are too many."""
        counted = size if size > _MIN_COUNTED_BYTES else 0
        self._memory.used_bytes += counted - self._counted_bytes
        self._counted_bytes = counted
        return counted > 0 and self._memory.is_full


def compact(chunks: list[bytes], size: int) -> list[bytes]:
    """Returns chunks of `size` bytes in all, joined to one if they are too small.

    Why: an object takes 50 bytes besides its content. The ratio bounds how often bytes are copied.
    """
    return [b"".join(chunks)] if len(chunks) > _MIN_CHUNKS + (size >> 8) else chunks
