"""API keys of tenants that a test makes: the key of a tenant is its name."""

from fairlead.tenants.model import Tenant
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.worker.api_keys import ApiKeys, key_digest

_PEPPER = b"pepper"


def keys_of(*tenants: Tenant) -> ApiKeys:
    """Returns accepted keys, one per tenant."""
    keys = ApiKeys(_PEPPER, {})
    digests = {key_digest(tenant.name.encode(), _PEPPER): tenant for tenant in tenants}
    keys._known = {digest: (digest, Caller(tenant, tenant.name)) for digest, tenant in digests.items()}
    return keys


def authorization(tenant: str) -> str:
    """Returns the header line with which a request is the tenant's."""
    return f"authorization: Bearer {tenant}\r\n"
