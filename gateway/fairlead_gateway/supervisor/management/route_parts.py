"""Parts that routes of the management API share: the access of the token, the parameter `tenant`
and the errors of the description.

A route about tenants has a parameter of the type `VisibleTenants`. With it, it takes
`?tenant=NAME`, and it gets the tenants whose data it may show.
"""

from typing import Annotated, Any, Final

from fastapi import Depends, Query, Request

from fairlead.management_api import ErrorOut
from fairlead_gateway.supervisor.management.access.access_scope import SCOPE_KEY, AccessScope
from fairlead_gateway.supervisor.management.schemas import schema_of

_MAX_NAME_CHARS: Final = 253
_REASONS: Final = {
    400: "A parameter, the body, or the request itself is wrong.",
    401: "The management token is missing or wrong.",
    403: "The token, the host name or the origin may not ask for this.",
    404: "There is no such path, model or request.",
    405: "The path is not asked by this method.",
    409: "Several requests have this id.",
    500: "A defect of the management port; the gateway's log has it.",
    503: "Too many requests at once, or no worker answered.",
}
_ALWAYS: Final = (400, 403, 405, 500, 503)
"""Errors of every path: of the request itself, its host, its origin and its method."""

RouteErrors = dict[int | str, dict[str, Any]]
"""Descriptions of errors by status, as FastAPI takes them."""


def access_of(request: Request) -> AccessScope:
    """Returns what the token of a request may see; the guard has found it."""
    found = request.scope[SCOPE_KEY]
    assert isinstance(found, AccessScope)
    return found


Access = Annotated[AccessScope, Depends(access_of)]


def visible_tenants(
    access: Access,
    tenant: Annotated[str | None, Query(description="Only of this tenant.", max_length=_MAX_NAME_CHARS)] = None,
) -> frozenset[str] | None:
    """Returns the tenants whose data a request may see and asks for; None: of all, and of none."""
    return access.narrowed(tenant)


VisibleTenants = Annotated[frozenset[str] | None, Depends(visible_tenants)]


def open_route_errors() -> RouteErrors:
    """Returns the errors of a route that needs no token."""
    return {status: error_response(_REASONS[status]) for status in _ALWAYS}


def route_errors(*more: int) -> RouteErrors:
    """Returns the errors of a route that needs a token, and more of them."""
    return {status: error_response(_REASONS[status]) for status in sorted({*_ALWAYS, 401, 404, *more})}


def described(answer: type, *errors: int) -> dict[str, Any]:
    """Returns the description of a route that needs a token: its answer and its errors."""
    return {"response_model": schema_of(answer), "responses": route_errors(*errors)}


def error_response(reason: str) -> dict[str, Any]:
    """Returns the description of one error."""
    return {"model": schema_of(ErrorOut), "description": reason}
