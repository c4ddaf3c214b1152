"""`GET /api/limits`: the limits of tenants, what is used of them, and when they reset."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from fairlead_gateway.supervisor.management.access.access_scope import AccessScope
from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.supervisor.quota.quota_status import LimitState


class _LimitModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitOut(_LimitModel):
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


class LimitsOut(_LimitModel):
    """Limits by tenant."""

    limits: list[LimitOut]


def add_limits_route(
    app: FastAPI,
    view: GatewayView,
    *,
    access_of: Callable[[Request], AccessScope],
    errors: dict[int | str, dict[str, Any]],
) -> None:
    """Adds the route to the management API.

    access_of: returns what the token of a request may see.
    """

    @app.get("/api/limits", summary="What is left of the limits of tenants", responses=errors)
    async def limits(
        access: Annotated[AccessScope, Depends(access_of)],
        limit: Annotated[int, Query(ge=1, le=500, description="The most tenants to return.")] = 100,
        tenant: Annotated[str | None, Query(description="Only of this tenant.", max_length=253)] = None,
    ) -> LimitsOut:
        states = await view.limit_states(access.narrowed(tenant), limit)
        return LimitsOut(limits=[_limit_out(state) for state in states])


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
