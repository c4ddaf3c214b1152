"""The solver of mixes: throughputs of shapes, the problem, and its queue."""

import math
import threading
from concurrent.futures import Executor, Future
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix import MixSettings, PoolCandidate, SolverQueue, solve_mix, throughput
from fairlead_autoscaler.mix.greedy import solve_greedily
from fairlead_autoscaler.mix.milp import MilpSolution, solve_milp
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind
from fairlead_sim.autoscaling.reference_pools import reference_model, reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_testing.pytest_hooks.nightly import shortened

H100, L4 = builtin_profile("h100-llama8b"), replace(builtin_profile("l4-qwen8b"), kv_tokens=60_000)
KEPT = SloTargets(target=0.99, ttft_seconds=3.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=0.12)


def attained(profile: EngineProfile, prompt: int, output: int, rate: float) -> float:
    """Returns the share of 1,500 equal requests within the SLO, on one engine.

    They come at random, at exactly this rate: by chance alone it would be up to 5 % higher.
    """
    draw, at, drawn = Random(f"{profile.name} {prompt} {output}"), 0.0, []
    for _ in range(1_500):
        at += draw.expovariate(1.0)
        drawn.append(at)
    at = len(drawn) / rate
    arrivals = [each * at / drawn[-1] for each in drawn]
    ttft, itl = KEPT.ttft_limit_seconds(prompt), KEPT.itl_seconds
    assert ttft is not None
    assert itl is not None
    pools = (reference_pool(profile, 1),)
    load = ArrivalTrace(arrivals, [prompt] * len(arrivals), [output] * len(arrivals))
    return run_controller(
        AutoscalingScenario("one", 1, at, reference_model(pools, ttft, itl), pools, load),
        ScheduleController([]),
        engine_model=EngineModelKind.TOKEN_LEVEL,
    ).attainment


@pytest.mark.parametrize(
    ("profile", "prompt", "output"),
    shortened(
        [(H100, 300, 150), (H100, 4_000, 200), (L4, 300, 150), (L4, 600, 300)], [(H100, 4_000, 200), (L4, 600, 300)]
    ),
    ids=lambda value: value.name if isinstance(value, EngineProfile) else str(value),
)
def test_an_engine_keeps_what_the_table_says(profile: EngineProfile, prompt: int, output: int) -> None:
    assert attained(profile, prompt, output, throughput(profile, prompt, output, KEPT)) >= KEPT.target


@pytest.mark.parametrize(("prompt", "output"), shortened([(300, 150), (4_000, 200)], [(4_000, 200)]))
def test_half_as_much_again_it_does_not_keep(prompt: int, output: int) -> None:
    assert attained(H100, prompt, output, 1.5 * throughput(H100, prompt, output, KEPT)) < KEPT.target


def test_what_fits_no_memory_or_misses_an_objective_alone_is_not_served() -> None:
    assert throughput(L4, 70_000, 10, KEPT) == 0.0
    assert throughput(L4, 30_000, 10, replace(KEPT, ttft_per_kilo_token_seconds=0.0)) == 0.0
    assert throughput(L4, 100, 100, replace(KEPT, itl_seconds=0.05)) == 0.0
    assert throughput(L4, 100, 1, replace(KEPT, itl_seconds=0.05)) > 0.0, "one token has no gap"


sizes = st.floats(1, 20_000)


@given(sizes, sizes, st.floats(1.0, 4.0))
def test_faster_engines_never_serve_less(prompt: float, output: float, factor: float) -> None:
    each = throughput(H100, prompt, output, KEPT)
    assert throughput(H100.sped_up(factor), prompt, output, KEPT) >= each * (1 - 1e-3)


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
            for part, rate, each in zip(shares[candidate.name], rates, candidate.throughput, strict=True)
            if part * rate > 0
        )
        for candidate in candidates
    ]


@settings(deadline=None)
@given(problems())
def test_every_mix_carries_what_it_says_within_bounds(problem: tuple[list[float], list[PoolCandidate]]) -> None:
    rates, candidates = problem
    mix = solve_mix(rates, candidates, replace(FREE, change_share=0.01))
    for option, load in zip(candidates, loads(rates, candidates, dict(mix.shares)), strict=True):
        assert option.minimum <= mix.replicas[option.name] <= option.maximum
        assert load <= mix.replicas[option.name] + 1e-5
    served = sum(
        rate * sum(mix.shares[candidate.name][shape] for candidate in candidates) for shape, rate in enumerate(rates)
    )
    assert served + mix.unserved == pytest.approx(sum(rates), abs=1e-4)
    assert mix.cost_per_hour == pytest.approx(
        sum(mix.replicas[candidate.name] * candidate.cost_per_hour for candidate in candidates)
    )


