"""The autoscaler benchmark: its scenarios, fleets, sleep tier, and rows."""

import argparse
import json
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
    drawn_judging_seeds,
    fairlead_rows,
    judging_seeds,
    scenario_names,
    selected_rows,
    selected_runs,
    simulator_rows,
)
from fairlead_bench.autoscaler.fleet_simulator import (
    BOUND,
    DAY_FACTORS,
    FLEET_SCENARIOS,
    JUDGED_SCENARIOS,
    cheapest_bounds,
    fleet_rows,
    name_tables,
    select_runs,
)
from fairlead_bench.autoscaler.measurement import (
    FAIRLEAD,
    in_windows,
    indicators,
    knob_values,
    recovery_seconds,
    wake_seconds,
)
from fairlead_bench.autoscaler.sleep_tier import CASES, PRICES
from fairlead_bench.judging_seeds import TUNING_SEEDS
from fairlead_bench.measurement_cache import Measured, MeasurementCache
from fairlead_bench.results import load_goals
from fairlead_sim.autoscalers import PRESETS
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import DEFAULT_RUNS
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import SCENARIOS, WIDER_SCENARIOS

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
    assert missed(smooth_short={"cost": 1.16}) == [f"smooth-short: cost ÷ oracle{bar}" for bar in (EXCEL, STRETCH)]
    assert missed(drift={"attainment": 0.985}) == [f"drift: within the objectives{EXCEL}"]
    assert missed(drift={"cost": 1.36}) == [f"drift: cost ÷ oracle{EXCEL}"]
    assert missed(missing_metrics={"window_away": 1.0}) == [
        "missing-metrics: replicas taken away in a window and 5 minutes after"
    ]
    assert missed(zero_cold={"abandoned": 1.0, "wake_seconds": math.inf}) == [
        metric for metric in GOALS if metric.startswith("zero-cold")
    ]
    assert len(missed(**{name.replace("-", "_"): {"cost": 1.3} for name in HARD})) == 3


def test_a_preset_is_compared_where_both_keep_the_target() -> None:
    cheap, dear = (
        cells(drift={"cost": 2.0}),
        cells(drift={"attainment": 0.9, "cost": 0.1}, missing_metrics={"cost": 4.0}),
    )
    rows = {row.metric: row for row in comparison_rows(cheap, {TunedPreset("hpa-concurrency", 8.0, True): dear})}
    row = rows[beats_goal("hpa-concurrency")]
    assert row.ratio == pytest.approx(4.0 ** (-1 / 10))  # ten scenarios of eleven: drift is not one that it keeps
    assert row.holds
    assert rows["hpa-concurrency at 8 (best): of 11 scenarios keeps 99 % in"].value == 10
    hopeless = {name: PERFECT | {"attainment": 0.5} for name in ALL_SCENARIOS}
    nothing = {
        row.metric: row for row in comparison_rows(cheap, {TunedPreset("hpa-concurrency", 8.0, True): hopeless})
    }[beats_goal("hpa-concurrency")]
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
    arrivals = [begin + index / rate for begin, end, rate in stretches for index in range(int((end - begin) * rate))]
    return ArrivalTrace(arrivals, [500] * len(arrivals), [50] * len(arrivals))


def test_recovery_counts_from_the_first_moment_a_replica_could_be_there() -> None:
    case = scenario("step", even((0.0, 300.0, 0.5), (300.0, 1_200.0, 8.0)))
    soon = run_controller(case, ScheduleController([(305.0, {"S": 8})]))
    late = run_controller(case, ScheduleController([(405.0, {"S": 8})]))
    never = run_controller(case, ScheduleController([]))
    assert recovery_seconds(case, soon) <= 15.0
    assert recovery_seconds(case, late) == pytest.approx(100.0 + recovery_seconds(case, soon), abs=10.0)
    assert recovery_seconds(case, never) == math.inf
    assert indicators(case, soon)["again_seconds"] == recovery_seconds(case, soon)


def test_windows_tell_the_share_in_them_and_what_was_taken_away() -> None:
    case = scenario(
        "missing-metrics", even((0.0, 1_200.0, 1.0)), initial=3, troubles=PlantFaults(missing=((300.0, 400.0),))
    )
    held = run_controller(case, ScheduleController([(300.0, {"S": 4}), (720.0, {"S": 2})]))
    assert in_windows(held, case.faults.missing) == {"window_attainment": 1.0, "window_away": 0.0}
    dropped = run_controller(case, ScheduleController([(350.0, {"S": 1}), (380.0, {"S": 3})]))
    assert in_windows(dropped, case.faults.missing)["window_away"] == 2.0
    assert indicators(case, dropped)["window_away"] == 2.0


