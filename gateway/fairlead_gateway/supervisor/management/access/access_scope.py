"""The scopes of management tokens, and the permission that each route needs. Pure.

A route that is not listed needs full access. So a new route is closed to scoped tokens until it is
listed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

ROUTE_PREVIEW_PATH: Final = "/api/route"
"""Path of the route preview, the only one with POST."""
SCOPE_KEY: Final = "fairlead.access"
"""The key of an `AccessScope` in an ASGI scope."""

_READ_ROUTES: Final = ("/api/decisions", "/api/tenants", "/api/limits", "/api/usage", "/api/cost", "/api/budgets")

_OPEN_TO_ALL_TOKENS: Final = frozenset({"/openapi.json"})
_NAMED: Final = {"/api/decisions": "{request_id}", "/api/tenants": "{name}"}
"""Routes with a name after them, and its placeholder."""


class Permission(StrEnum):
    """A right to read data of tenants or of the cluster.

    READ: decisions, limits, usage, and the tenants themselves.
    AUDIT: audit records.
    FLEET: all models and instances with their load and statistics, of all tenants together.
    PREVIEW: where a request would be sent now.
    """

    READ = "Read"
    AUDIT = "Audit"
    FLEET = "Fleet"
    PREVIEW = "Preview"


ALL_PERMISSIONS: Final = frozenset(Permission)


@dataclass(frozen=True, slots=True)
class AccessScope:
    """The rights of one token.

    name: appears in audit records.
    tenants: whose data it may see; None: of all, and those of no tenant.
    """

    name: str
    tenants: frozenset[str] | None = None
    may: frozenset[Permission] = ALL_PERMISSIONS

    @property
    def is_full(self) -> bool:
        return self.tenants is None and self.may == ALL_PERMISSIONS

    @property
    def reads_all_tenants(self) -> bool:
        return self.tenants is None and Permission.READ in self.may

    def narrowed(self, tenant: str | None) -> frozenset[str] | None:
        """Returns the tenants of a query: all that the token may see, or the one in question."""
        if tenant is None:
            return self.tenants
        return frozenset({tenant}) if self.tenants is None or tenant in self.tenants else frozenset()


_ROUTES: Final[Mapping[str, Permission]] = MappingProxyType(
    {
        **dict.fromkeys(_READ_ROUTES, Permission.READ),
        "/api/audit": Permission.AUDIT,
        "/api/fleet": Permission.FLEET,
        "/api/stats": Permission.FLEET,
        ROUTE_PREVIEW_PATH: Permission.PREVIEW,
    }
)


def route_of(path: str) -> str:
    """Returns the route of a path, with a placeholder for a name."""
    if path in _ROUTES or path in _OPEN_TO_ALL_TOKENS:
        return path
    for prefix, placeholder in _NAMED.items():
        if path.startswith(prefix + "/"):
            return f"{prefix}/{placeholder}"
    return "another path"


def needed_permission(route: str) -> Permission | None:
    """Returns what a route of `route_of` needs; None: nothing, or full access."""
    return _ROUTES.get(route.partition("/{")[0])


def scope_refusal(scope: AccessScope, path: str) -> str | None:
    """Returns why a token may not ask for a path; None if it may."""
    if scope.is_full or path in _OPEN_TO_ALL_TOKENS:
        return None
    needed = needed_permission(route_of(path))
    if needed is None:
        return f"the token {scope.name} is limited, and this path needs a token without limits"
    if needed not in scope.may:
        return f"the token {scope.name} may not do this: it needs the permission {needed.value}"
    return None