@settings(deadline=None)
@given(problems())
@example((BOTH, [RARE, SLOW]))
def test_no_fleet_of_one_kind_no_sliced_mix_and_no_greedy_one_is_cheaper(
    problem: tuple[list[float], list[PoolCandidate]],
) -> None:
    rates, drawn = problem
    assume(sum(rates) > 0.0)
    candidates = [replace(candidate, minimum=0, maximum=MOST, running=0, startup_seconds=0.0) for candidate in drawn]
    mix = solve_mix(rates, candidates, FREE)
    assume(mix.unserved == 0.0)
    for candidate in candidates:
        if all(each > 0.0 for rate, each in zip(rates, candidate.throughput, strict=True) if rate > 0.0):
            load = sum(rate / each for rate, each in zip(rates, candidate.throughput, strict=True) if rate > 0.0)
            assert mix.cost_per_hour <= math.ceil(load - 1e-7) * candidate.cost_per_hour + 1e-4
    dealt = solve_greedily(rates, candidates)
    assert (
        mix.cost_per_hour
        <= sum(n * candidate.cost_per_hour for n, candidate in zip(dealt.replicas, candidates, strict=True)) + 1e-4
    )
    sliced = solve_milp(rates, candidates, FREE, slices=4)
    assert sliced.replicas is not None
    assert (
        mix.cost_per_hour
        <= sum(n * candidate.cost_per_hour for n, candidate in zip(sliced.replicas, candidates, strict=True)) + 1e-4
    )


@given(problems())
def test_the_greedy_mix_carries_all_that_fits(problem: tuple[list[float], list[PoolCandidate]]) -> None:
    rates, candidates = problem
    dealt = solve_greedily(rates, candidates)
    shares = {candidate.name: row for candidate, row in zip(candidates, dealt.shares, strict=True)}
    for candidate, load, count in zip(candidates, loads(rates, candidates, shares), dealt.replicas, strict=True):
        assert candidate.minimum <= count <= candidate.maximum
        assert load <= count + 1e-6
    served = sum(rate * sum(row[shape] for row in dealt.shares) for shape, rate in enumerate(rates))
    assert served + dealt.unserved == pytest.approx(sum(rates), abs=1e-6)


class ByHand(Executor):
    """An executor that runs its work on demand, one item after the other."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((future, fn, args))
        return future

    def next(self) -> None:
        future, fn, args = self.given.pop(0)
        if future.set_running_or_notify_cancel():
            future.set_result(fn(*args))


def answer(asked: MixRequest) -> MixResult:
    return MixResult(asked.at, {"S": int(asked.at)}, "milp")


def question(at: float) -> MixRequest:
    return MixRequest(at, (), ())


def test_an_answer_is_told_once_and_to_the_model_that_asked() -> None:
    by_hand = ByHand()
    desk = SolverQueue(answer, by_hand)
    desk.submit("one", {"Serve": question(5.0), "Prefill": question(6.0)})
    assert desk.take_results("one") == {}
    by_hand.next()
    assert desk.take_results("other") == {}
    assert desk.take_results("one") == {"Serve": MixResult(5.0, {"S": 5}, "milp")}
    assert desk.take_results("one") == {}
    by_hand.next()
    assert list(desk.take_results("one")) == ["Prefill"]


def recorded_queue() -> tuple[SolverQueue, ByHand, list[float]]:
    """Returns a queue, its solver, and the times of the questions that were solved."""
    by_hand = ByHand()
    solved: list[float] = []

    def solve(asked: MixRequest) -> MixResult:
        solved.append(asked.at)
        return answer(asked)

    return SolverQueue(solve, by_hand), by_hand, solved


def test_a_newer_question_takes_the_place_of_one_that_was_not_begun() -> None:
    desk, by_hand, solved = recorded_queue()
    desk.submit("one", {"Serve": question(5.0)})
    desk.submit("one", {"Serve": question(305.0)})
    by_hand.next()
    assert by_hand.given == []
    assert solved == [305.0]
    assert desk.take_results("one")["Serve"].asked_at == 305.0


def test_what_a_model_asked_that_is_gone_is_forgotten() -> None:
    by_hand = ByHand()
    desk = SolverQueue(answer, by_hand)
    desk.submit("one", {"Serve": question(5.0)})
    desk.submit("two", {"Serve": question(6.0)})
    desk.retain({"two"})
    by_hand.next()
    by_hand.next()
    assert desk.take_results("one") == {}
    assert desk.take_results("two")["Serve"].asked_at == 6.0
    desk.submit("one", {"Serve": question(7.0)})
    by_hand.next()
    desk.retain({"two"})
    assert desk.take_results("one") == {}


def test_many_problems_of_one_namespace_delay_one_of_another_by_one_only() -> None:
    desk, by_hand, solved = recorded_queue()
    for number in range(100):
        desk.submit(f"flood/m{number}", {"Serve": question(number)})
    desk.submit("calm/m", {"Serve": question(1_000.0)})
    by_hand.next()
    by_hand.next()
    assert solved == [0.0, 1_000.0]
    assert desk.take_results("calm/m")["Serve"].asked_at == 1_000.0


def test_problem_that_is_asked_again_keeps_its_place() -> None:
    desk, by_hand, solved = recorded_queue()
    for at in (0.0, 300.0):
        for name in ("a", "b", "c"):
            desk.submit(f"chat/{name}", {"Serve": question(at)})
    for _ in range(3):
        by_hand.next()
    assert solved == [300.0] * 3
    assert by_hand.given == []


def test_whoever_asks_goes_on_while_a_solver_takes_its_time() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(asked: MixRequest) -> MixResult:
        begun.set()
        assert go_on.wait(60.0)
        return answer(asked)

    desk = SolverQueue(slow)
    desk.submit("one", {"Serve": question(5.0)})
    assert begun.wait(60.0)
    assert desk.take_results("one") == {}
    go_on.set()
    desk.close()
