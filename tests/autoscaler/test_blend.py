"""A mix of pools is asked for every five minutes and followed in between; where there is none, everything is as without a solver."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.mix import solver
from fairlead_autoscaler.scaling import (
    Core,
    GatewaySeen,
    Observation,
    Plan,
    PoolFacts,
    PoolSeen,
    ScaledModel,
    ShapeSeen,
)
from fairlead_autoscaler.scaling.blend import Answer, Candidate
from fairlead_autoscaler.scaling.cost import usd_per_hour
from fairlead_autoscaler.scaling.split import Part, follow
from fairlead_autoscaler.scaling.state import decode, encode
from fairlead_sim.scaling.pools import large, small

MODEL = ScaledModel(
    "chat",
    3.0,
    0.15,
    (
        PoolFacts("S", minimum=1, maximum=30, profile=small()),
        PoolFacts("L", cost_per_hour=3.7, minimum=0, maximum=9, profile=large()),
    ),
)
SHAPES = (ShapeSeen(1_000.0, 200.0, 45.0), ShapeSeen(200.0, 400.0, 5.0))


class Asked:
    """A solver that answers the same to everything, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[Sequence[float], Sequence[Candidate]]] = []

    def __call__(self, rates: Sequence[float], candidates: Sequence[Candidate]) -> Answer:
        self.asked.append((rates, candidates))
        return self.answer


def driven(
    core: Core,
    ticks: int,
    shapes: tuple[ShapeSeen, ...] | None = SHAPES,
    arrivals: Callable[[int], float] = lambda tick: 40.0,
    begin: int = 0,
    desired: dict[str, int] | None = None,
) -> tuple[list[Plan], dict[str, int]]:
    """Plans of so many looks five seconds apart; what is asked for is ready at the next."""
    there = dict(desired or {"S": 9, "L": 0})
    plans = []
    for tick in range(begin, begin + ticks):
        seen = {name: PoolSeen(count, count, replicas=()) for name, count in there.items()}
        came = arrivals(tick)
        plans.append(core.step(Observation(tick * 5.0, GatewaySeen(came, 1_000.0 * came), seen, shapes=shapes)))
        there = {name: one.replicas for name, one in plans[-1].pools.items()}
    return plans, there


def test_a_solver_is_asked_every_five_minutes_what_the_need_takes_and_is_followed() -> None:
    ask = Asked(Answer({"S": 2, "L": 1}, "milp"))
    core = Core(MODEL, solver=ask)
    plans, there = driven(core, 200)
    assert len(ask.asked) == 3  # in 1,000 s, of which the first are too few to know the shapes
    rates, candidates = ask.asked[-1]
    assert len(rates) == 2
    assert max(rates) == pytest.approx(9.0 * min(rates))
    assert sum(rates) > 8.0  # what arrives a second, and room
    assert [(one.name, one.minimum, one.maximum) for one in candidates] == [("S", 1, 30), ("L", 0, 9)]
    assert all(each > 0.0 for one in candidates for each in one.throughput)
    assert there["L"] == 1
    assert "by the mix of shapes (milp)" in plans[-1].pools["S"].reason
    assert plans[-1].pools["L"].inputs["mix_replicas"].value == 1.0


def test_over_all_shapes_a_pool_carries_what_the_core_says_it_does() -> None:
    ask = Asked(Answer(None, "greedy-timeout"))
    plans, _ = driven(Core(MODEL, solver=ask), 100)
    rates, candidates = ask.asked[-1]
    for one in candidates:
        alone = sum(rates) / sum(rate / each for rate, each in zip(rates, one.throughput, strict=True))
        assert alone == pytest.approx(plans[-1].pools[one.name].inputs["capacity_requests_per_second"].value, rel=0.05)


def test_a_shape_that_no_replica_of_a_pool_can_serve_is_left_to_the_others() -> None:
    ask = Asked(Answer(None, "idle"))
    driven(Core(MODEL, solver=ask), 100, (*SHAPES, ShapeSeen(20_000.0, 100.0, 5.0)))
    _, (little, big) = ask.asked[-1]
    assert 0.0 in little.throughput
    assert 0.0 not in big.throughput


