"""The JSON API: a few routes over the view, described by OpenAPI at `/openapi.json`.

All routes but the route preview are GET. Answers about many models yield to the event loop after
each model. `app` loads this module, and the framework with it, at the first request to the API.

A route about tenants has a parameter of the type `VisibleTenants`. With it, it takes
`?tenant=NAME`, and it gets the tenants whose data it may show.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from msgspec import structs
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException

import fairlead
from fairlead import management_api as api
from fairlead.audit.reader import AuditQuery
from fairlead.names import closest_matches
from fairlead.routes.model import visible_route
from fairlead.usage.ledger_reader import USAGE_QUERY_DAYS, LedgerContent, days_until
from fairlead.usage.record import DIMENSIONS, day_of
from fairlead.usage.replica_log import ReplicaSpan
from fairlead.usage.report import group_usage, parse_dimensions
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.supervisor.management.access.access_scope import (
    ROUTE_PREVIEW_PATH,
    SCOPE_KEY,
    AccessScope,
    Permission,
)
from fairlead_gateway.supervisor.management.probes import ProbeResponse, Probes
from fairlead_gateway.supervisor.management.schemas import schema_of
from fairlead_gateway.supervisor.management.serializers import (
    fallbacks_out,
    fleet_out,
    tenant_out,
    without_placement,
)
from fairlead_gateway.supervisor.management.stats import model_stats, unknown_model_requests
from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.telemetry.decision_log import LATEST

_DIMENSION = f"({'|'.join(DIMENSIONS)})"
_DIMENSION_LIST = f"^({_DIMENSION}(,{_DIMENSION}){{0,4}})?$"
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
_decode_decision: Final = msgspec.json.Decoder(api.DecisionOut).decode
_FRAMEWORK_ERROR: Final = "HTTPValidationError"
_PREVIEW_STATUSES: Final = (413, 415, 422, 429, 500, 501, 502, 503, 504, 508)
"""Statuses with which a gateway refuses requests of clients."""

_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x1f\x7f]*)")
_PreviewHeaders = Annotated[
    Sequence[Annotated[str, Query(max_length=8_192)]],
    Query(description="A header that the client would send, as NAME:VALUE; several are allowed.", max_length=64),
]
_KINDS: Final = "latest; failed; or slow: the slowest of the last hour first, by the wait for the first token."
_ModelOrRoute = Annotated[
    str | None,
    Query(
        description="Only this model, or this route by any of its names (namespace/name, or a unique name).",
        max_length=600,
    ),
]
_ModelName = Annotated[
    str | None, Query(description="Only this model (namespace/name, or a unique name).", max_length=600)
]


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
    return {status: error_response(_REASONS[status]) for status in _ALWAYS}


def route_errors(*more: int) -> RouteErrors:
    return {status: error_response(_REASONS[status]) for status in sorted({*_ALWAYS, 401, 404, *more})}


def described(answer: type, *errors: int) -> dict[str, Any]:
    return {"response_model": schema_of(answer), "responses": route_errors(*errors)}


def error_response(reason: str) -> dict[str, Any]:
    return {"model": schema_of(api.ErrorOut), "description": reason}


def _preview_errors() -> RouteErrors:
    text = "The gateway would answer the request of the body with this status now."
    return route_errors() | {status: error_response(text) for status in _PREVIEW_STATUSES}


def _check_day(text: object) -> object:
    """Returns a day of the form `2026-11-24`; other forms of dates are refused."""
    if not isinstance(text, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
        raise ValueError("write a day like 2026-11-24")
    return text


_Day = Annotated[date, BeforeValidator(_check_day)]


def create_api(view: GatewayView, probes: Probes) -> FastAPI:
    """Returns the ASGI app.

    probes: answers the paths that the OpenAPI description contains and that need no framework.
    """
    app = FastAPI(
        title="Fairlead gateway: management",
        description="The state and decisions of one gateway. No request changes anything; null means unknown, not zero.",
        version=fairlead.__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    _add_probes(app, probes)
    _add_routes(app, view)
    _add_tenant_routes(app, view)
    _add_route_preview(app, view)
    _add_usage_route(app, view)
    _add_limit_routes(app, view)
    describe = app.openapi
    app.openapi = lambda: _without_validation_errors(describe())  # type: ignore[method-assign]
    return app


def _without_validation_errors(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the description without the framework's 422, in place of which 400 is answered."""
    for operations in description["paths"].values():
        for operation in operations.values():
            if _FRAMEWORK_ERROR in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
    for name in (_FRAMEWORK_ERROR, "ValidationError"):
        description["components"]["schemas"].pop(name, None)
    return description


