"""A need divided among pools that serve the same: large types carry the base, small ones what is left over.

Capacities and costs differ, and what a pool is asked for is whole replicas. With two or three pools all sensible divisions are
tried: of the pools with the most capacity per replica every number up to what covers the need alone, the rest by the last. The
cheapest wins. With more pools there are too many to try; what carries most for its price goes first then. What must be started anew
counts a bit more (a start-up is paid before it serves), so that a division is only left for one that is really cheaper. A pool is
lowered in favour of another only as far as what is ready carries the need: first make, then break."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_UNMET_COST = 1e6
"""What a replica's worth of need that nobody carries counts, so that no division leaves any where it need not."""
_MAX_ALLOCATIONS = 4_000
"""Divisions that are all tried (some tens of milliseconds): three pools of 60 replicas each are about as many. With four pools of 30
there are 30,000, with six more than a tick could try."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PoolShare:
    """A pool as far as dividing goes: ``capacity`` of a replica in units of the need, ``cost`` of one, bounds, and what there is.
    ``start_price`` is the share of an hour's cost that starting one counts."""

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
    """The division that is kept, ``base`` by pool, and what keeping it has cost more than the best one (``regret``, in the pools'
    currency) until ``at``."""

    base: Mapping[str, int] = field(default_factory=dict)
    regret: float = 0.0
    at: float | None = None


@dataclass(frozen=True, slots=True)
class AllocationOptions:
    """How a need can be divided: ``best`` is cheapest; ``stays`` cheapest where all pools but the smallest type have what the base
    says (None where they cannot). ``saves`` is what the one costs less an hour, ``price`` what starting its replicas costs more."""

    best: Mapping[str, int]
    staying: Mapping[str, int] | None
    savings_per_hour: float = 0.0
    switch_cost: float = 0.0


def allocation_options(need: float, parts: Sequence[PoolShare], base: Mapping[str, int]) -> AllocationOptions:
    """Replicas by pool that together carry ``need`` at the least cost, or all there may be where that is not enough."""
    ordered = sorted(parts, key=lambda part: (-part.capacity, part.name))
    counts = (
        _search_all(need, ordered)
        if _count_allocations(need, ordered) <= _MAX_ALLOCATIONS
        else _fill_greedily(need, ordered)
    )
    best = _total_cost(need, ordered, counts), counts
    staying = _staying_allocation(need, ordered, base)
    if staying is None:
        return AllocationOptions(counts, None)
    stays = _total_cost(need, ordered, staying), staying
    starts = [sum(_start_cost(part, counts[part.name]) for part in ordered) for counts in (best[1], stays[1])]
    running = [cost - start for (cost, _), start in zip((best, stays), starts, strict=True)]
    return AllocationOptions(best[1], stays[1], running[1] - running[0], max(0.0, starts[0] - starts[1]))


def transition_targets(need: float, parts: Sequence[PoolShare], counts: Mapping[str, int]) -> dict[str, int]:
    """``counts`` as the targets of now: a pool is lowered only as far as what is ready of the others carries ``need``."""
    return _make_before_break(need, sorted(parts, key=lambda part: (-part.capacity, part.name)), dict(counts))


def follow_mix(need: float, parts: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int]:
    """Replicas by pool that together carry ``need``, with as many of the larger types as ``base`` says, as far as the need takes
    them, and of the smallest what is left; where that has no room for it, the larger ones after all."""
    return _make_before_break(
        need, sorted(parts, key=lambda part: (-part.capacity, part.name)), _fill_from_mix(need, parts, base)
    )


def mix_cost(need: float, parts: Sequence[PoolShare], base: Mapping[str, int]) -> float:
    """What ``need`` costs an hour once ``base`` is followed, with what is started for it."""
    return _total_cost(need, parts, _fill_from_mix(need, parts, base))


def _fill_from_mix(need: float, parts: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int]:
    ordered = sorted(parts, key=lambda part: (-part.capacity, part.name))
    counts: dict[str, int] = {}
    left = need
    for place, part in enumerate(ordered):
        taken = max(0, math.ceil(left / part.capacity - _ROUNDING))
        wanted = taken if place == len(ordered) - 1 else min(taken, base[part.name])
        counts[part.name] = min(part.maximum, max(part.minimum, wanted))
        left -= counts[part.name] * part.capacity
    for part in reversed(ordered):
        more = min(part.maximum - counts[part.name], max(0, math.ceil(left / part.capacity - _ROUNDING)))
        counts[part.name] += more
        left -= more * part.capacity
    return counts


def own_need(need: float, parts: Sequence[PoolShare], counts: Mapping[str, int], name: str) -> float:
    """What of ``need`` is left for the pool ``name`` when the others have ``counts``, in its own replicas."""
    others = sum(part.capacity * counts[part.name] for part in parts if part.name != name)
    own = next(part for part in parts if part.name == name)
    return max(0.0, need - others) / own.capacity


