"""The JSON API: a handful of routes over the view, all but one of them GET, described by OpenAPI at ``/openapi.json``.

Answers about many models give the loop back between two models. ``app`` loads this module, and the framework with it, when somebody
asks for the first time.
"""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import fairlead
from fairlead.names import nearest
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.management import models
from fairlead_gateway.management.guard import WHERE
from fairlead_gateway.management.plain import Answer, Plain
from fairlead_gateway.management.shapes import decision_json, fleet_json
from fairlead_gateway.management.stats import model_stats, unknown_model_requests
from fairlead_gateway.management.view import View

_ERRORS: dict[int | str, dict[str, Any]] = {404: {"model": models.Error}, 400: {"model": models.Error}}


def api(view: View, plain: Plain) -> FastAPI:
    """The ASGI app; ``plain`` answers what the description shares with it."""
    app = FastAPI(
        title="Fairlead gateway: management",
        description='What one gateway sees and does. Nothing is changed by asking; null is "not known", never zero.',
        version=fairlead.__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    _health(app, plain)
    _api(app, view)
    return app


def _health(app: FastAPI, plain: Plain) -> None:
    """What probes and scrapers ask: it stands here for the description, and ``app`` answers it without the framework."""

    @app.get(
        "/readyz",
        summary="Is this gateway answering requests?",
        response_model=models.Ready,
        responses={503: {"model": models.Ready}},
    )
    async def readyz() -> Response:
        return _response(await plain.readyz())

    @app.get("/metrics", summary="Prometheus text", response_class=Response)
    async def metrics() -> Response:
        return _response(await plain.metrics())


def _api(app: FastAPI, view: View) -> None:
    @app.get("/api/fleet", summary="Models and instances with their load", responses=_ERRORS)
    async def fleet() -> models.Fleet:
        look = await view.look()
        return fleet_json(view.fleet(), look.loads, view.clock.now(), look.standing, look.index, look.learned)

    @app.get("/api/stats", summary="The last minute and the totals, per model", responses=_ERRORS)
    async def stats(
        model: Annotated[str | None, Query(description="Only this model (namespace/name, or a unique name).")] = None,
    ) -> models.Stats:
        look, telemetry = await view.look(), await view.counted(windows=True)
        snapshot, now = view.fleet(), view.clock.now()
        keys = list(snapshot.models) if model is None else [_key(view, model)]
        found: dict[str, models.ModelStats] = {}
        for key in keys:
            found[key] = model_stats(key, telemetry, snapshot, look.loads, now)
            await asyncio.sleep(0)
        return models.Stats(
            version=fairlead.__version__,
            wall=view.clock.wall(),
            uptime_seconds=now - view.started,
            ready=look.ready,
            notes=look.notes,
            loop_lag_p99_seconds=look.lag.quantile(0.99),
            gateways=None
            if look.others is None
            else [models.OtherGateway(name=name, age_seconds=age) for name, age in look.others],
            unknown_model_requests=unknown_model_requests(telemetry, now),
            models=found,
        )

    @app.get("/api/decisions", summary="The last decisions, newest first", responses=_ERRORS)
    async def decisions(
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        model: Annotated[str | None, Query(description="Only this model.")] = None,
    ) -> models.Decisions:
        key = None if model is None else _key(view, model)
        found = await view.decisions(limit, key)
        return models.Decisions(decisions=[decision_json(logged) for logged in found])

    @app.get("/api/decisions/{request_id:path}", summary="Everything about one request", responses=_ERRORS)
    async def decision(request_id: str) -> models.Decision:
        logged = await view.decision(request_id)
        if logged is None:
            raise HTTPException(404, f"request {request_id!r} is not in the log, which keeps the last few thousand")
        return decision_json(logged)

    @app.post(WHERE, summary="Where would this request go just now, and why? Nothing is sent", responses=_ERRORS)
    async def where(
        request: Request,
        path: Annotated[str, Query(description="Where a client would send it.")] = "/v1/chat/completions",
    ) -> models.Would:
        """The body is the request's own; the session is told in x-session-id."""
        try:
            found = await view.would(path, await request.body(), request.headers.get("x-session-id"))
        except GatewayError as error:
            raise HTTPException(error.status, str(error)) from None
        if not found:
            raise HTTPException(503, "no worker answers")
        chosen = [logged.last.decision.chosen for logged in found]
        return models.Would(
            decision=decision_json(found[0]), workers=len(found), agreeing=sum(one == chosen[0] for one in chosen)
        )


def _key(view: View, name: str) -> str:
    snapshot = view.fleet()
    key = snapshot.resolve(name)
    if key is None:
        near = nearest(name, [*snapshot.models, *(item.name for item in snapshot.models.values())])
        raise HTTPException(404, f"no model {name!r}" + (f"; near ones: {', '.join(near)}" if near else ""))
    return key


def _error(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = models.Error(error=models.ErrorBody(message=message, type=kind, param=param))
    return JSONResponse(body.model_dump(), status_code=status)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, str(error.detail))


async def _bad_parameter(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return _error(400, f"{name}: {first['msg']}", param=name)