@pytest.mark.parametrize("answer", [Answer(None, "greedy-timeout"), Answer({"S": 2}, "milp")])
def test_a_solver_without_an_answer_changes_no_number_and_the_plan_says_so(answer: Answer) -> None:
    plain, with_one = Core(MODEL), Core(MODEL, solver=Asked(answer))
    plans = [driven(core, 150, arrivals=lambda tick: 40.0 + tick)[0] for core in (plain, with_one)]
    for one, other in zip(*plans, strict=True):
        assert {name: pool.replicas for name, pool in one.pools.items()} == {
            name: pool.replicas for name, pool in other.pools.items()
        }
    assert f"mean request (mix: {answer.rule})" in plans[1][-1].pools["S"].reason


def test_without_shapes_nobody_is_asked_and_a_mix_is_given_up_after_ten_minutes() -> None:
    ask = Asked(Answer({"S": 2, "L": 1}, "milp"))
    core = Core(MODEL, solver=ask)
    _, there = driven(core, 100, None)
    assert not ask.asked
    assert core.state.shapes is None
    plans, there = driven(core, 100, begin=100, desired=there)
    assert "by the mix of shapes" in plans[-1].pools["S"].reason
    asked = len(ask.asked)
    plans, _ = driven(core, 240, None, begin=200, desired=there)
    assert len(ask.asked) <= asked + 1
    assert "by the mean request (mix: unasked)" in plans[-1].pools["S"].reason


def test_what_is_followed_goes_through_json_and_on() -> None:
    ask = Asked(Answer({"S": 2, "L": 1}, "milp"))
    core = Core(MODEL, solver=ask)
    _, there = driven(core, 100)
    other = Core(MODEL, state=decode(encode(core.state)), solver=Asked(ask.answer))
    assert other.state == core.state
    assert driven(other, 70, begin=100, desired=there) == driven(core, 70, begin=100, desired=there)


def test_a_library_that_fails_costs_the_mix_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("fairlead_autoscaler.mix.asking.plan_mix", broken)
    assert solver()([1.0], []) == Answer(None, "failed: RuntimeError")


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
        Part(f"p{index}", capacity, 1.0, least, least + room, desired, ready, 0.0)
        for index, (capacity, least, room, desired, ready) in enumerate(pools)
    ]
    counts = follow(need, parts, {part.name: base for part in parts})
    for part in parts:
        assert part.minimum <= counts[part.name] <= max(part.maximum, part.desired)
    carried = sum(counts[part.name] * part.capacity for part in parts)
    assert carried >= min(need, sum(part.maximum * part.capacity for part in parts)) - 1e-6


@given(st.lists(st.floats(0.0, 150.0), min_size=1, max_size=12), st.integers(0, 60), st.integers(0, 60))
def test_whatever_a_solver_says_the_pools_bounds_hold(minutes: list[float], small_ones: int, large_ones: int) -> None:
    core = Core(MODEL, solver=Asked(Answer({"S": small_ones, "L": large_ones}, "milp")))
    plans, _ = driven(core, 12 * len(minutes), arrivals=lambda tick: minutes[tick // 12])
    for plan in plans:
        for facts in MODEL.pools:
            assert facts.minimum <= plan.pools[facts.name].replicas <= facts.maximum


def test_what_is_planned_has_its_price_and_a_pool_without_one_makes_the_sum_unknown() -> None:
    priced = replace(MODEL, pools=tuple(replace(pool, usd_per_hour=pool.cost_per_hour) for pool in MODEL.pools))
    (plan, *_), _ = driven(Core(priced), 1, desired={"S": 3, "L": 2})
    assert plan.pools["S"].inputs["usd_per_hour"].value == 3.0
    assert {one.inputs["model_usd_per_hour"].value for one in plan.pools.values()} == {3.0 + 2 * 3.7}
    half = replace(priced, pools=(priced.pools[0], MODEL.pools[1]))
    assert usd_per_hour(half, {"S": 3, "L": 1}) is None
    assert usd_per_hour(half, {"S": 3, "L": 0}) == 3.0
    (plan, *_), _ = driven(Core(MODEL), 1)
    assert plan.pools["S"].inputs["model_usd_per_hour"].value is None