def _total_cost(need: float, parts: Sequence[PoolShare], counts: Mapping[str, int]) -> float:
    """What ``counts`` cost an hour, with what is started for them, and by far more where they do not carry ``need``."""
    carried = sum(part.capacity * counts[part.name] for part in parts)
    return sum(_pool_cost(part, counts[part.name]) for part in parts) + _UNMET_COST * max(0.0, need - carried)


def _pool_cost(part: PoolShare, count: int) -> float:
    return part.cost * count + _start_cost(part, count)


def _start_cost(part: PoolShare, count: int) -> float:
    return part.cost * part.start_price * max(0, count - part.desired)


def _search_all(need: float, parts: Sequence[PoolShare]) -> dict[str, int]:
    """The best of all divisions; of those that cost the same the first."""
    best: tuple[float, dict[str, int]] | None = None
    for counts in _allocations(need, parts):
        cost = _total_cost(need, parts, counts)
        if best is None or cost < best[0] - _ROUNDING:
            best = cost, counts
    return {} if best is None else best[1]


def _fill_greedily(need: float, parts: Sequence[PoolShare]) -> dict[str, int]:
    """A division that costs at most one replica more than the best: what carries most for its price as far as whole replicas of it
    go, and of whatever is cheapest what is left over then."""
    counts = {part.name: part.minimum for part in parts}
    left = need - sum(part.capacity * part.minimum for part in parts)
    steps: list[tuple[float, PoolShare, int]] = []
    for part in parts:
        there = min(part.maximum, max(part.minimum, part.desired))
        steps.append((part.cost / part.capacity, part, there - part.minimum))
        steps.append((part.cost * (1.0 + part.start_price) / part.capacity, part, part.maximum - there))
    for _, part, room in sorted(steps, key=lambda step: step[0]):
        if left <= _ROUNDING:
            break
        taken = min(room, math.floor(left / part.capacity + _ROUNDING))
        counts[part.name] += taken
        left -= taken * part.capacity
        if taken < room and left > _ROUNDING:
            last, more = _cheapest_remainder(left, parts, counts)
            counts[last] += more
            break
    return counts


def _cheapest_remainder(left: float, parts: Sequence[PoolShare], counts: Mapping[str, int]) -> tuple[str, int]:
    """The pool whose replicas carry what is ``left`` over at the least price, of those that have as many more."""
    found = []
    for place, part in enumerate(parts):
        had, more = counts[part.name], math.ceil(left / part.capacity - _ROUNDING)
        if had + more <= part.maximum:
            found.append((_pool_cost(part, had + more) - _pool_cost(part, had), place, part.name, more))
    _, _, name, more = min(found)
    return name, more


def _staying_allocation(need: float, parts: Sequence[PoolShare], base: Mapping[str, int]) -> dict[str, int] | None:
    """All pools but the last as ``base`` says, or as they are; None where that is out of bounds, or more than the need takes."""
    counts: dict[str, int] = {}
    for part in parts[:-1]:
        count = base.get(part.name, part.desired)
        if not part.minimum <= count <= _max_needed(need, part):
            return None
        counts[part.name] = count
        need = max(0.0, need - count * part.capacity)
    return {**counts, parts[-1].name: _max_needed(need, parts[-1])} if parts else None


def _max_needed(need: float, part: PoolShare) -> int:
    """Replicas that carry ``need`` alone, within bounds."""
    return min(part.maximum, max(part.minimum, math.ceil(need / part.capacity - _ROUNDING)))


def _count_allocations(need: float, parts: Sequence[PoolShare]) -> int:
    """How many divisions there are at most; of the last pool each takes what is left."""
    return math.prod(_max_needed(need, part) - part.minimum + 1 for part in parts[:-1])


def _allocations(need: float, parts: Sequence[PoolShare]) -> Iterator[dict[str, int]]:
    if not parts:
        return
    part = parts[0]
    most = _max_needed(need, part)
    if len(parts) == 1:
        yield {part.name: most}
        return
    for count in range(part.minimum, most + 1):
        for rest in _allocations(max(0.0, need - count * part.capacity), parts[1:]):
            yield {part.name: count, **rest}


def _make_before_break(need: float, parts: Sequence[PoolShare], counts: dict[str, int]) -> dict[str, int]:
    """``counts`` with pools that are lowered kept up as far as the others are not ready to take over."""
    carried = sum(min(part.ready, counts[part.name]) * part.capacity for part in parts)
    raised = any(counts[part.name] > part.ready for part in parts)
    for part in sorted(parts, key=lambda part: part.capacity):
        spare = min(part.ready, part.desired) - counts[part.name]
        if spare <= 0 or not raised:
            continue
        wanted = min(spare, max(0, math.ceil((need - carried) / part.capacity - _ROUNDING)))
        counts[part.name] += wanted
        carried += wanted * part.capacity
    return counts
