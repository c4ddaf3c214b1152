"""The predicted missed share of fixed fleets, compared with what is counted.

The bounds are those that hold. At the cliff of a large fleet, shares differ by several times where
rates differ by a few percent. So large fleets are bounded by the rate.
"""

from dataclasses import replace

import pytest

from fairlead_bench.autoscaler.missed_share.benchmark import (
    FixedFleetCase,
    FleetComparison,
    PredictingController,
    compare_fleet,
    is_within,
    outside_fleet_scenario,
)
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.fixed_fleet import CASES, fixed_fleet_scenario
from fairlead_testing.pytest_hooks.nightly import shortened

FLEETS = [  # the second in `make test`
    ("aggregated", "S chat", 4, 1.335, 3.0),
    ("outside", "long-prompts", 32, 0.528, 2.0),
    ("aggregated", "L chat", 8, 6.122, 2.0),
    ("aggregated", "L chat", 16, 6.341, 2.0),
    ("outside", "long-prompts", 64, 0.498, 2.0),
]


def compared(plant: str, traffic: str, replicas: int, rate: float, requests: int = 8_000) -> FleetComparison:
    return compare_fleet(FixedFleetCase(plant, traffic, replicas, rate), requests=requests, seed=1)


@pytest.mark.parametrize(("plant", "traffic", "replicas", "rate", "factor"), shortened(FLEETS, FLEETS[1:2]))
def test_shares_of_some_percent_are_predicted_within_a_factor(
    plant: str, traffic: str, replicas: int, rate: float, factor: float
) -> None:
    found = compared(plant, traffic, replicas, rate, requests=shortened(8_000, 4_000))
    assert found.is_judged
    assert is_within(found.predicted.derived, found.measured, factor), found


@pytest.mark.nightly
def test_the_cliff_of_a_large_fleet_is_predicted_within_some_percent_of_the_rate() -> None:
    found = compared("aggregated", "S chat", 64, 1.449)
    assert found.is_judged
    assert is_within(found.predicted.derived, found.measured, 10.0), found
    assert 0.96 < found.rate_ratio < 1.04


@pytest.mark.nightly
def test_factors_mend_a_small_fleet_that_is_predicted_to_miss_too_much() -> None:
    found = compared("aggregated", "L chat", 4, 5.322, requests=20_000)
    assert found.is_judged
    assert found.predicted.learning > 0.8
    assert abs(found.predicted.corrected - found.measured) < abs(found.predicted.derived - found.measured)
    assert is_within(found.predicted.corrected, found.measured), found


def test_a_core_that_wants_more_replicas_learns_no_factor() -> None:
    found = compared("aggregated", "S chat", 16, 1.43, requests=shortened(8_000, 4_000))
    assert found.predicted.learning < 0.1
    assert found.predicted.corrected == pytest.approx(found.predicted.derived)
    assert found.predicted.sized > found.predicted.derived


@pytest.mark.nightly
def test_token_by_token_the_same_is_predicted() -> None:
    quick, exact = (compared(plant, "S chat", 4, 1.335, requests=1_200) for plant in ("aggregated", "token-level"))
    assert exact.measured == pytest.approx(quick.measured, rel=0.3)
    assert exact.predicted.derived == pytest.approx(quick.predicted.derived, rel=0.3)


def test_a_controller_that_predicts_changes_nothing() -> None:
    scenario = fixed_fleet_scenario(CASES["S chat"], 3, 2.0, requests=300)
    pools = tuple([replace(one, facts=replace(one.facts, maximum=50)) for one in scenario.pools])
    controller = PredictingController(scenario.model, 2.0, 300.0)
    outcome = run_controller(replace(scenario, pools=pools), controller)
    assert {sample.desired for sample in outcome.samples} == {(3,)}
    assert controller.rate_of(0.5) > controller.rate_of(0.05) > controller.rate_of(0.005)


def test_the_rate_of_the_predicted_share_is_the_known_one() -> None:
    scenario = fixed_fleet_scenario(CASES["L chat"], 8, 48.0, requests=4_000)
    controller = PredictingController(scenario.model, 48.0, 300.0)
    run_controller(scenario, controller)
    assert controller.rate_of(controller.predicted().derived) == pytest.approx(1.0, abs=0.02)


def test_an_outside_fleet_is_fixed_and_has_the_lengths_of_its_family() -> None:
    case = FixedFleetCase("outside", "steady-chat", 6, 1.0)
    scenario = outside_fleet_scenario(case, requests=3_000, seed=1)
    [pool] = scenario.pools
    assert (pool.initial, pool.minimum, pool.maximum) == (6, 6, 6)
    log = scenario.requests
    assert sum(arrival >= 300.0 for arrival in log.arrivals) == pytest.approx(3_000, rel=0.15)
    assert sum(log.prompts) / len(log) == pytest.approx(1_144, rel=0.05)
    most = shortened(50_000, 10_000)
    many = outside_fleet_scenario(case, requests=most, seed=1)
    assert len(many.requests) > most
    assert many.requests.prompts[: len(log)] == log.prompts
