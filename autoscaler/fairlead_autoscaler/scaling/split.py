"""A need divided among pools that serve the same: large types carry the base, small ones what is left over.

Capacities and costs differ, and what a pool is asked for is whole replicas. With two or three pools all sensible divisions are
tried: of the pools with the most capacity per replica every number up to what covers the need alone, the rest by the last. The
cheapest wins. What must be started anew counts a bit more (a start-up is paid before it serves), so that a division is only left
for one that is really cheaper. A pool is lowered in favour of another only as far as what is ready carries the need: first make,
then break."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_SHORT = 1e6
"""What a replica's worth of need that nobody carries counts, so that no division leaves any where it need not."""


@dataclass(frozen=True, slots=True)
class Part:
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
class Kept:
    """The division that is kept, ``base`` by pool, and what keeping it has cost more than the best one (``regret``, in the pools'
    currency) until ``at``."""

    base: Mapping[str, int] = field(default_factory=dict)
    regret: float = 0.0
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """How a need can be divided: ``best`` is cheapest; ``stays`` cheapest where all pools but the smallest type have what the base
    says (None where they cannot). ``saves`` is what the one costs less an hour, ``price`` what starting its replicas costs more."""

    best: Mapping[str, int]
    stays: Mapping[str, int] | None
    saves: float = 0.0
    price: float = 0.0


def choice(need: float, parts: Sequence[Part], base: Mapping[str, int]) -> Choice:
    """Replicas by pool that together carry ``need`` at the least cost, or all there may be where that is not enough."""
    ordered = sorted(parts, key=lambda part: (-part.capacity, part.name))
    best: tuple[float, dict[str, int]] | None = None
    stays: tuple[float, dict[str, int]] | None = None
    for counts in _ways(need, ordered):
        cost = _priced(need, ordered, counts)
        if best is None or cost < best[0] - 1e-9:
            best = cost, counts
        same = all(counts[part.name] == base.get(part.name, part.desired) for part in ordered[:-1])
        if same and (stays is None or cost < stays[0] - 1e-9):
            stays = cost, counts
    if best is None:
        return Choice({}, None)
    if stays is None:
        return Choice(best[1], None)
    starts = [sum(_starts(part, counts[part.name]) for part in ordered) for counts in (best[1], stays[1])]
    running = [cost - start for (cost, _), start in zip((best, stays), starts, strict=True)]
    return Choice(best[1], stays[1], running[1] - running[0], max(0.0, starts[0] - starts[1]))


def divide(need: float, parts: Sequence[Part], counts: Mapping[str, int]) -> dict[str, int]:
    """``counts`` as the targets of now: a pool is lowered only as far as what is ready of the others carries ``need``."""
    return _made_first(need, sorted(parts, key=lambda part: (-part.capacity, part.name)), dict(counts))


def follow(need: float, parts: Sequence[Part], base: Mapping[str, int]) -> dict[str, int]:
    """Replicas by pool that together carry ``need``, with as many of the larger types as ``base`` says, as far as the need takes
    them, and of the smallest what is left; where that has no room for it, the larger ones after all."""
    return _made_first(need, sorted(parts, key=lambda part: (-part.capacity, part.name)), _on_base(need, parts, base))


def price_on(need: float, parts: Sequence[Part], base: Mapping[str, int]) -> float:
    """What ``need`` costs an hour once ``base`` is followed, with what is started for it."""
    return _priced(need, parts, _on_base(need, parts, base))


def _on_base(need: float, parts: Sequence[Part], base: Mapping[str, int]) -> dict[str, int]:
    ordered = sorted(parts, key=lambda part: (-part.capacity, part.name))
    counts: dict[str, int] = {}
    left = need
    for place, part in enumerate(ordered):
        taken = max(0, math.ceil(left / part.capacity - 1e-9))
        wanted = taken if place == len(ordered) - 1 else min(taken, base[part.name])
        counts[part.name] = min(part.maximum, max(part.minimum, wanted))
        left -= counts[part.name] * part.capacity
    for part in reversed(ordered):
        more = min(part.maximum - counts[part.name], max(0, math.ceil(left / part.capacity - 1e-9)))
        counts[part.name] += more
        left -= more * part.capacity
    return counts


def own_share(need: float, parts: Sequence[Part], counts: Mapping[str, int], name: str) -> float:
    """What of ``need`` is left for the pool ``name`` when the others have ``counts``, in its own replicas."""
    others = sum(part.capacity * counts[part.name] for part in parts if part.name != name)
    own = next(part for part in parts if part.name == name)
    return max(0.0, need - others) / own.capacity


def _priced(need: float, parts: Sequence[Part], counts: Mapping[str, int]) -> float:
    """What ``counts`` cost an hour, with what is started for them, and by far more where they do not carry ``need``."""
    carried = sum(part.capacity * counts[part.name] for part in parts)
    return sum(_price(part, counts[part.name]) for part in parts) + _SHORT * max(0.0, need - carried)


def _price(part: Part, count: int) -> float:
    return part.cost * count + _starts(part, count)


def _starts(part: Part, count: int) -> float:
    return part.cost * part.start_price * max(0, count - part.desired)


def _ways(need: float, parts: Sequence[Part]) -> Iterator[dict[str, int]]:
    if not parts:
        return
    part = parts[0]
    most = min(part.maximum, max(part.minimum, math.ceil(need / part.capacity - 1e-9)))
    if len(parts) == 1:
        yield {part.name: most}
        return
    for count in range(part.minimum, most + 1):
        for rest in _ways(max(0.0, need - count * part.capacity), parts[1:]):
            yield {part.name: count, **rest}


def _made_first(need: float, parts: Sequence[Part], counts: dict[str, int]) -> dict[str, int]:
    """``counts`` with pools that are lowered kept up as far as the others are not ready to take over."""
    carried = sum(min(part.ready, counts[part.name]) * part.capacity for part in parts)
    raised = any(counts[part.name] > part.ready for part in parts)
    for part in sorted(parts, key=lambda part: part.capacity):
        spare = min(part.ready, part.desired) - counts[part.name]
        if spare <= 0 or not raised:
            continue
        wanted = min(spare, max(0, math.ceil((need - carried) / part.capacity - 1e-9)))
        counts[part.name] += wanted
        carried += wanted * part.capacity
    return counts
