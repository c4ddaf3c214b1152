"""Messages between supervisor and workers about who may call: keys, tenants, and their use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fairlead.tenants.model import Tenant

LIST_ACTOR: Final = "revocation list"
"""The actor where a list does not know who wrote it."""


class KeyUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the keys of the keys file."""

    keys: dict[bytes, str]
    are_keys_loaded: bool = True


class TenantUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: tenants that are new or changed, and names of those that are gone.

    - is_whole: there are no other tenants.

    Why not always the whole table: 10,000 tenants take a worker half a second, in which no request
    moves on.
    """

    changed: list[Tenant]
    removed: list[str] = []
    is_whole: bool = False


class RevocationUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the digests of all keys that are refused although they are listed."""

    digests: list[bytes]


class AccessReport(msgspec.Struct, tag=True):
    """Worker → supervisor: which keys callers have used since the last report.

    - used_keys: digests of API keys.
    - unknown_key_issuers: issuers of bearer tokens that name a key that is not in their key set.
    """

    used_keys: list[bytes] = []
    unknown_key_issuers: list[str] = []


@dataclass(frozen=True, slots=True)
class TenantsSnapshot:
    """The tenants of a gateway, and the uses of their keys.

    counted_since: since when uses are counted, in Unix seconds; None without tenants.
    used_at: returns the minute of a key's last use in Unix seconds, from its digest.
    """

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    counted_since: float | None = None
    used_at: Callable[[bytes], float | None] = lambda _: None
