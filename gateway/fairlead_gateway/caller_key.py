"""The caller of a request, and the key under which anything is counted per caller: queued requests,
service, faults, retries.

Each caller is a tenant. Requests to a gateway without keys cannot be distinguished, and count as
one caller. Every count takes its key from here.
"""

from typing import Final, NewType, cast, final

from fairlead.tenants.model import Tenant

CallerKey = NewType("CallerKey", str)
"""One caller. Why no class: the key is looked up for each request, and costs nothing this way."""

ANONYMOUS: Final = CallerKey("")
"""All callers of a gateway that asks for no API key."""


@final
class Caller:
    """The tenant of a request and the API key that was used; immutable.

    key: name of the API key.
    name: the tenant's, under which the request is counted.
    """

    __slots__ = ("key", "name", "tenant")

    def __init__(self, tenant: Tenant, key: str) -> None:
        self.tenant: Final[Tenant] = tenant
        self.key: Final[str] = key
        self.name: Final[CallerKey] = cast(CallerKey, tenant.name)


def caller_key(caller: Caller | None) -> CallerKey:
    """Returns the key of a caller.

    caller: None if the gateway asks for no API key.
    """
    return ANONYMOUS if caller is None else caller.name


def caller_name(caller: Caller | None) -> str | None:
    """Returns the tenant's name for logs and traces; None if the gateway asks for no API key."""
    return None if caller is None else caller.name
