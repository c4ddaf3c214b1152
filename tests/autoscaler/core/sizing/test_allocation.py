"""The division of a need among pools: by price, and by a mix of request shapes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    GatewayTraffic,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ScalingCore,
    ScalingPlan,
    ShapeCount,
)
from fairlead_autoscaler.core.plan_inputs import usd_per_hour
from fairlead_autoscaler.core.sizing.mix_requests import FollowedMix
from fairlead_autoscaler.core.sizing.pool_allocation import PoolShare, allocation_options, follow_mix
from fairlead_autoscaler.core.state import decode_state, encode_state
from fairlead_autoscaler.mix import create_solver
from fairlead_sim.autoscaling.reference_pools import large_profile, small_profile
from fairlead_testing.pytest_hooks.nightly import shortened

SIZES = st.floats(0.1, 8.0)


def part(name: str, capacity: float, cost: float, minimum: int, more: int, desired: int) -> PoolShare:
    return PoolShare(name, capacity, cost, minimum, minimum + more, desired, desired, 0.05)


PARTS = st.lists(
    st.builds(part, st.just(""), SIZES, SIZES, st.integers(0, 3), st.integers(0, 60), st.integers(0, 40)),
    min_size=6,
    max_size=40,
).map(lambda shares: [part(f"p{at}", *_numbers(pool)) for at, pool in enumerate(shares)])


def _numbers(pool: PoolShare) -> tuple[float, float, int, int, int]:
    return pool.capacity, pool.cost, pool.minimum, pool.maximum - pool.minimum, pool.desired


def price(pool: PoolShare, count: float) -> float:
    return pool.cost * (count + pool.start_price * max(0.0, count - pool.desired))


def bought_in_parts(need: float, parts: list[PoolShare]) -> float:
    """Returns the cost of a division into parts of replicas; none of whole replicas is cheaper."""
    total = sum(price(pool, pool.minimum) for pool in parts)
    left = need - sum(pool.capacity * pool.minimum for pool in parts)
    steps = []
    for pool in parts:
        there = min(pool.maximum, max(pool.minimum, pool.desired))
        steps.append((pool.cost / pool.capacity, (there - pool.minimum) * pool.capacity))
        steps.append((pool.cost * (1.0 + pool.start_price) / pool.capacity, (pool.maximum - there) * pool.capacity))
    for dear, room in sorted(steps):
        taken = min(max(0.0, left), room)
        total, left = total + taken * dear, left - taken
    return total


@given(PARTS, st.floats(0.0, 3_000.0))
def test_among_many_pools_the_need_is_carried_at_a_replica_more_than_the_least_price(
    parts: list[PoolShare], need: float
) -> None:
    counts = allocation_options(need, parts, {}).best
    assert all(pool.minimum <= counts[pool.name] <= pool.maximum for pool in parts)
    most = sum(pool.capacity * pool.maximum for pool in parts)
    carried = sum(pool.capacity * counts[pool.name] for pool in parts)
    assert carried >= min(need, most) - 1e-6
    dearest = max(pool.cost * (1.0 + pool.start_price) for pool in parts)
    if need <= most:
        assert sum(price(pool, counts[pool.name]) for pool in parts) <= bought_in_parts(need, parts) + dearest + 1e-6


def test_a_hundred_pools_keep_what_they_have_where_nothing_is_cheaper() -> None:
    parts = [part(f"p{at}", 1.0, 2.0, 0, 1_000, 10) for at in range(100)]
    options = allocation_options(999.5, parts, {pool.name: 10 for pool in parts})
    assert options.staying is not None
    assert options.staying == {pool.name: 10 for pool in parts}
    assert sum(options.best.values()) == 1_000
    assert options.savings_per_hour == 0.0


MODEL = ModelSpec(
    "chat",
    3.0,
    0.15,
    (
        PoolSpec("S", minimum=1, maximum=30, profile=small_profile()),
        PoolSpec("L", cost_per_hour=3.7, minimum=0, maximum=9, profile=large_profile()),
    ),
)
SHAPES = (ShapeCount(1_000.0, 200.0, 45.0), ShapeCount(200.0, 400.0, 5.0))


class FakeSolver:
    """A solver that records its queries and gives all the same reply; None for no mix.

    after: the ticks until a reply.
    """

    def __init__(self, replicas: dict[str, int] | None = None, rule: str = "milp", *, after: int = 1) -> None:
        self.asked: list[MixRequest] = []
        self.rule, self._replicas, self._after = rule, replicas, after
        self._open: list[tuple[int, MixResult]] = []

    def replies(self) -> dict[str, MixResult]:
        """Returns the replies that come with this tick."""
        self._open = [(left - 1, reply) for left, reply in self._open]
        due = [reply for left, reply in self._open if left <= 0]
        self._open = [(left, reply) for left, reply in self._open if left > 0]
        return {Role.SERVE.value: due[0]} if due else {}

    def query(self, plan: ScalingPlan) -> None:
        """Takes the queries of a plan."""
        for asked in plan.asks.values():
            self.asked.append(asked)
            self._open.append((self._after, MixResult(asked.at, self._replicas, self.rule)))


def driven(
    core: ScalingCore,
    ticks: int,
    shapes: tuple[ShapeCount, ...] | None = SHAPES,
    arrivals: Callable[[int], float] = lambda tick: 40.0,
    begin: int = 0,
    desired: dict[str, int] | None = None,
    ask: FakeSolver | None = None,
) -> tuple[list[ScalingPlan], dict[str, int]]:
    """Returns the plans of so many ticks, five seconds apart, and the last replicas.

    Desired replicas are ready at the next tick. Without ``ask`` no query gets a reply.
    """
    there = dict(desired or {"S": 9, "L": 0})
    plans = []
    for tick in range(begin, begin + ticks):
        seen = {name: PoolObservation(count, count, replicas=()) for name, count in there.items()}
        came = arrivals(tick)
        replies = {} if ask is None else ask.replies()
        observation = Observation(tick * 5.0, GatewayTraffic(came, 1_000.0 * came), seen, shapes=shapes, mixes=replies)
        plans.append(core.step(observation))
        if ask is not None:
            ask.query(plans[-1])
        there = {name: pool.replicas for name, pool in plans[-1].pools.items()}
    return plans, there


@cache
def rising_without_replies() -> list[ScalingPlan]:
    return driven(ScalingCore(MODEL), 150, arrivals=lambda tick: 40.0 + tick)[0]


@cache
def without_replies() -> list[ScalingPlan]:
    return driven(ScalingCore(MODEL), 160)[0]


def numbers(plans: list[ScalingPlan]) -> list[dict[str, int]]:
    return [{name: pool.replicas for name, pool in plan.pools.items()} for plan in plans]


def test_a_solver_is_asked_every_five_minutes_what_the_need_takes_and_is_followed() -> None:
    ask = FakeSolver({"S": 2, "L": 1})
    plans, there = driven(ScalingCore(MODEL), 160, ask=ask)
    assert len(ask.asked) == 3  # in 800 s, of which the first are too few to know the shapes
    rates, candidates = ask.asked[-1].rates, ask.asked[-1].candidates
    assert len(rates) == 2
    assert max(rates) == pytest.approx(9.0 * min(rates))
    assert sum(rates) > 8.0  # what arrives a second, and room
    assert [(candidate.name, candidate.minimum, candidate.maximum) for candidate in candidates] == [
        ("S", 1, 30),
        ("L", 0, 9),
    ]
    assert all(each > 0.0 for candidate in candidates for each in candidate.throughput)
    assert there["L"] == 1
    assert "by the mix of shapes (milp)" in plans[-1].pools["S"].reason
    assert plans[-1].pools["L"].inputs["mix_replicas"].value == 1.0


def test_over_all_shapes_a_pool_carries_what_the_core_says_it_does() -> None:
    ask = FakeSolver(None, "greedy-timeout")
    plans, _ = driven(ScalingCore(MODEL), 100, ask=ask)
    rates, candidates = ask.asked[-1].rates, ask.asked[-1].candidates
    for candidate in candidates:
        alone = sum(rates) / sum(rate / each for rate, each in zip(rates, candidate.throughput, strict=True))
        assert alone == pytest.approx(
            plans[-1].pools[candidate.name].inputs["capacity_requests_per_second"].value, rel=0.05
        )


def test_a_shape_that_no_replica_of_a_pool_can_serve_is_left_to_the_others() -> None:
    ask = FakeSolver(None, "idle")
    driven(ScalingCore(MODEL), 100, (*SHAPES, ShapeCount(20_000.0, 100.0, 5.0)), ask=ask)
    little, big = ask.asked[-1].candidates
    assert 0.0 in little.throughput
    assert 0.0 not in big.throughput


@pytest.mark.parametrize("ask", [FakeSolver(None, "greedy-timeout"), FakeSolver({"S": 2}, "milp")])
def test_an_answer_that_is_none_changes_no_number_and_the_plan_says_so(ask: FakeSolver) -> None:
    plain = rising_without_replies()
    with_one, _ = driven(ScalingCore(MODEL), 150, arrivals=lambda tick: 40.0 + tick, ask=ask)
    assert numbers(plain) == numbers(with_one)
    assert f"mean request (mix: {ask.rule})" in with_one[-1].pools["S"].reason


def test_without_a_reply_the_mean_request_divides_and_the_query_is_repeated() -> None:
    plans = without_replies()
    asked = [at for at, plan in enumerate(plans) if plan.asks]
    assert [after - before for before, after in pairwise(asked)] == [60, 60]
    reasons = [plan.pools["S"].reason for plan in plans]
    spans = [(0, asked[0], "unasked"), (asked[0], asked[1], "asked"), (asked[1], asked[2], "unanswered")]
    for begin, end, rule in spans:  # not at every look: a pool that is being lowered says how that goes
        rules = {reason.partition("(mix: ")[2].rstrip(")") for reason in reasons[begin:end] if "(mix: " in reason}
        assert rules == {rule}
    without, _ = driven(ScalingCore(MODEL), 160, None)
    assert numbers(without) == numbers(plans)


def test_a_mix_expires_ten_minutes_after_the_last_reply() -> None:
    core, ask = ScalingCore(MODEL), FakeSolver({"S": 2, "L": 1})
    _, there = driven(core, 60, ask=ask)
    assert core.state.groups["Serve"].blend.told_at == 175.0
    plans, _ = driven(core, 120, begin=60, desired=there)
    followed = ["mix_replicas" in plan.pools["L"].inputs for plan in plans]
    assert followed == [5.0 * tick < 175.0 + 600.0 for tick in range(60, 180)]
    assert core.state.groups["Serve"].blend.rule == "unanswered"


@pytest.mark.parametrize("after", [2, 59])
def test_an_answer_that_takes_a_while_is_followed_when_it_comes(after: int) -> None:
    plans, there = driven(ScalingCore(MODEL), 160, ask=FakeSolver({"S": 2, "L": 1}, after=after))
    first = next(at for at, plan in enumerate(plans) if plan.asks)
    followed = ["mix_replicas" in plan.pools["L"].inputs for plan in plans]
    assert followed.index(True) == first + after
    assert there["L"] == 1


def test_an_answer_to_an_older_question_or_to_none_is_no_answer() -> None:
    plans, _ = driven(ScalingCore(MODEL), 160, ask=FakeSolver({"S": 2, "L": 1}, after=61))
    assert numbers(plans) == numbers(without_replies())
    core = ScalingCore(MODEL)
    for tick in range(160):
        unasked = {Role.SERVE.value: MixResult(tick * 5.0, {"S": 2, "L": 9}, "milp")}
        seen = {name: PoolObservation(3, 3, replicas=()) for name in ("S", "L")}
        core.step(Observation(tick * 5.0, GatewayTraffic(40.0, 40_000.0), seen, mixes=unasked))
    assert core.state.groups["Serve"].blend == FollowedMix()


def test_without_shapes_nobody_is_asked_and_a_mix_is_given_up_after_ten_minutes() -> None:
    core, ask = ScalingCore(MODEL), FakeSolver({"S": 2, "L": 1})
    _, there = driven(core, 100, None, ask=ask)
    assert not ask.asked
    assert core.state.shapes is None
    plans, there = driven(core, 100, begin=100, desired=there, ask=ask)
    assert "by the mix of shapes" in plans[-1].pools["S"].reason
    asked = len(ask.asked)
    plans, _ = driven(core, 240, None, begin=200, desired=there, ask=ask)
    assert len(ask.asked) <= asked + 1
    assert "by the mean request (mix: unasked)" in plans[-1].pools["S"].reason


def test_what_is_followed_goes_through_json_and_on() -> None:
    core = ScalingCore(MODEL)
    _, there = driven(core, 100, ask=FakeSolver({"S": 2, "L": 1}))
    other = ScalingCore(MODEL, state=decode_state(encode_state(core.state)))
    assert other.state == core.state
    asks = FakeSolver({"S": 2, "L": 1}), FakeSolver({"S": 2, "L": 1})
    plans = [
        driven(scaling_core, 70, begin=100, desired=there, ask=ask)
        for scaling_core, ask in zip((core, other), asks, strict=True)
    ]
    assert plans[0] == plans[1]


def test_a_library_that_fails_costs_the_mix_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("fairlead_autoscaler.mix.solver_queue.solve_mix", broken)
    assert create_solver()(MixRequest(5.0, (1.0,), ())) == MixResult(5.0, None, "failed: RuntimeError")


@given(
    st.floats(0.0, 200.0),
    st.lists(
        st.tuples(st.floats(0.1, 20.0), st.integers(0, 5), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 40),
)
def test_a_mix_never_leaves_the_bounds_nor_a_need_that_could_be_carried(
    need: float, pools: list[tuple[float, int, int, int, int]], base: int
) -> None:
    parts = [
        PoolShare(f"p{index}", capacity, 1.0, least, least + room, desired, ready, 0.0)
        for index, (capacity, least, room, desired, ready) in enumerate(pools)
    ]
    counts = follow_mix(need, parts, {part.name: base for part in parts})
    for part in parts:
        assert part.minimum <= counts[part.name] <= max(part.maximum, part.desired)
    carried = sum(counts[part.name] * part.capacity for part in parts)
    assert carried >= min(need, sum(part.maximum * part.capacity for part in parts)) - 1e-6


@settings(max_examples=shortened(settings.default.max_examples, 6))
@given(st.lists(st.floats(0.0, 150.0), min_size=1, max_size=12), st.integers(0, 60), st.integers(0, 60))
def test_whatever_a_solver_says_the_pools_bounds_hold(minutes: list[float], small_ones: int, large_ones: int) -> None:
    ask = FakeSolver({"S": small_ones, "L": large_ones})
    plans, _ = driven(ScalingCore(MODEL), 12 * len(minutes), arrivals=lambda tick: minutes[tick // 12], ask=ask)
    for plan in plans:
        for facts in MODEL.pools:
            assert facts.minimum <= plan.pools[facts.name].replicas <= facts.maximum


def test_what_is_planned_has_its_price_and_a_pool_without_one_makes_the_sum_unknown() -> None:
    priced = replace(MODEL, pools=tuple(replace(pool, usd_per_hour=pool.cost_per_hour) for pool in MODEL.pools))
    (plan, *_), _ = driven(ScalingCore(priced), 1, desired={"S": 3, "L": 2})
    assert plan.pools["S"].inputs["usd_per_hour"].value == 3.0
    assert {pool.inputs["model_usd_per_hour"].value for pool in plan.pools.values()} == {3.0 + 2 * 3.7}
    half = replace(priced, pools=(priced.pools[0], MODEL.pools[1]))
    assert usd_per_hour(half, {"S": 3, "L": 1}) is None
    assert usd_per_hour(half, {"S": 3, "L": 0}) == 3.0
    (plan, *_), _ = driven(ScalingCore(MODEL), 1)
    assert plan.pools["S"].inputs["model_usd_per_hour"].value is None