def test_waking_is_measured_from_the_order_and_beyond_the_start() -> None:
    case = scenario("zero", even((600.0, 700.0, 0.5)), initial=0)
    soon = run_controller(case, ScheduleController([(605.0, {"S": 1})]))
    assert wake_seconds(soon) == pytest.approx(5.0 + 0.3, abs=0.5)  # a tick, and the prompt itself
    late = run_controller(case, ScheduleController([(665.0, {"S": 1})]))
    assert wake_seconds(late) == pytest.approx(65.0 + 0.3, abs=0.5)
    assert wake_seconds(run_controller(case, ScheduleController([]))) == math.inf
    there = run_controller(
        replace(case, pools=tuple([replace(pool, initial=1) for pool in case.pools])), ScheduleController([])
    )
    assert wake_seconds(there) < 1.0


def test_every_kind_of_scenario_is_measured() -> None:
    assert set(ALL_SCENARIOS) == set(SCENARIOS)
    assert len(COMPARED_SCENARIOS) + len(STRETCH_SCENARIOS) == len(ALL_SCENARIOS)


def measured(cell: TunedPreset) -> Measured:
    return {"knob": cell.knob}


def test_what_was_measured_is_kept_for_the_same_sources(tmp_path: Path) -> None:
    messages: list[str] = []

    def lab(state: str) -> MeasurementCache[TunedPreset]:
        return MeasurementCache(tmp_path / "cells.jsonl", measured, lambda _: state, jobs=1, said=messages.append)

    tuned, other = TunedPreset("a", 1.0, True), TunedPreset("b", 2.0, True)
    assert lab("now")([tuned, other, tuned]) == {tuned: {"knob": 1.0}, other: {"knob": 2.0}}
    assert len(messages) == 2
    assert lab("now")([other]) == {other: {"knob": 2.0}}
    assert len(messages) == 2
    lab("later")([other])
    assert len(messages) == 3


@pytest.mark.parametrize("name", [*SCENARIOS, *WIDER_SCENARIOS])
def test_judging_seeds_of_each_scenario_are_those_of_the_written_rule(name: str) -> None:
    seeds = judging_seeds(name)
    assert seeds == drawn_judging_seeds(name)
    assert len(set(seeds)) == 20
    assert not {*seeds} & {*TUNING_SEEDS, *range(101, 109)}


def test_names_and_groups_select_scenarios_once_each() -> None:
    assert scenario_names("wider") == list(WIDER_SCENARIOS)
    assert scenario_names("all") == [*SCENARIOS, *WIDER_SCENARIOS]
    assert scenario_names("drift,l4-chat,wider")[:3] == ["drift", "l4-chat", "drifting-lengths"]
    assert len(scenario_names("l4-chat,wider")) == len(WIDER_SCENARIOS)
    with pytest.raises(argparse.ArgumentTypeError, match="no scenario nope; known are reference, wider, all, smooth"):
        scenario_names("drift,nope")


def test_rows_are_means_over_seeds_and_the_least_servable_share() -> None:
    def cell(attainment: float, servable: float, cost: float) -> dict[str, float]:
        return {"attainment": attainment, "servable": servable, "unservable": 10.0, "cost": cost}

    table = {
        ("drift", 1): cell(0.9, 0.98, 4.0),
        ("drift", 2): cell(0.96, 0.99, 2.0),
        ("missing-metrics", 1): cell(1.0, 1.0, 1.0) | {"window_attainment": 0.99, "window_away": 2.0},
        ("missing-metrics", 2): cell(1.0, 1.0, 1.0) | {"window_attainment": 1.0, "window_away": 1.0},
    }
    optima = {("drift", 1): cell(0.99, 0.99, 1.0), ("drift", 2): cell(0.99, 0.99, 2.0)}
    rows = {row.metric: row.value for row in selected_rows("hpa", table, optima)}
    assert rows["drift, hpa: within the SLO"] == pytest.approx(0.93)
    assert rows["drift, hpa: servable within the SLO"] == pytest.approx(0.985)
    assert rows["drift, hpa: the same, least"] == 0.98
    assert rows["drift, hpa: unservable"] == 10.0
    assert rows["drift, hpa: cost ÷ offline optimum"] == pytest.approx(2.0)  # √(4 · 1)
    assert rows["missing-metrics, hpa: cost ÷ offline optimum"] is None
    assert rows["missing-metrics, hpa: within the SLO in a window and 5 minutes after, least"] == 0.99
    assert rows["missing-metrics, hpa: replicas removed in a window and 5 minutes after"] == 3.0
    assert not any("window" in metric for metric in rows if metric.startswith("drift"))


def test_seeds_are_those_for_judging_those_given_or_the_one_seed() -> None:
    def keys(**options: object) -> list[tuple[str, int]]:
        given = argparse.Namespace(**{"scenarios": ["drift"], "judging": False, "seeds": None, "seed": 1} | options)
        return selected_runs(given)

    assert keys() == [("drift", 1)]
    assert keys(seeds=[2, 3]) == [("drift", 2), ("drift", 3)]
    assert keys(judging=True) == [("drift", seed) for seed in drawn_judging_seeds("drift")]
    assert [name for name, _ in keys(scenarios=None)] == list(SCENARIOS)


