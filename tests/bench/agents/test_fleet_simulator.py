"""Coding agents in the simulator: cells, a run, and its rows."""

from dataclasses import replace

import pytest

from fairlead_bench.agents.fleet_simulator import (
    DEFAULT,
    IDLE,
    LOADS,
    NAMED,
    POOL,
    CodingCell,
    CodingFigures,
    cells_of,
    idle_calls,
    measure,
    rows,
)
from fairlead_bench.results import load_goals
from fairlead_gateway.routing import PRESETS

FIGURES = CodingFigures(0.1, 0.4, 1.0, 0.95, 0.02, 0)


def test_only_the_idle_fleet_has_one_gateway_too() -> None:
    cells = cells_of([IDLE, "high"], [DEFAULT], [7])
    assert [(cell.load, cell.gateways) for cell in cells] == [(IDLE, 1), (IDLE, 3), ("high", 3)]


def test_a_session_of_the_idle_fleet_grows_behind_the_common_prompt() -> None:
    calls = idle_calls(1)
    assert len(calls) == 96
    assert len({call.request.blocks[:6] for call in calls}) == 1
    assert [call.request.prompt_tokens for call in calls[:3]] == [3_472, 3_872, 4_272]
    assert calls[1].after == (calls[0].request.id,)
    assert calls[6].after == ()


@pytest.mark.parametrize("preset", [DEFAULT, NAMED, POOL])
def test_sessions_of_an_idle_fleet_find_nearly_all_that_was_computed(preset: str) -> None:
    figures = measure(CodingCell(preset, IDLE, 1, 1))
    assert figures.failures == 0
    assert 0.88 < figures.cached < 0.92
    assert figures.moves <= 0.1 if preset != POOL else figures.moves >= 0.0


def test_rows_compare_the_default_with_round_robin_the_best_preset_and_one_pool() -> None:
    cells = cells_of(list(LOADS), [*PRESETS, POOL], [1, 2])
    found = dict.fromkeys(cells, FIGURES)
    for cell in cells:
        if cell.preset == "round-robin":
            found[cell] = replace(FIGURES, ttft_p90=4.0)
        if cell.preset == "lmetric" and cell.seed == 2:
            found[cell] = replace(FIGURES, ttft_p90=0.3)
    made = rows(found, load_goals("coding-agents"))
    ratios = {row.metric: row.ratio for row in made if row.ratio is not None}
    assert ratios["high, 3 gateways: p90 TTFT: default ÷ round-robin"] == pytest.approx(0.1)
    assert ratios["high, 3 gateways: p90 TTFT: default ÷ best other preset"] == pytest.approx(0.4 / 0.35)
    assert ratios["high, 3 gateways: cached share: default ÷ one pool"] == pytest.approx(1.0)
    assert {row.metric: row.goal for row in made if row.goal is not None} == load_goals("coding-agents")
    (best,) = {row.versus for row in made if row.metric.endswith("best other preset")}
    assert best == "lmetric"
