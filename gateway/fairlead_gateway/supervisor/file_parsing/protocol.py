"""The protocol of the parsing process: msgpack behind a length of 4 bytes, big-endian."""

from typing import Final

import msgspec

from fairlead.errors import FileProblem
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits

LENGTH_BYTES: Final = 4
"""Bytes of the length in front of a message."""
LIMITS: Final = ("fleet_file_bytes", "instances", "json_depth", "keys", "models", "yaml_nodes")
"""The limits that the parsers read."""


class FileQuery(msgspec.Struct, array_like=True):
    """A query: what does this file describe?

    - is_fleet: a fleet file; else a keys file.
    - file: its name, for messages.
    - limits: the values of `LIMITS`.
    """

    is_fleet: bool
    file: str
    content: bytes
    limits: dict[str, int]


class FileReply(msgspec.Struct, array_like=True):
    """The reply to a query: the fleet or the keys, or the problems of the file.

    - names_by_digest: the keys; None unless they were queried.
    """

    fleet: Fleet | None = None
    names_by_digest: dict[bytes, str] | None = None
    problems: tuple[FileProblem, ...] = ()


def create_query(content: bytes, file: str, limits: Limits, *, is_fleet: bool) -> FileQuery:
    """Returns the query for a file."""
    return FileQuery(is_fleet, file, content, {name: getattr(limits, name) for name in LIMITS})


def encode_frame(message: FileQuery | FileReply) -> bytes:
    """Returns an encoded message behind its length."""
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload
