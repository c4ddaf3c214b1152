"""The messages of the parsing process."""

from typing import Final

import msgspec

from fairlead.errors import FileProblem
from fairlead.fleet.model import Fleet
from fairlead.tenants.documents import TenantDocument

LIMITS: Final = ("fleet_file_bytes", "instances", "json_depth", "models", "tenants")
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
