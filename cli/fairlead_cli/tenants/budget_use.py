"""The used part of a tenant's budget, as gateways report it."""

import asyncio
from datetime import UTC, datetime

from fairlead.errors import FairleadError
from fairlead.units import format_usd
from fairlead_cli.formatting import UNKNOWN, format_share
from fairlead_cli.management.api_types import BudgetUse
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import ManagementEndpoint
from fairlead_cli.tenants.selection import TenantsPlace


def read_budget(place: TenantsPlace, tenant: str) -> BudgetUse | None:
    """Returns the budget of a tenant by the first gateway that knows it; None if none does."""
    try:
        endpoints = place.endpoints()
    except FairleadError:
        return None  # the last use of keys names the problem
    for endpoint in endpoints:
        try:
            found = asyncio.run(_read(endpoint, endpoint.url(), tenant))
        except FairleadError:
            continue
        if found is not None:
            return found
    return None


def describe_budget(budget: BudgetUse | None) -> str:
    """Returns the state of a budget for people."""
    if budget is None:
        return UNKNOWN
    share = format_share(budget.used_share)
    until = datetime.fromtimestamp(budget.end, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = f"${format_usd(budget.used_nano_usd)} of ${format_usd(budget.amount_nano_usd)} used ({share}), until {until}"
    if budget.used_share < 1:
        return text
    return f"{text}; {'requests go on' if budget.soft else 'requests are refused'}"


async def _read(endpoint: ManagementEndpoint, url: str, tenant: str) -> BudgetUse | None:
    async with ManagementClient(url, endpoint.token) as client:
        return next(iter(await client.budgets(tenant)), None)
