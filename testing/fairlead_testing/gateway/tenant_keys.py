"""API keys of tenants that a test makes: the key of a tenant is its name."""

from dataclasses import replace

from fairlead.tenants.model import ApiKey, Tenant
from fairlead_gateway.worker.api_keys import ApiKeys, key_digest

_PEPPER = b"pepper"


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
