"""The scenarios that judge the index: what each arm knows, and what a verdict needs."""

from dataclasses import replace

import pytest

from fairlead_bench.sharing.knowledge import Cell, Knowledge, Outcome, cell_records, compare, rows, sharing
from fairlead_bench.sharing.knowledge_scenarios import LOADS, SCENARIOS, SEEDS, WORKING_SETS, Disturbance

QUIET = Cell("nothing is wrong", "one gateway", Disturbance(), 2.0, 0.5, 8.0)


def outcome(p90: float, recomputed: int) -> Outcome:
    return Outcome(1_000, recomputed, p90 / 2, p90, 1.0, 0)


def test_scenarios_are_those_that_were_committed() -> None:
    assert len(SEEDS) == 5
    assert (WORKING_SETS, LOADS) == ((1.0, 2.0, 4.0), (0.5, 0.8))
    disturbances = [one for scenario in SCENARIOS.values() for one in scenario.values()]
    assert len(disturbances) == len(set(disturbances)), "no two cells are the same"


def test_the_baseline_keeps_what_works_without_the_index() -> None:
    shared, apart = Disturbance(gateways=3, is_shared=True), Disturbance(gateways=3)
    assert sharing(shared, Knowledge.NONE) == replace(sharing(shared, Knowledge.INDEX), index=False)
    assert sharing(shared, Knowledge.NONE).sent
    assert not sharing(apart, Knowledge.INDEX).sent
    assert sharing(apart, Knowledge.PERFECT).perfect


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.8, 0.82, 0.79, 0.81, 0.8], "wins"),
        ([0.5, 1.4, 0.6, 1.3, 0.7], "neutral"),
        ([0.95, 0.96, 0.95, 0.94, 0.95], "neutral"),
        ([1.0, 1.01, 1.02, 1.0, 1.01], "neutral"),
        ([1.05, 1.06, 1.05, 1.04, 1.05], "loses"),
    ],
)
def test_a_verdict_needs_its_interval(ratios: list[float], verdict: str) -> None:
    assert compare(ratios).verdict == verdict


def test_rows_compare_each_arm_with_the_gateway_without_an_index() -> None:
    none, index = [outcome(2.0, 100), outcome(4.0, 100)], [outcome(1.0, 50), outcome(2.0, 50)]
    arms = {Knowledge.NONE: none, Knowledge.INDEX: index, Knowledge.PERFECT: index}
    made, verdicts = rows(["nothing is wrong"], {QUIET: arms})
    values = {row.metric: row.value for row in made}
    assert values["nothing is wrong: p90 TTFT: index ÷ no index"] == pytest.approx(0.5)
    (record,) = cell_records({QUIET: arms})
    shown = record["arms"]["perfect knowledge"]
    assert shown["recomputed tokens ÷ no index"] == "0.500 (0.500 to 0.500): wins"
    assert (record["cell"], shown["p90_seconds"]) == (QUIET.label, 1.5)
    assert {verdict["verdict"] for verdict in verdicts} == {"wins"}
