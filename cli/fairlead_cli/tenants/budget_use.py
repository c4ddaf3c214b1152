"""The used part of a tenant's budget and the last use of keys, as gateways report them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fairlead.errors import FairleadError, first_line
from fairlead.management_api import BudgetOut, TenantsOut
from fairlead.units import format_usd
from fairlead_cli.cluster.object_fields import format_age
from fairlead_cli.formatting import UNKNOWN, format_share
from fairlead_cli.keys.key_entries import format_time
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.tenants.selection import TenantSource


def read_budget(source: TenantSource, tenant: str) -> BudgetOut | None:
    """Returns the budget of a tenant by the first gateway that knows it; None if none does."""
    try:
        endpoints = source.endpoints()
    except FairleadError:
        return None  # the last use of keys names the problem
    for endpoint in endpoints:
        try:
            found = next(iter(endpoint.query(lambda client: client.budgets(tenant))), None)
        except FairleadError:
            continue
        if found is not None:
            return found
    return None


def describe_budget(budget: BudgetOut | None) -> str:
    """Returns the state of a budget for people."""
    if budget is None:
        return UNKNOWN
    share = format_share(budget.used_share)
    until = datetime.fromtimestamp(budget.end, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = f"${format_usd(budget.used_nano_usd)} of ${format_usd(budget.amount_nano_usd)} used ({share}), until {until}"
    if budget.used_share < 1:
        return text
    return f"{text}; {'requests go on' if budget.soft else 'requests are refused'}"


@dataclass(frozen=True, slots=True)
class KeyUses:
    """The last use of keys.

    started_at: the latest start of a gateway; None if no gateway was read. Why the latest: earlier
    uses are known only from the gateways that were there.

    last_used_at: in Unix time, by the beginning of a digest.

    problems: gateways that were not read, with the reason.
    """

    started_at: float | None = None
    last_used_at: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def time_of(self, digest: str) -> float | None:
        """Returns the last use of a key; None if it is unknown."""
        return next((used for prefix, used in self.last_used_at.items() if digest.startswith(prefix)), None)

    def describe(self, digest: str, now: float) -> str:
        """Returns the last use for people: ``3m ago``, or since when there was none."""
        used_at = self.time_of(digest)
        if used_at is not None:
            return f"{format_age(used_at, now)} ago"
        if self.started_at is None:
            return UNKNOWN
        return f"never seen by these gateways since {format_time(self.started_at)}"


def read_key_uses(source: TenantSource) -> KeyUses:
    """Returns when each key was last used, as all readable gateways know; other gateways become
    problems.
    """
    try:
        endpoints = source.endpoints()
    except FairleadError as error:
        return KeyUses(problems=(first_line(error, 200),))
    lists: list[TenantsOut] = []
    problems: list[str] = []
    for endpoint in endpoints:
        try:
            lists.append(endpoint.query(ManagementClient.tenants))
        except FairleadError as error:
            problems.append(f"{endpoint.name}: {first_line(error, 200)}")
    return merge_key_uses(lists, problems)


def merge_key_uses(lists: Sequence[TenantsOut], problems: Sequence[str] = ()) -> KeyUses:
    """Returns the latest use of each key over several gateways."""
    merged: dict[str, float] = {}
    for gateway in lists:
        for tenant in gateway.tenants:
            for key in tenant.keys:
                if key.last_used_at is not None:
                    merged[key.digest] = max(key.last_used_at, merged.get(key.digest, key.last_used_at))
    return KeyUses(
        max((started for gateway in lists if (started := gateway.started_at) is not None), default=None),
        merged,
        tuple(problems),
    )
