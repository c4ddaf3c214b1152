"""Messages between supervisor and workers about who may call: keys, tenants, and their use."""

import msgspec

from fairlead.tenants.model import Tenant


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