def _add_probes(app: FastAPI, probes: Probes) -> None:
    """Adds the probe paths, so that the OpenAPI description has them.

    In service, the module `app` answers them before FastAPI.
    """

    @app.get(
        "/readyz",
        summary="Is this gateway answering requests?",
        response_model=schema_of(api.ReadyOut),
        responses=open_route_errors()
        | {503: {"model": schema_of(api.ReadyOut), "description": "No request is answered now."}},
    )
    async def readyz() -> Response:
        return _to_response(await probes.readyz())

    @app.get(
        "/metrics",
        summary="Prometheus text",
        response_class=Response,
        responses=open_route_errors() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return _to_response(await probes.metrics())


def _add_routes(app: FastAPI, view: GatewayView) -> None:
    @app.get("/api/fleet", summary="Models and instances with their load", **described(api.FleetOut))
    async def fleet() -> api.FleetOut:
        look = await view.status()
        return fleet_out(view.fleet(), look, view.clock.now())

    @app.get("/api/stats", summary="The last minute and the totals, per model", **described(api.StatsOut))
    async def stats(model: _ModelName = None) -> api.StatsOut:
        look, telemetry = await view.status(), await view.counters(windows=True)
        snapshot, now = view.fleet(), view.clock.now()
        keys = list(snapshot.models) if model is None else [_resolve_key(view, model)]
        found: dict[str, api.ModelStatsOut] = {}
        for key in keys:
            found[key] = model_stats(key, telemetry, snapshot, look.loads, now)
            await asyncio.sleep(0)
        return api.StatsOut(
            version=fairlead.__version__,
            wall=view.clock.wall(),
            uptime_seconds=now - view.started_at,
            ready=look.ready,
            notes=look.warnings,
            loop_lag_p99_seconds=look.lag.quantile(0.99),
            gateways=None
            if look.peers is None
            else [api.OtherGatewayOut(name=name, age_seconds=age) for name, age in look.peers],
            unknown_model_requests=unknown_model_requests(telemetry, now),
            models=found,
        )


def _add_tenant_routes(app: FastAPI, view: GatewayView) -> None:
    """Adds the routes whose answers depend on the tenants that the token may see."""

    @app.get("/api/decisions", summary="The last decisions, newest first", **described(api.DecisionsOut))
    async def decisions(
        access: Access,
        tenants: VisibleTenants,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        model: _ModelOrRoute = None,
        kind: Annotated[Literal["latest", "failed", "slow"], Query(description=_KINDS)] = LATEST,
    ) -> api.DecisionsOut:
        key = None
        if model is not None:
            # A token that may not see the fleet does not learn either which models there are.
            snapshot = view.fleet()
            key = snapshot.resolve_model(model) or snapshot.resolve_route(model)
            if key is None and Permission.FLEET in access.may:
                raise _unknown_name(model, [*snapshot.models, *snapshot.routes])
            if key is None:
                return api.DecisionsOut(decisions=[])
        found = await view.decisions(limit, key, tenants, kind)
        return api.DecisionsOut(decisions=[_shown(logged, access) for logged in found])

    @app.get(
        "/api/decisions/{request_id:path}", summary="Everything about one request", **described(api.DecisionOut, 409)
    )
    async def decision(access: Access, tenants: VisibleTenants, request_id: str) -> api.DecisionOut:
        """Finds it by the id of its `x-fairlead-decision` header. The id that a client chose finds
        the newest request of its tenant.
        """
        found = await view.decision(request_id, tenants)
        if not found:
            raise HTTPException(404, f"request {request_id!r} is not in the log of the last few thousand requests")
        if len(found) > 1:
            text = "several tenants have sent this id; ask with ?tenant=NAME, or by the id of x-fairlead-decision"
            raise HTTPException(409, text)
        return _shown(found[0], access)

    @app.get(
        "/api/tenants", summary="Tenants with their keys and when these were used last", **described(api.TenantsOut)
    )
    async def tenants(visible: VisibleTenants) -> api.TenantsOut:
        snapshot = view.tenants()
        shown = [found for name, found in sorted(snapshot.tenants.items()) if visible is None or name in visible]
        return api.TenantsOut(
            started_at=snapshot.counted_since, tenants=[tenant_out(found, snapshot.used_at) for found in shown]
        )

    @app.get("/api/audit", summary="Who changed or read what, newest first", **described(api.AuditOut))
    async def audit(
        tenants: VisibleTenants,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        since: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Unix seconds of the oldest.")] = 0.0,
    ) -> api.AuditOut:
        """Returns the records in the memory of this gateway; each gateway has its own."""
        records = view.audit_records(AuditQuery(since, tenants), limit)
        return api.AuditOut(records=records)


def _add_usage_route(app: FastAPI, view: GatewayView) -> None:
    @app.get("/api/usage", summary="What tenants used, from the ledger", **described(api.UsageOut))
    async def usage(
        access: Access,
        tenants: VisibleTenants,
        first: Annotated[_Day | None, Query(alias="from", description="First UTC day; by default the last.")] = None,
        last: Annotated[_Day | None, Query(alias="to", description="Last UTC day, included; by default today.")] = None,
        by: Annotated[
            str,
            Query(
                description="What to group by, with commas. Empty: not grouped.", pattern=_DIMENSION_LIST, max_length=64
            ),
        ] = "tenant",
        replicas: Annotated[
            bool,
            Query(description="Include when replicas existed, for a token that may see the fleet and all tenants."),
        ] = False,
    ) -> api.UsageOut:
        if replicas and (access.tenants is not None or Permission.FLEET not in access.may):
            raise HTTPException(403, "replicas: the token may not see the whole fleet")
        last_day = last or date.fromisoformat(day_of(view.clock.wall()))
        earliest = days_until(last_day, USAGE_QUERY_DAYS)[0]
        first_day = max(first or last_day, earliest)
        dimensions = parse_dimensions(by, field="by") if by else ()
        content = await view.tenant_reports.usage_content(first_day.isoformat(), last_day.isoformat())
        if content is None:
            raise HTTPException(404, "this gateway keeps no ledger: set FAIRLEAD_USAGE_DIR")
        if tenants is not None:
            content.usage = [row for row in content.usage if row.tenant in tenants]
        return _usage_out(content, (first_day, last_day), dimensions, with_replicas=replicas)


def _usage_out(
    content: LedgerContent, days: tuple[date, date], dimensions: tuple[str, ...], *, with_replicas: bool
) -> api.UsageOut:
    rows = group_usage(content.usage, dimensions) if dimensions else content.usage
    return api.UsageOut(
        ledger=content.ledger,
        first_day=days[0].isoformat(),
        last_day=days[1].isoformat(),
        usage=[api.UsageTotalsOut(**structs.asdict(row)) for row in rows],
        replicas=[_span_out(span) for span in content.replicas] if with_replicas else [],
        broken=content.broken,
        lost=content.lost,
    )


def _span_out(span: ReplicaSpan) -> api.ReplicaSpanOut:
    view = span.view
    return api.ReplicaSpanOut(
        replica=span.replica,
        start=span.start,
        end=span.end,
        model=view.model,
        pool=view.pool,
        state=view.state,
        nano_usd_per_hour=view.nano_usd_per_hour,
    )


def _add_limit_routes(app: FastAPI, view: GatewayView) -> None:
    @app.get("/api/limits", summary="What is left of the limits of tenants", **described(api.LimitsOut))
    async def limits(
        tenants: VisibleTenants,
        limit: Annotated[int, Query(ge=1, le=500, description="The most tenants to return.")] = 100,
    ) -> api.LimitsOut:
        return api.LimitsOut(limits=await view.limit_states(tenants, limit))

    @app.get("/api/budgets", summary="How much of each budget is used, over all gateways", **described(api.BudgetsOut))
    async def budgets(tenants: VisibleTenants) -> api.BudgetsOut:
        return api.BudgetsOut(
            budgets=[
                api.BudgetOut(
                    tenant=state.tenant,
                    start=state.start,
                    end=state.end,
                    used_nano_usd=state.used,
                    amount_nano_usd=state.amount,
                    used_share=state.used_share,
                    soft=state.is_soft,
                )
                for state in view.tenant_reports.budgets()
                if tenants is None or state.tenant in tenants
            ]
        )


def _add_route_preview(app: FastAPI, view: GatewayView) -> None:
    @app.post(
        ROUTE_PREVIEW_PATH,
        summary="Where would this request go now, and why? Nothing is sent",
        responses=_preview_errors(),
        response_model=schema_of(api.RoutePreviewOut),
    )
    async def where(
        request: Request,
        access: Access,
        path: Annotated[str, Query(description="The path to which a client would send it.")] = "/v1/chat/completions",
        tenant: Annotated[str | None, Query(description="The tenant that would send it.", max_length=253)] = None,
        header: _PreviewHeaders = (),
    ) -> api.RoutePreviewOut:
        """Routes the request in the body; the header `x-session-id` names its session."""
        if access.tenants is not None and tenant not in access.tenants:
            raise HTTPException(403, f"the token {access.name} may preview requests of its tenants: name one as tenant")
        session = request.headers.get("x-session-id")
        headers = _parse_headers(header)
        try:
            found = await view.preview_route(path, await request.body(), session, tenant, headers)
        except GatewayError as error:
            raise HTTPException(error.status, str(error)) from None
        if not found:
            raise HTTPException(503, "no worker answered")
        chosen = [logged.chosen for logged in found]
        return api.RoutePreviewOut(
            decision=_decode_decision(found[0].json),
            workers=len(found),
            agreeing=chosen.count(chosen[0]),
            fallbacks=_declared_fallbacks(view, found[0], tenant),
        )


def _parse_headers(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns names in lower case, and values, of texts like `x-canary: yes`."""
    headers = [_HEADER.fullmatch(text) for text in texts]
    if None in headers:
        raise HTTPException(400, "header: write each as NAME:VALUE, without control characters")
    return [(found[1].lower(), found[2]) for found in headers if found is not None]


def _declared_fallbacks(view: GatewayView, logged: LoggedDecision, tenant: str | None) -> list[api.DeclaredFallbackOut]:
    """Returns the fallbacks of the route that a request names, as its tenant may use them."""
    route = None if logged.route is None else view.fleet().routes.get(logged.route)
    caller = None if tenant is None else view.tenants().tenants.get(tenant)
    if route is not None and caller is not None:
        route = visible_route(route, caller.may_use)
    return [] if route is None else fallbacks_out(route)


def _shown(logged: LoggedDecision, access: AccessScope) -> api.DecisionOut:
    decision = _decode_decision(logged.json)
    return decision if Permission.FLEET in access.may else without_placement(decision)


def _resolve_key(view: GatewayView, name: str) -> str:
    snapshot = view.fleet()
    key = snapshot.resolve_model(name)
    if key is None:
        raise _unknown_name(name, [*snapshot.models, *(item.name for item in snapshot.models.values())])
    return key


def _unknown_name(name: str, known: Sequence[str]) -> HTTPException:
    near = closest_matches(name, known)
    return HTTPException(404, f"no model {name!r}" + (f"; similar names: {', '.join(near)}" if near else ""))


def _error_response(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = api.ErrorOut(error=api.ErrorBodyOut(message=message, type=kind, param=param))
    return JSONResponse(msgspec.to_builtins(body), status_code=status)


def _to_response(response: ProbeResponse) -> Response:
    return Response(response.body, response.status, dict(response.headers))


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error_response(error.status_code, str(error.detail))


async def _parameter_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return _error_response(400, f"{name}: {first['msg']}", param=name)
