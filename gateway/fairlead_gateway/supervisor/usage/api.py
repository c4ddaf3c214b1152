"""`GET /api/usage`: what the ledger of this gateway holds, as JSON."""

import re
from datetime import date
from typing import Annotated

from fastapi import FastAPI, Query
from msgspec import structs
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException

from fairlead.management_api import BudgetOut, BudgetsOut, ReplicaSpanOut, UsageOut, UsageTotalsOut
from fairlead.usage.ledger_reader import USAGE_QUERY_DAYS, LedgerContent, days_until
from fairlead.usage.record import DIMENSIONS, day_of
from fairlead.usage.replica_log import ReplicaSpan
from fairlead.usage.report import group_usage, parse_dimensions
from fairlead_gateway.supervisor.management.access.access_scope import Permission
from fairlead_gateway.supervisor.management.route_parts import Access, VisibleTenants, described
from fairlead_gateway.supervisor.management.view import GatewayView

_DIMENSION = f"({'|'.join(DIMENSIONS)})"
_DIMENSION_LIST = f"^({_DIMENSION}(,{_DIMENSION}){{0,4}})?$"


def _check_day(text: object) -> object:
    """Returns a day of the form `2026-11-24`; other forms of dates are refused."""
    if not isinstance(text, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
        raise ValueError("write a day like 2026-11-24")
    return text


_Day = Annotated[date, BeforeValidator(_check_day)]


def add_usage_route(app: FastAPI, view: GatewayView) -> None:
    """Adds the route to the management API."""

    @app.get("/api/usage", summary="What tenants used, from the ledger", **described(UsageOut))
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
    ) -> UsageOut:
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


def add_budget_route(app: FastAPI, view: GatewayView) -> None:
    """Adds the route of budgets to the management API."""

    @app.get("/api/budgets", summary="How much of each budget is used, over all gateways", **described(BudgetsOut))
    async def budgets(tenants: VisibleTenants) -> BudgetsOut:
        return BudgetsOut(
            budgets=[
                BudgetOut(
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


def _usage_out(
    content: LedgerContent, days: tuple[date, date], dimensions: tuple[str, ...], *, with_replicas: bool
) -> UsageOut:
    rows = group_usage(content.usage, dimensions) if dimensions else content.usage
    return UsageOut(
        ledger=content.ledger,
        first_day=days[0].isoformat(),
        last_day=days[1].isoformat(),
        usage=[UsageTotalsOut(**structs.asdict(row)) for row in rows],
        replicas=[_span_out(span) for span in content.replicas] if with_replicas else [],
        broken=content.broken,
        lost=content.lost,
    )


def _span_out(span: ReplicaSpan) -> ReplicaSpanOut:
    view = span.view
    return ReplicaSpanOut(
        replica=span.replica,
        start=span.start,
        end=span.end,
        model=view.model,
        pool=view.pool,
        state=view.state,
        nano_usd_per_hour=view.nano_usd_per_hour,
    )
