"""No engine that works is judged to hang, whatever its load and whatever befalls gateways.

`make test` runs some seeds, `make nightly` a thousand, once as they are and once with faults that
outlast the grace of the verdict.
"""

from dataclasses import replace
from typing import Any

import pytest

from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind
from fairlead_testing.fleet_faults.hang_verdicts import (
    HUNG_FACTOR,
    PRODUCT_GRACE_SECONDS,
    SLOW_FACTOR,
    VerdictReport,
    judge_scenario,
    judge_seed,
    judge_stretched_seed,
    stretched,
)
from fairlead_testing.fleet_faults.runner import (
    EXTERNAL_ROUTER,
    FaultScenario,
    NetworkPartition,
    engine_name,
    from_seed,
)
from fairlead_testing.pytest_hooks.nightly import shortened

BATCH = shortened(50, 4)
FIRST_SEEDS = range(0, shortened(1_000, 4), BATCH)
ENGINE = engine_name(1)


def describe(reports: list[VerdictReport]) -> str:
    """Returns the wrong verdicts by seed."""
    return "\n".join(f"seed {report.seed}: {report.wrong}" for report in reports if report.wrong)


@pytest.mark.parametrize("first", FIRST_SEEDS)
def test_no_engine_that_works_is_judged_to_hang(first: int) -> None:
    reports = [judge_seed(seed) for seed in range(first, first + BATCH)]
    assert describe(reports) == ""
    assert all(report.checks > 100 for report in reports)
    assert sum(report.ejections for report in reports) > 0


@pytest.mark.parametrize("first", FIRST_SEEDS)
def test_no_engine_is_judged_to_hang_by_faults_that_outlast_the_grace(first: int) -> None:
    reports = [judge_stretched_seed(seed) for seed in range(first, first + BATCH)]
    assert describe(reports) == ""
    assert sum(report.ejections for report in reports) > 0


def scene(**changes: Any) -> FaultScenario:
    """Returns two gateways before four engines, without faults."""
    quiet = replace(
        from_seed(1), router=EXTERNAL_ROUTER, preset="dual-hash", gateways=2, engines=4, shared=True, delay_seconds=0.0
    )
    return replace(replace(quiet, fleet_events=(), partitions=(), kills=(), network_faults=()), **changes)


def test_a_quiet_fleet_has_no_ejection() -> None:
    report = judge_scenario(scene())
    assert (report.wrong, report.slow, report.hung, report.ejections) == ((), (), (), 0)


def test_an_engine_that_hangs_is_found_after_the_grace() -> None:
    hang = FleetEvent(20.0, FleetEventKind.SLOW, ENGINE, 10 * HUNG_FACTOR)
    lose = FleetEvent(115.0, FleetEventKind.LOSE, ENGINE)  # else its requests never end
    report = judge_scenario(scene(preset="round-robin", fleet_events=(hang, lose)))
    (finding,) = report.hung
    assert finding.engine == ENGINE
    assert 20.0 + PRODUCT_GRACE_SECONDS <= finding.at < 115.0
    assert report.failed_probes > 0
    assert report.wrong == ()


@pytest.mark.parametrize("gateways", [(0,), (0, 1)], ids=["one gateway", "all gateways"])
def test_an_engine_that_gateways_do_not_reach_does_not_hang(gateways: tuple[int, ...]) -> None:
    partitions = tuple(NetworkPartition(5.0, gateway, frozenset({ENGINE})) for gateway in gateways)
    report = judge_scenario(scene(partitions=partitions))
    assert report.ejections > 0
    assert report.wrong == ()


def test_an_engine_fifty_times_slower_for_minutes_is_counted_apart() -> None:
    slow = FleetEvent(20.0, FleetEventKind.SLOW, ENGINE, SLOW_FACTOR)
    lose = FleetEvent(115.0, FleetEventKind.LOSE, ENGINE)
    report = judge_scenario(stretched(scene(preset="round-robin", fleet_events=(slow, lose)), 3.0))
    assert [finding.engine for finding in report.slow] == [ENGINE]
    assert report.wrong == ()


def test_a_stretched_scenario_keeps_its_faults() -> None:
    scenario = from_seed(3)
    long = stretched(scenario, 3.0)
    assert [event.at for event in long.fleet_events] == [3.0 * event.at for event in scenario.fleet_events]
    assert len(long.traffic) == len(scenario.traffic)
    assert long.traffic[-1].arrival == 3.0 * scenario.traffic[-1].arrival
