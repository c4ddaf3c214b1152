"""Divides the cost of replicas among those who used them, so that the parts add up to the bill.

- The bill is replica-seconds × price, over all states.
- The seconds of ready and draining replicas serve requests. Each user pays for the share of these
  seconds that its engine time is. The rest is idle.
- With more engine time than seconds, users share the seconds by engine time, and nothing is idle.
- Starting and sleeping replicas serve no requests; their cost is shown by state.

Whole numbers throughout. What rounding leaves goes to the parts with the largest remainders. So the
sum of all parts is the bill, to the billionth of a dollar.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fairlead.fleet.model import InstanceState
from fairlead.usage.replica_log import Capacity

User = TypeVar("User")
IDLE: Final = "Idle"
_SERVING: Final = (InstanceState.READY.value, InstanceState.DRAINING.value)
_HOUR_SECONDS: Final = 3_600


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
    bill = _round_to_nano(sum(costs))
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


def _round_to_nano(cost: int) -> int:
    return (2 * cost + _HOUR_SECONDS) // (2 * _HOUR_SECONDS)


def _capacity_order(item: tuple[Capacity, int]) -> tuple[str, str, str, str, int]:
    day, model, pool, state, price = item[0]
    return day, model, pool, state, -1 if price is None else price
