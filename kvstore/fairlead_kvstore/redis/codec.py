"""The encoding of the values that gateways write to Redis: a schema byte, then msgpack with named
fields.

A reader ignores unknown fields and fills in missing ones, so the previous and the next release can
read a value. A change that breaks this gets a new schema byte, which older readers skip. Values
contain ids, counts, seconds and the names of rules, never a prompt.
"""

from typing import Final, TypeVar

import msgspec

SCHEMA: Final = b"\x01"
T = TypeVar("T")


def encode(value: msgspec.Struct) -> bytes:
    """Returns a value as bytes: the schema byte, then msgpack."""
    return SCHEMA + msgspec.msgpack.encode(value)


def decode(data: bytes, kind: type[T]) -> T | None:
    """Returns the value of type ``kind``; None when it has another schema or is damaged."""
    if data[:1] != SCHEMA:
        return None
    try:
        return msgspec.msgpack.decode(data[1:], type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        return None
