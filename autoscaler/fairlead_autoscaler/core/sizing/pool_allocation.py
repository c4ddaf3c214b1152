"""Pool allocation: demand divided among pools of one role, in whole replicas.

Large types carry the base load, small ones the rest. With two or three pools all sensible
allocations are tried, and the cheapest wins. The larger types take every number up to what covers
demand alone, the smallest type takes the rest. With more pools there are too many allocations; then
the pools with the most capacity for their price come first.

A start counts as extra cost, since a startup is paid before it serves. So an allocation is only
left for one that is really cheaper. A pool is lowered in favor of another only as far as ready
replicas carry the demand: make before break.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_autoscaler.core.float_sum import float_sum

_UNMET_COST = 1e6
"""The cost of a replica's worth of demand that no pool carries."""
_MAX_ALLOCATIONS = 4_000
"""The most allocations that are all tried, in some tens of milliseconds.

Three pools of 60 replicas have about as many, four pools of 30 have 30,000."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PoolShare:
    """The capacity, cost and bounds of a pool, from which an allocation is computed.

    capacity: of a replica, in units of demand.
    cost: of a replica per hour.
    start_price: share of that cost which one start adds.
    """

    name: str
    capacity: float
    cost: float
    minimum: int
    maximum: int
    desired: int
    ready: int
    start_price: float


@dataclass(frozen=True, slots=True)
class PreviousAllocation:
    """The allocation that a group keeps.

    base: replicas by pool.
    regret: what it has cost more than the best one, until the time `at`.
    """

    base: Mapping[str, int] = field(default_factory=dict)
    regret: float = 0.0
    at: float | None = None


@dataclass(frozen=True, slots=True)
class AllocationOptions:
    """The cheapest allocation, and the cheapest one that keeps the larger types.

    staying: None: the larger types cannot be kept.
    savings_per_hour: what `best` costs less than `staying`, without starts.
    switch_cost: what the starts for `best` cost more.
    """

    best: Mapping[str, int]
    staying: Mapping[str, int] | None
    savings_per_hour: float = 0.0
    switch_cost: float = 0.0


def allocation_options(demand: float, pools: Sequence[PoolShare], base: Mapping[str, int]) -> AllocationOptions:
    """Returns the cheapest allocation for `demand`, and the cheapest that keeps the larger types of
    `base`.

    All pools have their maxima if these do not carry `demand`.

    base: replicas by pool to keep.
    """
    ordered = _by_capacity(pools)
    can_try_all = _count_allocations(demand, ordered) <= _MAX_ALLOCATIONS
    best = _search_all(demand, ordered) if can_try_all else _fill_greedily(demand, ordered)
    staying = _staying_allocation(demand, ordered, base)
    if staying is None:
        return AllocationOptions(best, None)
    best_starts, staying_starts = (
        float_sum([_start_cost(pool, counts[pool.name]) for pool in ordered]) for counts in (best, staying)
    )
    best_cost = _total_cost(demand, ordered, best) - best_starts
    staying_cost = _total_cost(demand, ordered, staying) - staying_starts
    return AllocationOptions(best, staying, staying_cost - best_cost, max(0.0, best_starts - staying_starts))


def transition_targets(demand: float, pools: Sequence[PoolShare], counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the replicas that each pool should have now, on the way to `counts`.

    A pool is lowered only as far as ready replicas of the others carry `demand`.
    """
    return _make_before_break(demand, _by_capacity(pools), dict(counts))


def follow_mix(demand: float, pools: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int]:
    return _make_before_break(demand, _by_capacity(pools), _fill_from_mix(demand, pools, base))


def mix_cost(demand: float, pools: Sequence[PoolShare], base: Mapping[str, int]) -> float:
    """Returns the cost per hour of `demand` if the mix `base` is followed, with starts."""
    return _total_cost(demand, pools, _fill_from_mix(demand, pools, base))


def demand_of_pool(demand: float, pools: Sequence[PoolShare], counts: Mapping[str, int], name: str) -> float:
    """Returns the demand that the other pools leave to the pool `name`, in its own replicas."""
    others = float_sum([pool.capacity * counts[pool.name] for pool in pools if pool.name != name])
    own = next(pool for pool in pools if pool.name == name)
    return max(0.0, demand - others) / own.capacity


def _by_capacity(pools: Sequence[PoolShare]) -> list[PoolShare]:
    return sorted(pools, key=lambda pool: (-pool.capacity, pool.name))


def _fill_from_mix(demand: float, pools: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int]:
    """Returns replicas that carry `demand`: of the larger types as many as `base` has, of the
    smallest the rest. If the smallest type has no room, the larger types exceed `base`.
    """
    ordered = _by_capacity(pools)
    counts: dict[str, int] = {}
    left = demand
    for place, pool in enumerate(ordered):
        needed = max(0, math.ceil(left / pool.capacity - _ROUNDING))
        wanted = needed if place == len(ordered) - 1 else min(needed, base[pool.name])
        counts[pool.name] = min(pool.maximum, max(pool.minimum, wanted))
        left -= counts[pool.name] * pool.capacity
    for pool in reversed(ordered):
        more = min(pool.maximum - counts[pool.name], max(0, math.ceil(left / pool.capacity - _ROUNDING)))
        counts[pool.name] += more
        left -= more * pool.capacity
    return counts


