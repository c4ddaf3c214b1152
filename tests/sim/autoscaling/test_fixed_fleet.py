"""Fixed fleets at constant rates."""

from dataclasses import replace

import pytest

from fairlead.fleet.model import SloTargets
from fairlead_sim.autoscaling.plant import EngineModelKind
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.routing import LoadPolicy
from fairlead_testing.autoscaler.fixed_fleet import (
    CASES,
    WARMUP_SECONDS,
    MissedRequests,
    count_misses,
    fixed_fleet_scenario,
    measure_fixed_fleet,
)
from fairlead_testing.pytest_hooks.nightly import shortened

CHAT = CASES["S chat"]


def test_the_scenario_holds_its_fleet_and_rate() -> None:
    scenario = fixed_fleet_scenario(CHAT, 6, 5.0, requests=3_000)
    [pool] = scenario.pools
    assert (pool.initial, pool.facts.minimum, pool.facts.maximum) == (6, 6, 6)
    assert scenario.model.pools == (pool.facts,)
    judged = [at for at in scenario.load.arrivals if at >= WARMUP_SECONDS]
    assert len(judged) == pytest.approx(3_000, rel=0.08)
    assert scenario == fixed_fleet_scenario(CHAT, 6, 5.0, requests=3_000)
    assert scenario.load != fixed_fleet_scenario(CHAT, 6, 5.0, requests=3_000, seed=2).load


def test_late_and_slow_answers_are_counted_apart() -> None:
    case = replace(CHAT, slo=SloTargets(0.99, 3.0, itl_seconds=0.15))
    scenario = fixed_fleet_scenario(case, 2, 1.0, requests=10)
    table = RequestTable(ArrivalTrace([0.0, 400.0, 401.0, 402.0, 403.0, 404.0], [9] * 6, [11] * 6), 60.0)
    table.first = [90.0, 401.0, 405.0, 403.0, -1.0, 405.0]
    table.end = [91.0, 402.0, 406.0, 405.0, -1.0, -1.0]
    # The first request is part of the warm-up; then: good, late, slow, without a token, cut.
    assert count_misses(table, scenario) == MissedRequests(5, 2, 2)
    assert count_misses(table, scenario, since=0.0) == MissedRequests(6, 3, 2)
    assert MissedRequests(5, 2, 2).share == pytest.approx(0.8)
    assert MissedRequests(0, 0, 0).share == 0.0


def test_misses_rise_with_the_rate_and_fall_with_replicas() -> None:
    def share(replicas: int, rate: float) -> float:
        return measure_fixed_fleet(CHAT, replicas, rate, requests=1_500).share

    assert share(4, 3.0) < 0.02 < share(4, 6.0)
    assert share(8, 6.0) < share(4, 6.0)


def test_both_engine_models_miss_the_same() -> None:
    case = CASES["L very long"]
    quick, exact = (
        measure_fixed_fleet(case, 3, 1.2, engine_model=model, requests=shortened(150, 90))
        for model in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)
    )
    assert quick.share == pytest.approx(exact.share, abs=0.01)
    assert quick.share > 0.0


def test_prompt_work_misses_less_than_the_other_policies() -> None:
    case = CASES["L very long"]
    shares = {
        policy: measure_fixed_fleet(replace(case, load_policy=policy), 18, 6.8, requests=shortened(3_000, 1_500)).share
        for policy in LoadPolicy
    }
    assert 3.0 * shares[LoadPolicy.PROMPT_WORK] < shares[LoadPolicy.RESIDENT_KV]
    assert 3.0 * shares[LoadPolicy.PROMPT_WORK] < shares[LoadPolicy.RANDOM_TWO]
