"""The offline optimum: its cost, that it keeps the target, and that it is cheaper than a
controller.
"""

from functools import cache
from pathlib import Path
from random import Random

import pytest

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import run_schedule
from fairlead_sim.autoscaling.offline_optimum import OptimumCache, OptimumSchedule, replay_schedule, search_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import PoolSetup, StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, SHORT_OUTPUT_LENGTHS, poisson_arrivals
from fairlead_testing.pytest_hooks.nightly import shortened

PART = shortened(2, 1)
TEN_SECONDS = StartupDistribution(10.0, 0.0)
HUMP = [1.0] * PART * 3 + [3.0] * PART * 4 + [1.0] * PART * 3


def scenario(load: ArrivalTrace, setups: list[PoolSetup], seconds: float) -> AutoscalingScenario:
    return AutoscalingScenario(
        "made", 1, seconds, reference_pools.reference_model(setups, 3.0, 0.15), tuple(setups), load
    )


def humped(startup: StartupDistribution = TEN_SECONDS) -> AutoscalingScenario:
    setups = [reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=startup)]
    return scenario(poisson_arrivals(HUMP, CHAT_LENGTHS, Random(2)), setups, 60.0 * len(HUMP))


@cache
def humped_schedule(runs: int) -> OptimumSchedule:
    return search_schedule(humped(), runs=runs)


def test_scheduled_replicas_are_ready_on_time_and_cost_from_their_start() -> None:
    case = scenario(
        ArrivalTrace([], [], []),
        [reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=TEN_SECONDS)],
        100.0,
    )
    outcome = run_schedule(case, [(50.0, {"S": 3}), (80.0, {"S": 1})])
    assert [look.ready for look in outcome.samples] == [(3,), (1,)]
    assert outcome.cost * 3600.0 == pytest.approx(100.0 + 2 * (10.0 + 30.0))


def test_starts_that_would_fail_are_paid_for_too() -> None:
    startup = StartupDistribution(10.0, 0.0, failure_share=0.5)
    case = scenario(
        ArrivalTrace([], [], []),
        [reference_pools.reference_pool(reference_pools.small_profile(), 0, startup=startup, minimum=0)],
        100.0,
    )
    outcome = run_schedule(case, [(0.0, {"S": 20})])
    spent = outcome.cost * 3600.0 - 20 * 100.0
    assert spent % 10.0 == pytest.approx(0.0, abs=1e-6)
    assert spent > 20 * 10.0 + 50.0


def test_it_keeps_the_target_below_what_any_constant_costs() -> None:
    case = humped()
    schedule = humped_schedule(shortened(60, 30))
    assert schedule.attainment >= 0.99
    constants = [run_schedule(case, [(0.0, {"S": count})]) for count in range(1, 8)]
    cheapest = min(constant.cost for constant in constants if constant.attainment >= 0.99)
    assert schedule.cost < 0.85 * cheapest
    again = replay_schedule(case, schedule.steps)
    assert (again.attainment, again.cost) == (schedule.attainment, schedule.cost)


def test_lowering_finds_what_a_share_of_busy_time_does_not() -> None:
    assert humped_schedule(shortened(80, 30)).cost < humped_schedule(9).cost


def test_dear_starts_keep_replicas_over_a_gap() -> None:
    load = poisson_arrivals([3.0, 3.0, 0.0, 3.0, 3.0], CHAT_LENGTHS, Random(2))

    def fewest(startup: StartupDistribution) -> int:
        setups = [reference_pools.reference_pool(reference_pools.small_profile(), 3, startup=startup, minimum=0)]
        schedule = search_schedule(scenario(load, setups, 300.0), runs=12)
        counts, at = {}, 0
        for begin, step in schedule.steps:
            counts[begin] = step["S"]
        within = [count for begin, count in counts.items() if begin <= 120.0]
        at = within[-1]
        return min([at, *[count for begin, count in counts.items() if 120.0 < begin < 180.0]])

    assert fewest(StartupDistribution(300.0, 0.0)) > fewest(StartupDistribution(1.0, 0.0))


def test_prefill_and_decode_are_searched_apart() -> None:
    minutes = shortened(6, 3)
    load = poisson_arrivals([4.0] * minutes, SHORT_OUTPUT_LENGTHS, Random(2))
    setups = [
        reference_pools.reference_pool(reference_pools.large_profile(), 1, role=Role.PREFILL, name="prefill"),
        reference_pools.reference_pool(reference_pools.large_profile(), 1, role=Role.DECODE, name="decode"),
    ]
    schedule = search_schedule(scenario(load, setups, 60.0 * minutes), runs=shortened(30, 20))
    assert schedule.attainment >= 0.99
    assert max(step.get("prefill", 0) for _, step in schedule.steps) > max(
        step.get("decode", 0) for _, step in schedule.steps
    )


def test_decode_that_memory_bounds_makes_prefill_no_dearer() -> None:
    minutes = shortened(4, 2)
    load = poisson_arrivals([6.0] * minutes, CHAT_LENGTHS, Random(2))
    setups = [
        reference_pools.reference_pool(reference_pools.small_profile(), 1, role=role, name=role.name.lower())
        for role in (Role.PREFILL, Role.DECODE)
    ]
    case = scenario(load, setups, 60.0 * minutes)
    constant = run_schedule(case, [(0.0, {"prefill": 4, "decode": 3})])
    assert constant.attainment >= 0.99
    schedule = search_schedule(case, runs=shortened(34, 24))
    assert schedule.attainment >= 0.99
    assert schedule.cost < constant.cost


def test_the_best_schedule_is_returned_if_none_keeps_the_target() -> None:
    setups = [reference_pools.reference_pool(reference_pools.small_profile(), 1)]
    case = AutoscalingScenario(
        "made",
        1,
        60.0,
        reference_pools.reference_model(setups, 1e-3, 0.15),
        tuple(setups),
        poisson_arrivals([1.0], CHAT_LENGTHS, Random(1)),
    )
    assert search_schedule(case, runs=10).attainment < 0.99


def test_better_is_cheaper_only_among_those_that_keep_the_target() -> None:
    keeps, dear, misses = (
        OptimumSchedule((), 0.995, 10.0),
        OptimumSchedule((), 0.999, 11.0),
        OptimumSchedule((), 0.98, 5.0),
    )
    assert keeps.is_better_than(dear)
    assert not dear.is_better_than(keeps)
    assert keeps.is_better_than(misses)
    assert not misses.is_better_than(keeps)


def test_schedules_are_kept_by_the_very_load(tmp_path: Path) -> None:
    file = tmp_path / "oracles.json"
    case, schedule = humped(), OptimumSchedule(((0.0, {"S": 2}), (60.0, {"S": 3})), 0.99, 1.5)
    assert OptimumCache(file).get(case) is None
    OptimumCache(file).put(case, schedule)
    assert OptimumCache(file).get(case) == schedule
    load = case.load
    other = AutoscalingScenario(
        "made", 1, 1_200.0, case.model, case.pools, ArrivalTrace(load.arrivals, load.prompts, [*load.outputs[:-1], 1])
    )
    assert OptimumCache(file).get(other) is None
