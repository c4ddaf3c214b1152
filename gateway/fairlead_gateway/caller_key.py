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


NEVER: Final = float("inf")
"""The expiry of a key that does not expire."""


@final
class Caller:
    """The tenant of a request and the API key that was used; immutable but for `was_used`.

    key: name of the API key.
    name: the tenant's, under which the request is counted.
    models: those that the tenant may use, as in `Tenant`; None for all.
    may_use_other_paths: as in `Tenant`.
    expires_at: Unix seconds from which the key is refused; `NEVER` without an expiry.
    digest: of an API key of a tenant; None for other callers.
    was_used: whether the use of the key waits to be reported.

    Why copies: the module of `Tenant` is not compiled. Each attribute that is read there costs 140
    instructions.
    """

    __slots__ = ("digest", "expires_at", "key", "may_use_other_paths", "models", "name", "tenant", "was_used")

    def __init__(self, tenant: Tenant, key: str, expires_at: float | None = None, digest: bytes | None = None) -> None:
        self.tenant: Final[Tenant] = tenant
        self.key: Final[str] = key
        self.name: Final[CallerKey] = cast(CallerKey, tenant.name)
        self.models: Final[frozenset[str] | None] = tenant.models
        self.may_use_other_paths: Final[bool] = tenant.may_use_other_paths
        self.expires_at: Final[float] = NEVER if expires_at is None else expires_at
        self.digest: Final[bytes | None] = digest
        self.was_used = digest is None  # nothing to report


def caller_key(caller: Caller | None) -> CallerKey:
    """Returns the key of a caller.

    caller: None if the gateway asks for no API key.
    """
    return ANONYMOUS if caller is None else caller.name


def caller_name(caller: Caller | None) -> str | None:
    """Returns the tenant's name for logs and traces; None if the gateway asks for no API key."""
    return None if caller is None else caller.name