FOUND = {"attainment": 0.995, "cost": 12.0, "cached_share": 0.2}
WINDOW = {"window_attainment": 0.999, "window_away": 0.0}


def test_presets_skip_days_and_a_bound_of_a_day_is_one_run_for_each_factor() -> None:
    options = argparse.Namespace(scenarios=["smooth-chat", "drift"], presets="hpa-concurrency", no_bound=False)
    selected = select_runs(options)
    assert selected[FAIRLEAD, None] == {"smooth-chat": 0, "drift": 0}
    assert selected["hpa-concurrency", 14.0] == {"drift": 0}
    assert [knob for name, knob in selected if name == "hpa-concurrency"] == knob_values("hpa-concurrency")
    assert selected[BOUND, None] == {"drift": DEFAULT_RUNS}
    assert all(selected[BOUND, factor] == {"smooth-chat": 0} for factor in DAY_FACTORS)
    options.no_bound, options.presets = True, ""
    assert list(select_runs(options)) == [(FAIRLEAD, None)]


def test_presets_are_shown_at_their_best_and_usual_value() -> None:
    def found(*shares: float, cost: float) -> dict[str, dict[str, float]]:
        return {f"s{place}": {"attainment": share, "cost": cost} for place, share in enumerate(shares)}

    ours, usual, best = found(0.99, 0.99, cost=9.0), found(0.999, 0.98, cost=5.0), found(0.99, 0.995, cost=11.0)
    dearer = found(0.99, 1.0, cost=12.0)
    measured = {(FAIRLEAD, None): ours, ("hpa-kv", 0.1): dearer, ("hpa-kv", 0.5): usual, ("hpa-kv", 0.2): best}
    assert name_tables(measured) == {FAIRLEAD: ours, "hpa-kv at 0.2 (best)": best, "hpa-kv at 0.5 (fixed)": usual}


def test_scenarios_have_no_prefill_and_decode_pools() -> None:
    assert "mix-move" not in FLEET_SCENARIOS
    assert len(JUDGED_SCENARIOS) == 8


def test_a_bound_is_the_cheapest_that_keeps_the_target() -> None:
    def cell(share: float, cost: float) -> dict[str, float]:
        return {"attainment": share, "cost": cost}

    measured = {
        (FAIRLEAD, None): {"drift": cell(0.99, 1.0)},
        (BOUND, None): {"drift": cell(0.99, 10.0), "failures": cell(0.98, 9.0)},
        (BOUND, 0.97): {"smooth-chat": cell(0.985, 20.0)},
        (BOUND, 1.0): {"smooth-chat": cell(0.992, 21.0)},
        (BOUND, 1.03): {"smooth-chat": cell(0.995, 22.0)},
    }
    assert cheapest_bounds(measured) == {
        "drift": cell(0.99, 10.0) | {"runs": DEFAULT_RUNS},
        "smooth-chat": cell(0.992, 21.0) | {"runs": 3, "factor": 1.0},
    }


def test_every_goal_has_its_row_and_presets_are_compared_where_they_ran() -> None:
    ours = {name: FOUND | (WINDOW if name not in JUDGED_SCENARIOS else {}) for name in FLEET_SCENARIOS}
    theirs = {"drift": {"attainment": 0.99, "cost": 16.0}, "failures": {"attainment": 0.9, "cost": 1.0}}
    bounds = {name: {"attainment": 0.99, "cost": 10.0} for name in FLEET_SCENARIOS}
    rows = {row.metric: row for row in fleet_rows({FAIRLEAD: ours, "hpa at 1 (fixed)": theirs}, bounds)}
    assert load_goals("autoscaler-fleet").items() == {name: row.goal for name, row in rows.items() if row.goal}.items()
    assert rows["drift: cost ÷ bound of the optimum"].ratio == pytest.approx(1.2)
    assert rows["cost ÷ bound of the optimum, geometric mean"].value == pytest.approx(1.2)
    compared = rows["hpa at 1 (fixed): cost where both keep 99 % (1 of 2 runs): fairlead ÷ it"]
    assert compared.ratio == pytest.approx(0.75)


def test_a_missed_share_and_a_removed_replica_do_not_hold() -> None:
    ours = {"drift": FOUND | {"attainment": 0.98}, "missing-metrics": FOUND | WINDOW | {"window_away": 1.0}}
    missed = [row.metric for row in fleet_rows({FAIRLEAD: ours}, {}) if not row.holds]
    assert missed == [
        "drift: within the SLO",
        "missing-metrics: replicas removed in a window and 5 minutes after",
        "cost ÷ bound of the optimum, geometric mean",
    ]


BENCH = Path(__file__).parents[3] / "bench"


def test_every_case_is_in_the_results_with_each_price() -> None:
    rows = json.loads((BENCH / "results" / "asleep.json").read_text(encoding="utf-8"))["rows"]
    metrics = {row["metric"] for row in rows}
    for name in CASES:
        for price in PRICES:
            assert f"{name}, seed 1: cost, asleep at {price} of the price" in metrics
        assert f"{name}, seed 1: within the objectives" in metrics
