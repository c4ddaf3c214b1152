"""Demand divided among many pools of one role: within a tick, and hardly dearer than the cheapest
division.
"""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.core.sizing.pool_allocation import PoolShare, allocation_options

SIZES = st.floats(0.1, 8.0)


def part(name: str, capacity: float, cost: float, minimum: int, more: int, desired: int) -> PoolShare:
    return PoolShare(name, capacity, cost, minimum, minimum + more, desired, desired, 0.05)


PARTS = st.lists(
    st.builds(part, st.just(""), SIZES, SIZES, st.integers(0, 3), st.integers(0, 60), st.integers(0, 40)),
    min_size=6,
    max_size=40,
).map(lambda found: [part(f"p{at}", *_numbers(one)) for at, one in enumerate(found)])


def _numbers(one: PoolShare) -> tuple[float, float, int, int, int]:
    return one.capacity, one.cost, one.minimum, one.maximum - one.minimum, one.desired


def price(one: PoolShare, count: float) -> float:
    return one.cost * (count + one.start_price * max(0.0, count - one.desired))


def bought_in_parts(need: float, parts: list[PoolShare]) -> float:
    """Returns the cost of a division into parts of replicas; none of whole replicas is cheaper."""
    total = sum(price(one, one.minimum) for one in parts)
    left = need - sum(one.capacity * one.minimum for one in parts)
    steps = []
    for one in parts:
        there = min(one.maximum, max(one.minimum, one.desired))
        steps.append((one.cost / one.capacity, (there - one.minimum) * one.capacity))
        steps.append((one.cost * (1.0 + one.start_price) / one.capacity, (one.maximum - there) * one.capacity))
    for dear, room in sorted(steps):
        taken = min(max(0.0, left), room)
        total, left = total + taken * dear, left - taken
    return total


@given(PARTS, st.floats(0.0, 3_000.0))
def test_among_many_pools_the_need_is_carried_at_a_replica_more_than_the_least_price(
    parts: list[PoolShare], need: float
) -> None:
    counts = allocation_options(need, parts, {}).best
    assert all(one.minimum <= counts[one.name] <= one.maximum for one in parts)
    most = sum(one.capacity * one.maximum for one in parts)
    carried = sum(one.capacity * counts[one.name] for one in parts)
    assert carried >= min(need, most) - 1e-6
    dearest = max(one.cost * (1.0 + one.start_price) for one in parts)
    if need <= most:
        assert sum(price(one, counts[one.name]) for one in parts) <= bought_in_parts(need, parts) + dearest + 1e-6


def test_a_hundred_pools_keep_what_they_have_where_nothing_is_cheaper() -> None:
    parts = [part(f"p{at}", 1.0, 2.0, 0, 1_000, 10) for at in range(100)]
    found = allocation_options(999.5, parts, {one.name: 10 for one in parts})
    assert found.staying is not None
    assert found.staying == {one.name: 10 for one in parts}
    assert sum(found.best.values()) == 1_000
    assert found.savings_per_hour == 0.0
