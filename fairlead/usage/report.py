"""Usage and cost, grouped by tenant, key, model, adapter and day."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead.usage.attribution import CostAttribution, attribute_cost
from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import DIMENSIONS, UsageTable, UsageTotals
from fairlead.usage.replica_log import replica_seconds

UserKey: TypeAlias = tuple[str, str, str]
"""Tenant, key and adapter."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """The cost of a group of requests, or of unused replicas.

    group: values of the dimensions; None where the cost belongs to no value.
    state: empty for requests; else why the replicas were unused: `Idle`, `Starting`, `Sleeping`.
    """

    group: tuple[str | None, ...]
    state: str
    nano_usd: int
    engine_microseconds: int
    saved_nano_usd: int


@dataclass(frozen=True, slots=True)
class CostReport:
    """The cost of replicas by group. The costs of all rows add up to `bill_nano_usd`.

    unpriced_seconds: replica-seconds without a price.
    unattributed_microseconds: engine time in pools without a priced replica.
    """

    dimensions: tuple[str, ...]
    rows: Sequence[CostRow]
    bill_nano_usd: int
    unpriced_seconds: int
    unattributed_microseconds: int


def parse_dimensions(text: str, *, field: str = "--by") -> tuple[str, ...]:
    """Returns the dimensions of a list such as `tenant,model`. Raises BadInput naming `field`."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in DIMENSIONS:
            near = closest_matches(name, list(DIMENSIONS))
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(DIMENSIONS)}"
            raise BadInput(f"usage cannot be grouped by {name!r}", field=field, hint=hint)
    if not names:
        raise BadInput("there is nothing to group by", field=field, hint=f"use {', '.join(DIMENSIONS)}")
    return names


def group_usage(rows: Iterable[UsageTotals], dimensions: Sequence[str]) -> list[UsageTotals]:
    """Returns the totals of each group. Fields that are not grouped by are empty."""
    table = UsageTable()
    for row in rows:
        group = UsageTotals(**{name: getattr(row, name) for name in dimensions})
        group.add(row)
        table.add_totals(group)
    order = [DIMENSIONS.index(name) for name in dimensions]
    names = [DIMENSIONS[at] for at in order]
    return sorted(table.rows(), key=lambda row: tuple(getattr(row, name) for name in names))


def attribute_ledger(content: LedgerContent) -> CostAttribution[UserKey]:
    """Returns the parts of the cost of a ledger's replicas, by day, model, pool and user."""
    use: dict[tuple[str, str, str], dict[UserKey, int]] = defaultdict(lambda: defaultdict(int))
    for row in content.usage:
        if row.engine_microseconds:
            use[row.day, row.model, row.pool][row.tenant, row.key, row.adapter] += row.engine_microseconds
    ordered: Mapping[tuple[str, str, str], Mapping[UserKey, int]] = {
        place: dict(sorted(users.items())) for place, users in use.items()
    }
    return attribute_cost(replica_seconds(content.replicas), ordered)


def cost_report(content: LedgerContent, dimensions: Sequence[str]) -> CostReport:
    """Returns the cost of a ledger's replicas, by group. Unused replicas have rows of their own."""
    attribution = attribute_ledger(content)
    costs: dict[tuple[tuple[str | None, ...], str], int] = defaultdict(int)
    for share in attribution.shares:
        tenant, key, adapter = share.user or (None, None, None)
        found = {"day": share.day, "model": share.model, "tenant": tenant, "key": key, "adapter": adapter}
        costs[tuple(found[name] for name in dimensions), share.state] += share.nano_usd
    usage = {tuple(getattr(row, name) for name in dimensions): row for row in group_usage(content.usage, dimensions)}
    for group in usage:
        costs[group, ""] += 0  # also those whose engine time has no price
    rows = [
        CostRow(
            group,
            state,
            nano_usd,
            usage[group].engine_microseconds if not state and group in usage else 0,
            usage[group].saved_nano_usd if not state and group in usage else 0,
        )
        for (group, state), nano_usd in costs.items()
    ]
    return CostReport(
        tuple(dimensions),
        sorted(rows, key=_row_order(dimensions)),
        attribution.bill_nano_usd,
        attribution.unpriced_seconds,
        attribution.unattributed_microseconds,
    )


def _row_order(dimensions: Sequence[str]) -> Callable[[CostRow], tuple[object, ...]]:
    """Returns the order of rows: by day if they have one, then requests, then the rest."""
    days = [at for at, name in enumerate(dimensions) if name == "day"]

    def order(row: CostRow) -> tuple[object, ...]:
        day = row.group[days[0]] if days else ""
        return day or "", row.state, tuple(value or "" for value in row.group)

    return order
