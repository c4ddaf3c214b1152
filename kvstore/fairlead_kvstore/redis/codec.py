"""What gateways write to Redis, as bytes: a leading schema byte, then msgpack with named fields.

A reader ignores fields that it does not know and fills in those that are missing, so the previous and the next release
can read it; a change that this cannot bear gets a new schema byte, which older readers skip. Never a prompt: ids, counts, seconds
and the words of rules.
"""

from typing import Final, TypeVar

import msgspec

SCHEMA: Final = b"\x01"
T = TypeVar("T")


def encode(value: msgspec.Struct) -> bytes:
    """The bytes of one value."""
    return SCHEMA + msgspec.msgpack.encode(value)


def decode(data: bytes, kind: type[T]) -> T | None:
    """The value, or None when it was written under another schema or is damaged."""
    if data[:1] != SCHEMA:
        return None
    try:
        return msgspec.msgpack.decode(data[1:], type=kind)
    except msgspec.DecodeError:
        return None
