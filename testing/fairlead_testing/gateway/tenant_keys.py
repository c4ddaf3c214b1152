"""API keys of tenants that a test makes: the key of a tenant is its name.

`measure_key_table` makes the keys of a large installation.
"""

import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgspec

from fairlead.tenants.model import ApiKey, Limit, Tenant
from fairlead_gateway.worker.api_keys import ApiKeys, key_digest

TABLE_TENANTS, TABLE_KEYS = 10_000, 5
"""Tenants of a large installation, and keys of each."""
_PEPPER = b"pepper"
_BATCH = 64


def keys_of(*tenants: Tenant) -> ApiKeys:
    """Returns accepted keys, one per tenant."""
    keys = ApiKeys(_PEPPER, {})
    keys.update_tenants(
        replace(tenant, keys=(ApiKey(tenant.name, key_digest(tenant.name.encode(), _PEPPER)),)) for tenant in tenants
    )
    return keys


def authorization(tenant: str) -> str:
    """Returns the header line with which a request is the tenant's."""
    return f"authorization: Bearer {tenant}\r\n"


def table_key(tenant: int, key: int) -> bytes:
    """Returns a key of the large installation, by the numbers of its tenant and of the key."""
    return b"fl_" + hashlib.sha256(b"%d-%d" % (tenant, key)).hexdigest()[:43].encode()


def measure_key_table(pepper: bytes, limits_of: Callable[[int], tuple[Limit, ...]]) -> tuple[ApiKeys, int]:
    """Returns the accepted keys of a large installation, and the bytes that they take.

    Tenants come in batches, decoded as a worker decodes them.

    limits_of: returns the limits of a tenant, by its number.
    """
    keys, decoder = ApiKeys(pepper, {}), msgspec.msgpack.Decoder(list[Tenant])
    batches = [
        msgspec.msgpack.encode(
            [_table_tenant(number, pepper, limits_of(number)) for number in range(at, min(at + _BATCH, TABLE_TENANTS))]
        )
        for at in range(0, TABLE_TENANTS, _BATCH)
    ]
    tracemalloc.start()
    try:
        for batch in batches:
            keys.update_tenants(decoder.decode(batch))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return keys, used


def _table_tenant(number: int, pepper: bytes, limits: tuple[Limit, ...]) -> Tenant:
    own = tuple(ApiKey(f"key-{key}", key_digest(table_key(number, key), pepper)) for key in range(TABLE_KEYS))
    models = frozenset({f"team-{number % 100}/*", "search/embeddings"})
    return Tenant(f"tenant-{number}", models=models, keys=own, limits=limits)
