"""Cache salts: an engine shares cached blocks only between requests with the same salt.

The salt of a scope (a tenant, or a group of tenants) is an HMAC of its name under the
installation's secret. So it is equal on all gateways and after a restart, and clients cannot
compute that of another scope. It takes the place of a client's own `cache_salt`; that one is mixed
in, and divides the cache of the scope further.

The same salt is part of the prefix hash (`openai.prefix_key`) and of the session's hash. So scopes
also differ in routing, in the hints of other gateways and in the links to the KV-cache index.

Engines without this field share their cache between all clients (`takes_cache_salt`). A gateway
warns of them (`fairlead.tenants.cache_isolation`).
"""

import hmac
from functools import lru_cache
from typing import Final

from fairlead.fleet.model import RequestPolicy
from fairlead.tenants.cache_isolation import SALT_FIELD, SALTED_ENGINES
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.worker.openai.field_policy import known_fields
from fairlead_gateway.worker.openai.prefix_key import CacheScope
from fairlead_gateway.worker.openai.request import ModelRequest

FIELD: Final = SALT_FIELD
_SALT_CHARACTERS: Final = 32
_DIGEST: Final = "sha256"
_UNKNOWN_ENGINES: Final = frozenset({"vllm"})


def scope_of(tenant: Tenant, secret: bytes) -> CacheScope | None:
    """Returns the scope of a tenant; None if it shares the cache with the whole cluster."""
    if tenant.cache_sharing is CacheSharing.CLUSTER:
        return None
    if tenant.cache_sharing is CacheSharing.GROUP and tenant.cache_group is not None:
        return CacheScope(_keyed_salt(secret, f"group\0{tenant.cache_group}"))
    return CacheScope(_keyed_salt(secret, f"tenant\0{tenant.name}"))


def apply_scope(request: ModelRequest, scope: CacheScope) -> str:
    """Gives the request the salt of its scope for its prefix hash, and returns it."""
    fields = request.decoded_fields  # None: a scanned chat, which has no salt
    client_salt = None if fields is None else fields.cache_salt
    salt = _keyed_salt(scope.salt.encode(), client_salt) if client_salt else scope.salt
    request.cache_salt = salt
    return salt


def takes_cache_salt(policy: RequestPolicy, path: str) -> bool:
    """Returns whether all engines of a model have the field `cache_salt` on a path.

    Of an engine that is not vLLM, SGLang or the simulator that is not known. It gets a salt if
    `engine.allowedFields` of its model names the field.
    """
    return FIELD in policy.allowed_fields or _all_take_salt(policy.engines or _UNKNOWN_ENGINES, path)


@lru_cache(maxsize=256)
def _all_take_salt(engines: frozenset[str], path: str) -> bool:
    return engines <= SALTED_ENGINES and all(FIELD in (known_fields(engine, path) or ()) for engine in engines)


def _keyed_salt(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), _DIGEST).hex()[:_SALT_CHARACTERS]
