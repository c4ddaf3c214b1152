"""The interface of what holds ModelTenants: a cluster or a file."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from fairlead.errors import BadInput
from fairlead.kube.resources import Manifest, name_of
from fairlead.names import closest_matches

Entry = dict[str, Any]
"""An entry of ``spec.keys``."""
KeyEdit = Callable[[Sequence[Entry]], list[Entry]]
"""A change of a tenant's list of keys. It is called again if the list was changed meanwhile."""
PEPPER_VARIABLE: Final = "FAIRLEAD_KEY_PEPPER"


class TenantStore(Protocol):
    """A file or a cluster with ModelTenants. ``place`` names it for people."""

    place: str

    def pepper(self) -> str:
        """Returns the secret under which digests are made. Raises BadInput without one."""

    def tenants(self) -> Sequence[Manifest]:
        """Returns all ModelTenants, by name."""

    def tenant(self, name: str) -> Manifest:
        """Returns one ModelTenant. Raises BadInput if there is none of this name."""

    def edit_keys(self, name: str, edit: KeyEdit) -> None:
        """Changes the keys of a tenant. Raises BadInput if there is none, or if ``edit`` does."""

    def add_revoked(self, entries: Sequence[Entry]) -> str | None:
        """Adds the digests of keys to the list of revoked keys, where there is one apart.

        Returns a text that says where, or None.
        """


def keys_of(tenant: Manifest) -> list[Entry]:
    return [dict(entry) for entry in (tenant.get("spec") or {}).get("keys") or []]


def find_tenant(tenants: Sequence[Manifest], name: str, place: str) -> Manifest:
    """Returns the tenant of a name. Raises BadInput with names that are similar."""
    for tenant in tenants:
        if name_of(tenant) == name:
            return tenant
    raise unknown_tenant(name, [name_of(tenant) for tenant in tenants], place)


def unknown_tenant(name: str, names: Sequence[str], place: str) -> BadInput:
    """Returns the error for a name that no ModelTenant has."""
    near = closest_matches(name, names) or sorted(names)
    hint = f"tenants there: {', '.join(near[:5])}" if near else "first add a document with `kind: ModelTenant`"
    return BadInput(f"{place} has no ModelTenant {name}", field="TENANT", hint=hint)
