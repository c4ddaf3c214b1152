"""Unservable requests: those that miss the SLO even where all is ordered at the first look."""

import pytest

from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ScheduleController, is_within_slo, run_controller, run_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.unservable_requests import find_unservable, servable_share

START_SECONDS = 60.0
TTFT_SECONDS = 3.0


def made_scenario(
    *stretches: tuple[float, float, float], initial: int, changes: tuple[float, ...] = ()
) -> AutoscalingScenario:
    """Returns a scenario with (begin, end, rate) of requests, and starts that take a minute."""
    arrivals = [begin + one / rate for begin, end, rate in stretches for one in range(int((end - begin) * rate))]
    startup = StartupDistribution(START_SECONDS, 0.0)
    setup = reference_pools.reference_pool(reference_pools.small_profile(), initial, startup=startup, minimum=0)
    model = reference_pools.reference_model([setup], TTFT_SECONDS, 0.15)
    load = ArrivalTrace(arrivals, [500] * len(arrivals), [50] * len(arrivals))
    return AutoscalingScenario("made", 1, 900.0, model, (setup,), load, sudden_changes=changes)


def arrivals_of(scenario: AutoscalingScenario, requests: frozenset[int]) -> list[float]:
    return sorted(scenario.load.arrivals[request] for request in requests)


def test_a_fleet_that_fits_leaves_nothing_unservable() -> None:
    assert find_unservable(made_scenario((0.0, 900.0, 2.0), initial=4)) == frozenset()


def test_from_zero_all_before_the_first_possible_start_is_unservable() -> None:
    scenario = made_scenario((0.0, 900.0, 2.0), initial=0)
    found = arrivals_of(scenario, find_unservable(scenario))
    ready = scenario.model.interval_seconds + START_SECONDS
    assert found == [at for at in scenario.load.arrivals if at <= found[-1]]
    assert found[-1] == pytest.approx(ready - TTFT_SECONDS, abs=1.0)


def test_a_start_fleet_that_is_too_small_still_serves_some() -> None:
    scenario = made_scenario((0.0, 900.0, 10.0), initial=2)
    found = find_unservable(scenario)
    from_zero = find_unservable(made_scenario((0.0, 900.0, 10.0), initial=0))
    assert 0 < len(found) < len(from_zero)


def test_the_first_look_after_a_sudden_change_counts_as_well() -> None:
    stretches = (0.0, 300.0, 1.0), (302.0, 900.0, 12.0)
    unnoticed, noticed = (made_scenario(*stretches, initial=2, changes=changes) for changes in ((), (302.0,)))
    assert find_unservable(unnoticed) == frozenset()
    found = arrivals_of(noticed, find_unservable(noticed))
    assert found[0] >= 302.0
    assert found[-1] < 305.0 + START_SECONDS + TTFT_SECONDS


def test_a_controller_that_acts_at_once_serves_all_that_is_servable() -> None:
    scenario = made_scenario((0.0, 900.0, 2.0), initial=0)
    unservable = find_unservable(scenario)
    at_once = run_controller(scenario, ScheduleController([(0.0, {"S": 10})]))
    later = run_controller(scenario, ScheduleController([(60.0, {"S": 10})]))
    assert at_once.attainment < 0.95
    assert servable_share(at_once, unservable).share == pytest.approx(1.0, abs=0.005)
    assert servable_share(later, unservable).share < 0.95
    assert servable_share(later, unservable).unservable == len(unservable)


def test_an_optimum_that_serves_unservable_requests_gains_no_share_by_them() -> None:
    scenario = made_scenario((0.0, 900.0, 2.0), initial=0)
    unservable = find_unservable(scenario)
    with_foresight = run_schedule(scenario, [(0.0, {"S": 10})])
    table = with_foresight.request_table
    assert all(is_within_slo(table, request, TTFT_SECONDS, 0.15) for request in unservable)
    assert servable_share(with_foresight, unservable).share == with_foresight.attainment == 1.0
