"""`GET /api/limits`: the limits of tenants, what is used of them, and when they reset."""

from typing import Annotated

from fastapi import FastAPI, Query

from fairlead.management_api import LimitsOut
from fairlead_gateway.supervisor.management.route_parts import VisibleTenants, described
from fairlead_gateway.supervisor.management.view import GatewayView


def add_limits_route(app: FastAPI, view: GatewayView) -> None:
    """Adds the route to the management API."""

    @app.get("/api/limits", summary="What is left of the limits of tenants", **described(LimitsOut))
    async def limits(
        tenants: VisibleTenants,
        limit: Annotated[int, Query(ge=1, le=500, description="The most tenants to return.")] = 100,
    ) -> LimitsOut:
        return LimitsOut(limits=await view.limit_states(tenants, limit))
