"""`GET /api/limits`: the limits of tenants, what is used of them, and when they reset."""

from typing import Annotated

from fastapi import FastAPI, Query
from pydantic import Field

from fairlead_gateway.supervisor.management.route_parts import VisibleTenants, route_errors
from fairlead_gateway.supervisor.management.schemas import ResponseModel
from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.supervisor.quota.quota_status import LimitState


class LimitOut(ResponseModel):
    """One limit over all gateways. Null means that the store has not answered about it."""

    tenant: str
    unit: str = Field(description="requests, inputTokens, outputTokens, tokens, cost, concurrency or bytesInFlight.")
    per: str | None = Field(description="Minute, Day or Month; null for units that requests give back.")
    key: str | None = Field(description="Name of the API key that it is for; null for all.")
    model: str | None = Field(description="The model that it is for; null for all.")
    amount: int = Field(description="Billionths of a US dollar for cost.")
    soft: bool = Field(description="It refuses nothing.")
    used: int | None = Field(description="By all gateways, with slices that workers hold and debt of the last window.")
    available: int | None = Field(description="The rest of the amount; negative after an overrun.")
    resets_at: float | None = Field(description="Unix seconds of the end of the window.")


class LimitsOut(ResponseModel):
    """Limits by tenant."""

    limits: list[LimitOut]


def add_limits_route(app: FastAPI, view: GatewayView) -> None:
    """Adds the route to the management API."""

    @app.get("/api/limits", summary="What is left of the limits of tenants", responses=route_errors())
    async def limits(
        tenants: VisibleTenants,
        limit: Annotated[int, Query(ge=1, le=500, description="The most tenants to return.")] = 100,
    ) -> LimitsOut:
        return LimitsOut(limits=[_limit_out(state) for state in await view.limit_states(tenants, limit)])


def _limit_out(state: LimitState) -> LimitOut:
    limit = state.limit
    return LimitOut(
        tenant=state.tenant,
        unit=limit.unit.value,
        per=None if limit.window is None else limit.window.value,
        key=limit.key,
        model=limit.model,
        amount=limit.amount,
        soft=limit.is_soft,
        used=state.used,
        available=state.available,
        resets_at=state.resets_at,
    )
