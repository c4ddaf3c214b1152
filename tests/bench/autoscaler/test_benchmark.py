"""The autoscaler's benchmark: its rows have all goals, and its figures are what their names say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead_bench.autoscaler.benchmark import (
    ALL_SCENARIOS,
    COMPARED_SCENARIOS,
    EXCEL,
    HARD,
    STRETCH,
    STRETCH_SCENARIOS,
    TunedPreset,
    beats_goal,
    best_knob,
    comparison_rows,
    fairlead_rows,
    simulator_rows,
)
from fairlead_bench.autoscaler.measurement import (
    AutoscalerCell,
    in_windows,
    indicators,
    measure,
    recovery_seconds,
    wake_seconds,
)
from fairlead_bench.measurement_cache import Measured, MeasurementCache
from fairlead_bench.results import load_goals
from fairlead_sim.autoscalers import PRESETS
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import SCENARIOS

GOALS = load_goals("autoscaler")

PERFECT = {
    "attainment": 1.0,
    "cost": 1.0,
    "turns": 0.0,
    "abandoned": 0.0,
    "lost": 0.0,
    "window_attainment": 1.0,
    "window_away": 0.0,
    "again_seconds": 0.0,
    "wake_seconds": 0.0,
}
ONES = dict.fromkeys(ALL_SCENARIOS, 1.0)


def cells(**changed: Measured) -> dict[str, Measured]:
    """Figures of every scenario; ``smooth_chat={"cost": 2.0}`` changes one of one."""
    return {name: PERFECT | dict(changed.get(name.replace("-", "_"), {})) for name in ALL_SCENARIOS}


def missed(**changed: Measured) -> list[str]:
    return [row.metric for row in fairlead_rows(cells(**changed), ONES) if not row.holds]


def test_every_goal_has_its_row() -> None:
    others = {TunedPreset(name, 1.0, best): cells() for name in PRESETS for best in (True, False)}
    rows = [*fairlead_rows(cells(), ONES), *comparison_rows(cells(), others), *simulator_rows(1.0, PERFECT, PERFECT)]
    assert {row.metric: row.goal for row in rows if row.goal} == GOALS


def test_rows_hold_within_the_bar_only() -> None:
    assert missed() == []
    assert missed(smooth_chat={"attainment": 0.9899}) == ["smooth-chat: within the objectives"]
    assert missed(smooth_short={"cost": 1.16}) == [f"smooth-short: cost ÷ oracle{one}" for one in (EXCEL, STRETCH)]
    assert missed(drift={"attainment": 0.985}) == [f"drift: within the objectives{EXCEL}"]
    assert missed(drift={"cost": 1.36}) == [f"drift: cost ÷ oracle{EXCEL}"]
    assert missed(missing_metrics={"window_away": 1.0}) == [
        "missing-metrics: replicas taken away in a window and 5 minutes after"
    ]
    assert missed(zero_cold={"abandoned": 1.0, "wake_seconds": math.inf}) == list(GOALS)[-21:-19]
    assert len(missed(**{name.replace("-", "_"): {"cost": 1.3} for name in HARD})) == 3


def test_a_preset_is_compared_where_both_keep_the_target() -> None:
    cheap, dear = (
        cells(drift={"cost": 2.0}),
        cells(drift={"attainment": 0.9, "cost": 0.1}, missing_metrics={"cost": 4.0}),
    )
    rows = {row.metric: row for row in comparison_rows(cheap, {TunedPreset("dynamo", 1.25, True): dear})}
    row = rows[beats_goal("dynamo")]
    assert row.ratio == pytest.approx(4.0 ** (-1 / 10))  # ten scenarios of eleven: drift is not one that it keeps
    assert row.holds
    assert rows["dynamo at 1.25 (best): of 11 scenarios keeps 99 % in"].value == 10
    hopeless = {name: PERFECT | {"attainment": 0.5} for name in ALL_SCENARIOS}
    nothing = {row.metric: row for row in comparison_rows(cheap, {TunedPreset("dynamo", 1.25, True): hopeless})}[
        beats_goal("dynamo")
    ]
    assert (nothing.value, nothing.holds) == (None, True)


def test_the_best_knob_keeps_most_and_then_costs_least() -> None:
    def at(attainment: float, cost: float) -> dict[str, Measured]:
        return {"drift": {"attainment": attainment, "cost": cost}, "missing-metrics": PERFECT}

    assert best_knob({1.0: at(0.98, 0.5), 2.0: at(0.99, 2.0), 3.0: at(0.995, 1.9)}) == 3.0


def scenario(
    name: str, load: ArrivalTrace, *, initial: int = 1, minimum: int = 0, troubles: PlantFaults | None = None
) -> AutoscalingScenario:
    setups = [
        reference_pools.reference_pool(
            reference_pools.small_profile(), initial, startup=StartupDistribution(20.0, 0.0), minimum=minimum
        )
    ]
    model = reference_pools.reference_model(setups, 3.0, 0.15, patience=400.0)
    return AutoscalingScenario(name, 1, 1_200.0, model, tuple(setups), load, troubles or PlantFaults())


def even(*stretches: tuple[float, float, float]) -> ArrivalTrace:
    arrivals = [begin + one / rate for begin, end, rate in stretches for one in range(int((end - begin) * rate))]
    return ArrivalTrace(arrivals, [500] * len(arrivals), [50] * len(arrivals))


def test_recovery_counts_from_the_first_moment_a_replica_could_be_there() -> None:
    made = scenario("step", even((0.0, 300.0, 0.5), (300.0, 1_200.0, 8.0)))
    soon = run_controller(made, ScheduleController([(305.0, {"S": 8})]))
    late = run_controller(made, ScheduleController([(405.0, {"S": 8})]))
    never = run_controller(made, ScheduleController([]))
    assert recovery_seconds(made, soon) <= 15.0
    assert recovery_seconds(made, late) == pytest.approx(100.0 + recovery_seconds(made, soon), abs=10.0)
    assert recovery_seconds(made, never) == math.inf
    assert indicators(made, soon)["again_seconds"] == recovery_seconds(made, soon)


def test_windows_tell_the_share_in_them_and_what_was_taken_away() -> None:
    made = scenario(
        "missing-metrics", even((0.0, 1_200.0, 1.0)), initial=3, troubles=PlantFaults(missing=((300.0, 400.0),))
    )
    held = run_controller(made, ScheduleController([(300.0, {"S": 4}), (720.0, {"S": 2})]))
    assert in_windows(held, made.faults.missing) == {"window_attainment": 1.0, "window_away": 0.0}
    dropped = run_controller(made, ScheduleController([(350.0, {"S": 1}), (380.0, {"S": 3})]))
    assert in_windows(dropped, made.faults.missing)["window_away"] == 2.0
    assert indicators(made, dropped)["window_away"] == 2.0


def test_waking_is_measured_from_the_order_and_beyond_the_start() -> None:
    made = scenario("zero", even((600.0, 700.0, 0.5)), initial=0)
    soon = run_controller(made, ScheduleController([(605.0, {"S": 1})]))
    assert wake_seconds(soon) == pytest.approx(5.0 + 0.3, abs=0.5)  # a tick, and the prompt itself
    late = run_controller(made, ScheduleController([(665.0, {"S": 1})]))
    assert wake_seconds(late) == pytest.approx(65.0 + 0.3, abs=0.5)
    assert wake_seconds(run_controller(made, ScheduleController([]))) == math.inf
    there = run_controller(
        replace(made, pools=tuple([replace(one, initial=1) for one in made.pools])), ScheduleController([])
    )
    assert wake_seconds(there) < 1.0


def test_all_controllers_have_the_same_unservable_requests() -> None:
    one, other = (measure(AutoscalerCell("zero-cold", 1, preset)) for preset in ("hpa-concurrency", "keda-waiting"))
    assert one["unservable"] == other["unservable"] > 100
    assert one["servable"] > one["attainment"]
    unserved = one["requests"] - one["unservable"]
    assert one["servable"] * unserved <= one["attainment"] * one["requests"] + 1e-6


def test_every_kind_of_scenario_is_measured() -> None:
    assert set(ALL_SCENARIOS) == set(SCENARIOS)
    assert len(COMPARED_SCENARIOS) + len(STRETCH_SCENARIOS) == len(ALL_SCENARIOS)


def measured(cell: TunedPreset) -> Measured:
    return {"knob": cell.knob}


def test_what_was_measured_is_kept_for_the_same_sources(tmp_path: Path) -> None:
    said: list[str] = []

    def lab(state: str) -> MeasurementCache[TunedPreset]:
        return MeasurementCache(tmp_path / "cells.jsonl", measured, lambda _: state, jobs=1, said=said.append)

    one, other = TunedPreset("a", 1.0, True), TunedPreset("b", 2.0, True)
    assert lab("now")([one, other, one]) == {one: {"knob": 1.0}, other: {"knob": 2.0}}
    assert len(said) == 2
    assert lab("now")([other]) == {other: {"knob": 2.0}}
    assert len(said) == 2
    lab("later")([other])
    assert len(said) == 3
