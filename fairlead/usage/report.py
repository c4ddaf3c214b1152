"""Usage and cost, grouped by tenant, key, model, adapter, dialect and day.

Divides the cost of replicas among those who used them, so that the parts add up to the bill.

- The bill is replica-seconds × price, over all states.
- The seconds of ready and draining replicas serve requests. Each user pays for the share of these
  seconds that its engine time is. The rest is idle.
- With more engine time than seconds, users share the seconds by engine time, and nothing is idle.
- Starting and sleeping replicas serve no requests; their cost is shown by state.

Whole numbers throughout. What rounding leaves goes to the parts with the largest remainders. So the
sum of all parts is the bill, to the billionth of a dollar.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

from fairlead.errors import BadInput
from fairlead.fleet.model import InstanceState
from fairlead.names import closest_matches
from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import DIMENSIONS, UsageTable, UsageTotals
from fairlead.usage.replica_log import Capacity, replica_seconds

User = TypeVar("User")
IDLE: Final = "Idle"
_SERVING: Final = (InstanceState.READY.value, InstanceState.DRAINING.value)
_HOUR_SECONDS: Final = 3_600

UserKey: TypeAlias = tuple[str, str, str, str]
"""Tenant, key, adapter and dialect."""
_USER_DIMENSIONS: Final = ("tenant", "key", "adapter", "dialect")


@dataclass(frozen=True, slots=True)
class CostShare(Generic[User]):
    """A part of the cost of a pool on one day.

    user: None for a part that no request used; `state` then says why: `Idle`, `Starting` or
        `Sleeping`.
    """

    day: str
    model: str
    pool: str
    user: User | None
    state: str
    nano_usd: int


@dataclass(frozen=True, slots=True)
class CostAttribution(Generic[User]):
    """The parts of a bill.

    bill_nano_usd: replica-seconds × price, which is the sum of all parts.
    unpriced_seconds: replica-seconds without a price, which are in no part.
    unattributed_microseconds: engine time in pools without a priced replica, which has no cost.
    """

    shares: Sequence[CostShare[User]]
    bill_nano_usd: int
    unpriced_seconds: int = 0
    unattributed_microseconds: int = 0


@dataclass(slots=True)
class _Pool:
    """A pool on one day; costs are in 3,600ths of a billionth of a dollar."""

    serving_seconds: int = 0
    serving_cost: int = 0
    other_cost: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def attribute_cost(
    capacity: Mapping[Capacity, int], use: Mapping[tuple[str, str, str], Mapping[User, int]]
) -> CostAttribution[User]:
    """Returns the parts of the cost of replicas.

    capacity: replica-seconds.
    use: engine time in microseconds by day, model and pool, and by user.
    """
    pools: dict[tuple[str, str, str], _Pool] = defaultdict(_Pool)
    unpriced = 0
    for (day, model, pool, state, price), seconds in sorted(capacity.items(), key=_capacity_order):
        if price is None:
            unpriced += seconds
        elif state in _SERVING:
            found = pools[day, model, pool]
            found.serving_seconds += seconds
            found.serving_cost += seconds * price
        else:
            pools[day, model, pool].other_cost[state] += seconds * price
    parts: list[tuple[tuple[str, str, str], User | None, str, int]] = []
    for place in sorted(pools):
        parts += [(place, *part) for part in _pool_parts(pools[place], use.get(place, {}))]
    costs = [part[3] for part in parts]
    bill = (2 * sum(costs) + _HOUR_SECONDS) // (2 * _HOUR_SECONDS)
    amounts = apportion(bill, costs)
    shares = [
        CostShare(*place, user, state, amount)
        for (place, user, state, _), amount in zip(parts, amounts, strict=True)
        if amount
    ]
    lost = sum(
        sum(by_user.values())
        for place, by_user in use.items()
        if place not in pools or not pools[place].serving_seconds
    )
    return CostAttribution(shares, bill, unpriced, lost)


def _pool_parts(pool: _Pool, use: Mapping[User, int]) -> list[tuple[User | None, str, int]]:
    """Returns (user, state, cost) of each part of a pool's cost."""
    users = [(user, used) for user, used in use.items() if used > 0]
    idle = max(0, pool.serving_seconds * 1_000_000 - sum(used for _, used in users))
    costs = apportion(pool.serving_cost, [*(used for _, used in users), idle])
    parts: list[tuple[User | None, str, int]] = [
        (user, "", cost) for (user, _), cost in zip(users, costs, strict=False)
    ]
    return [*parts, (None, IDLE, costs[-1]), *((None, state, cost) for state, cost in sorted(pool.other_cost.items()))]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Returns whole parts of `total` in proportion to the weights; they add up to it.

    Largest remainders get what rounding leaves; of equal ones, the first. If all weights are 0, the
    last part gets all.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * (len(weights) - 1) + [total] if weights else []
    parts = [total * weight // whole for weight in weights]
    left = total - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda at: -(total * weights[at] % whole))
    for at in by_remainder[:left]:
        parts[at] += 1
    return parts


def _capacity_order(item: tuple[Capacity, int]) -> tuple[str, str, str, str, int]:
    day, model, pool, state, price = item[0]
    return day, model, pool, state, -1 if price is None else price


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
            use[row.day, row.model, row.pool][row.tenant, row.key, row.adapter, row.dialect] += row.engine_microseconds
    ordered: Mapping[tuple[str, str, str], Mapping[UserKey, int]] = {
        place: dict(sorted(users.items())) for place, users in use.items()
    }
    return attribute_cost(replica_seconds(content.replicas), ordered)


def cost_report(content: LedgerContent, dimensions: Sequence[str]) -> CostReport:
    """Returns the cost of a ledger's replicas, by group. Unused replicas have rows of their own."""
    attribution = attribute_ledger(content)
    costs: dict[tuple[tuple[str | None, ...], str], int] = defaultdict(int)
    for share in attribution.shares:
        user = share.user or (None, None, None, None)
        found = {"day": share.day, "model": share.model, **dict(zip(_USER_DIMENSIONS, user, strict=True))}
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