def _total_cost(demand: float, pools: Sequence[PoolShare], counts: Mapping[str, int]) -> float:
    carried = float_sum([pool.capacity * counts[pool.name] for pool in pools])
    return float_sum([_pool_cost(pool, counts[pool.name]) for pool in pools]) + _UNMET_COST * max(0.0, demand - carried)


def _pool_cost(pool: PoolShare, count: int) -> float:
    return pool.cost * count + _start_cost(pool, count)


def _start_cost(pool: PoolShare, count: int) -> float:
    return pool.cost * pool.start_price * max(0, count - pool.desired)


def _search_all(demand: float, pools: Sequence[PoolShare]) -> dict[str, int]:
    """Returns the cheapest of all allocations; the first of equal ones."""
    best: tuple[float, dict[str, int]] | None = None
    for counts in _allocations(demand, pools):
        cost = _total_cost(demand, pools, counts)
        if best is None or cost < best[0] - _ROUNDING:
            best = cost, counts
    return {} if best is None else best[1]


def _fill_greedily(demand: float, pools: Sequence[PoolShare]) -> dict[str, int]:
    """Returns an allocation that costs at most one replica more than the best.

    Whole replicas come from the pools with the most capacity for their price, the remainder from
    the cheapest one.
    """
    counts = {pool.name: pool.minimum for pool in pools}
    left = demand - float_sum([pool.capacity * pool.minimum for pool in pools])
    steps: list[tuple[float, PoolShare, int]] = []
    for pool in pools:
        present = min(pool.maximum, max(pool.minimum, pool.desired))
        steps.append((pool.cost / pool.capacity, pool, present - pool.minimum))
        steps.append((pool.cost * (1.0 + pool.start_price) / pool.capacity, pool, pool.maximum - present))
    for _, pool, room in sorted(steps, key=lambda step: step[0]):
        if left <= _ROUNDING:
            break
        taken = min(room, math.floor(left / pool.capacity + _ROUNDING))
        counts[pool.name] += taken
        left -= taken * pool.capacity
        if taken < room and left > _ROUNDING:
            last, more = _cheapest_remainder(left, pools, counts)
            counts[last] += more
            break
    return counts


def _cheapest_remainder(left: float, pools: Sequence[PoolShare], counts: Mapping[str, int]) -> tuple[str, int]:
    """Returns the pool with room that carries the demand `left` at the lowest cost, and how many
    more replicas it takes.
    """
    found = []
    for place, pool in enumerate(pools):
        before, more = counts[pool.name], math.ceil(left / pool.capacity - _ROUNDING)
        if before + more <= pool.maximum:
            found.append((_pool_cost(pool, before + more) - _pool_cost(pool, before), place, pool.name, more))
    _, _, name, more = min(found)
    return name, more


def _staying_allocation(demand: float, pools: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int] | None:
    """Returns the allocation that keeps all pools but the last as in `base`, or as they are.

    None if that is out of bounds, or more than the demand.
    """
    counts: dict[str, int] = {}
    for pool in pools[:-1]:
        count = base.get(pool.name, pool.desired)
        if not pool.minimum <= count <= _needed_alone(demand, pool):
            return None
        counts[pool.name] = count
        demand = max(0.0, demand - count * pool.capacity)
    return {**counts, pools[-1].name: _needed_alone(demand, pools[-1])} if pools else None


def _needed_alone(demand: float, pool: PoolShare) -> int:
    return min(pool.maximum, max(pool.minimum, math.ceil(demand / pool.capacity - _ROUNDING)))


def _count_allocations(demand: float, pools: Sequence[PoolShare]) -> int:
    return math.prod(_needed_alone(demand, pool) - pool.minimum + 1 for pool in pools[:-1])


def _allocations(demand: float, pools: Sequence[PoolShare]) -> Iterator[dict[str, int]]:
    """Yields all sensible allocations; the last pool carries what the others leave."""
    if not pools:
        return
    pool = pools[0]
    most = _needed_alone(demand, pool)
    if len(pools) == 1:
        yield {pool.name: most}
        return
    for count in range(pool.minimum, most + 1):
        for rest in _allocations(max(0.0, demand - count * pool.capacity), pools[1:]):
            yield {pool.name: count, **rest}


def _make_before_break(demand: float, pools: Sequence[PoolShare], counts: dict[str, int]) -> dict[str, int]:
    """Raises `counts` for pools that others are not ready to replace yet, and returns them."""
    carried = float_sum([min(pool.ready, counts[pool.name]) * pool.capacity for pool in pools])
    is_raised = any(counts[pool.name] > pool.ready for pool in pools)
    for pool in sorted(pools, key=lambda pool: pool.capacity):
        spare = min(pool.ready, pool.desired) - counts[pool.name]
        if spare <= 0 or not is_raised:
            continue
        kept = min(spare, max(0, math.ceil((demand - carried) / pool.capacity - _ROUNDING)))
        counts[pool.name] += kept
        carried += kept * pool.capacity
    return counts
