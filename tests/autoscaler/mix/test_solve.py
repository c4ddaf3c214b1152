"""The mix is never dearer than others that do, keeps bounds, and answers whatever happens."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_autoscaler.mix import MixSettings, PoolCandidate, solve_mix
from fairlead_autoscaler.mix.greedy import solve_greedily
from fairlead_autoscaler.mix.milp import MilpSolution, solve_milp

FREE = MixSettings(change_share=0.0, solve_seconds=20.0)
SMALL = PoolCandidate("small", 1.0, (4.0, 0.0))
BIG = PoolCandidate("big", 5.0, (40.0, 10.0))

throughputs = st.one_of(st.just(0.0), st.floats(0.1, 50.0))
shapes = 4
MOST = 2_500
"""Replicas of a pool that no draw needs: four shapes at 60 a second, 0.1 a replica, are 2,400."""
RARE = PoolCandidate("rare", 5.0, (0.0, 0.0, 0.0, 0.5))
SLOW = PoolCandidate("slow", 1.0, (0.0, 0.109375, 0.0, 0.109375))
BOTH = [0.0, 50.0, 0.0, 60.0]
"""1,006 of SLOW alone carry this for 1,006 an hour. With 1,000 at most, two of RARE and 997 of SLOW
carry it for 1,007."""


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[PoolCandidate]]:
    rates = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 60.0)), min_size=shapes, max_size=shapes))
    candidates = []
    for index in range(draw(st.integers(1, 4))):
        least = draw(st.integers(0, 2))
        candidates.append(
            PoolCandidate(
                f"pool-{index}",
                draw(st.floats(0.1, 20.0)),
                tuple(draw(st.lists(throughputs, min_size=shapes, max_size=shapes))),
                minimum=least,
                maximum=draw(st.integers(least, 40)),
                running=draw(st.integers(0, 10)),
                startup_seconds=draw(st.sampled_from([0.0, 120.0])),
            )
        )
    return rates, candidates


def test_a_big_one_carries_the_base_load_and_a_small_one_the_rest() -> None:
    mix = solve_mix([43.0, 0.0], [SMALL, BIG])
    assert mix.replicas == {"small": 1, "big": 1}
    assert mix.cost_per_hour == 6.0
    assert mix.rule == "milp"
    assert "1 × small" in mix.reason


def test_a_shape_goes_where_it_can_be_served_and_one_that_cannot_is_said() -> None:
    mix = solve_mix([2.0, 5.0], [SMALL, BIG])
    assert mix.replicas["big"] == 1
    assert mix.shares["small"][1] == 0.0
    lost = solve_mix([2.0, 5.0], [SMALL])
    assert lost.unserved == 5.0
    assert lost.replicas == {"small": 1}
    assert "cannot be served" in lost.reason


def test_replicas_that_run_stay_where_starting_others_costs_more_than_they_save() -> None:
    other = PoolCandidate("other", 1.0, (4.1, 0.0), startup_seconds=600.0)
    assert solve_mix([8.1, 0.0], [replace(SMALL, throughput=(4.05, 0.0), running=2), other]).replicas == {
        "small": 2,
        "other": 0,
    }
    dear = replace(SMALL, cost_per_hour=3.0, running=2)
    assert solve_mix([8.0, 0.0], [dear, other]).replicas == {"small": 0, "other": 2}


def test_bounds_that_do_not_allow_the_load_give_as_much_as_they_carry() -> None:
    mix = solve_mix([43.0, 0.0], [replace(SMALL, maximum=2), replace(BIG, maximum=0)])
    assert mix.rule == "greedy-infeasible"
    assert mix.replicas == {"small": 2, "big": 0}
    assert mix.unserved == pytest.approx(35.0)
    assert "bounds" in mix.reason


@pytest.mark.parametrize(("most", "counts", "cost"), [(1_006, (0, 1_006), 1_006.0), (1_000, (2, 997), 1_007.0)])
def test_a_cheaper_fleet_counts_only_where_its_pool_may_be_that_large(
    most: int, counts: tuple[int, int], cost: float
) -> None:
    mix = solve_mix(BOTH, [replace(RARE, maximum=most), replace(SLOW, maximum=most)], FREE)
    assert (tuple(mix.replicas.values()), mix.cost_per_hour, mix.rule) == (counts, cost, "milp")


@pytest.mark.parametrize(
    ("solved", "rule"), [(MilpSolution("limit"), "greedy-timeout"), (MilpSolution("failed"), "greedy-failed")]
)
def test_without_an_answer_of_the_solver_the_mix_is_greedy_and_says_so(
    solved: MilpSolution, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_autoscaler.mix.solve.solve_milp", lambda *_, **__: solved)
    mix = solve_mix([43.0, 3.0], [SMALL, BIG])
    assert mix.rule == rule
    assert mix.unserved == 0.0
    assert "greedy" in mix.reason


def test_an_answer_found_in_time_counts_only_if_it_is_cheaper_than_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = MilpSolution("limit", (0, 9), ((0.0, 0.0), (1.0, 1.0)))
    monkeypatch.setattr("fairlead_autoscaler.mix.solve.solve_milp", lambda *_, **__: dear)
    assert solve_mix([43.0, 3.0], [SMALL, BIG]).rule == "greedy-timeout"
    cheap = replace(dear, replicas=(1, 1))
    monkeypatch.setattr("fairlead_autoscaler.mix.solve.solve_milp", lambda *_, **__: cheap)
    assert solve_mix([43.0, 3.0], [SMALL, BIG]).rule == "milp-limit"


def test_silence_leaves_the_minima() -> None:
    mix = solve_mix([0.0, 0.0], [replace(SMALL, minimum=1, running=3), BIG])
    assert mix.replicas == {"small": 1, "big": 0}
    assert mix.rule == "idle"


def test_a_table_that_does_not_match_the_shapes_is_refused() -> None:
    with pytest.raises(BadInput, match="small has 2 throughputs for 3 shapes"):
        solve_mix([1.0, 1.0, 1.0], [SMALL])


def loads(rates: list[float], candidates: list[PoolCandidate], shares: dict[str, tuple[float, ...]]) -> list[float]:
    return [
        sum(
            part * rate / each
            for part, rate, each in zip(shares[one.name], rates, one.throughput, strict=True)
            if part * rate > 0
        )
        for one in candidates
    ]


@settings(deadline=None)
@given(problems())
def test_every_mix_carries_what_it_says_within_bounds(problem: tuple[list[float], list[PoolCandidate]]) -> None:
    rates, candidates = problem
    mix = solve_mix(rates, candidates, replace(FREE, change_share=0.01))
    for one, load in zip(candidates, loads(rates, candidates, dict(mix.shares)), strict=True):
        assert one.minimum <= mix.replicas[one.name] <= one.maximum
        assert load <= mix.replicas[one.name] + 1e-5
    served = sum(rate * sum(mix.shares[one.name][shape] for one in candidates) for shape, rate in enumerate(rates))
    assert served + mix.unserved == pytest.approx(sum(rates), abs=1e-4)
    assert mix.cost_per_hour == pytest.approx(sum(mix.replicas[one.name] * one.cost_per_hour for one in candidates))


@settings(deadline=None)
@given(problems())
@example((BOTH, [RARE, SLOW]))
def test_no_fleet_of_one_kind_no_sliced_mix_and_no_greedy_one_is_cheaper(
    problem: tuple[list[float], list[PoolCandidate]],
) -> None:
    rates, drawn = problem
    assume(sum(rates) > 0.0)
    candidates = [replace(one, minimum=0, maximum=MOST, running=0, startup_seconds=0.0) for one in drawn]
    mix = solve_mix(rates, candidates, FREE)
    assume(mix.unserved == 0.0)
    for one in candidates:
        if all(each > 0.0 for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0):
            load = sum(rate / each for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0)
            assert mix.cost_per_hour <= math.ceil(load - 1e-7) * one.cost_per_hour + 1e-4
    dealt = solve_greedily(rates, candidates)
    assert (
        mix.cost_per_hour
        <= sum(n * one.cost_per_hour for n, one in zip(dealt.replicas, candidates, strict=True)) + 1e-4
    )
    sliced = solve_milp(rates, candidates, FREE, slices=4)
    assert sliced.replicas is not None
    assert (
        mix.cost_per_hour
        <= sum(n * one.cost_per_hour for n, one in zip(sliced.replicas, candidates, strict=True)) + 1e-4
    )


@given(problems())
def test_the_greedy_mix_carries_all_that_fits(problem: tuple[list[float], list[PoolCandidate]]) -> None:
    rates, candidates = problem
    dealt = solve_greedily(rates, candidates)
    shares = {one.name: row for one, row in zip(candidates, dealt.shares, strict=True)}
    for one, load, count in zip(candidates, loads(rates, candidates, shares), dealt.replicas, strict=True):
        assert one.minimum <= count <= one.maximum
        assert load <= count + 1e-6
    served = sum(rate * sum(row[shape] for row in dealt.shares) for shape, rate in enumerate(rates))
    assert served + dealt.unserved == pytest.approx(sum(rates), abs=1e-6)
