"""The protocol of the parsing process: msgpack behind a length of 4 bytes, big-endian."""

from typing import Final

import msgspec

from fairlead.errors import FileProblem
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.tenants.documents import TenantDocument

LENGTH_BYTES: Final = 4
"""Bytes of the length in front of a message."""
LIMITS: Final = ("fleet_file_bytes", "instances", "json_depth", "keys", "models", "tenants")
"""The limits that the parsers read."""
FLEET: Final = "fleet"
KEYS: Final = "keys"
TENANTS: Final = "tenants"


class FileQuery(msgspec.Struct, array_like=True):
    """A query: what does this file describe?

    - subject: `FLEET`, `KEYS` or `TENANTS`.
    - file: its name, for messages.
    - limits: the values of `LIMITS`.
    """

    subject: str
    file: str
    content: bytes
    limits: dict[str, int]


class FileReply(msgspec.Struct, array_like=True):
    """The reply to a query: the fleet, the keys or the tenants, or the problems of the file.

    - names_by_digest, tenants: None unless they were queried.
    """

    fleet: Fleet | None = None
    names_by_digest: dict[bytes, str] | None = None
    tenants: list[TenantDocument] | None = None
    problems: tuple[FileProblem, ...] = ()


def create_query(content: bytes, file: str, limits: Limits, *, subject: str) -> FileQuery:
    """Returns the query for a file."""
    return FileQuery(subject, file, content, {name: getattr(limits, name) for name in LIMITS})


def encode_frame(message: FileQuery | FileReply) -> bytes:
    """Returns an encoded message behind its length."""
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload
