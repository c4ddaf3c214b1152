"""The scenarios that judge the index: what each arm knows, and what a verdict needs."""

from dataclasses import replace

import pytest

from fairlead_bench.sharing.knowledge import Cell, Knowledge, Outcome, cell_records, compare, rows, sharing, simulate
from fairlead_bench.sharing.knowledge_scenarios import LOADS, SCENARIOS, SEEDS, WORKING_SETS, Disturbance

QUIET = Cell("nothing is wrong", "one gateway", Disturbance(), 2.0, 0.5, 8.0)
REQUESTS = 120


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


@pytest.mark.parametrize("knowledge", list(Knowledge))
def test_equal_arguments_give_equal_figures_and_no_request_fails(knowledge: Knowledge) -> None:
    disturbance = Disturbance(reset_every=30, bypassing_share=0.2, gateways=2, restart_every=40)
    cell = replace(QUIET, disturbance=disturbance)
    found = simulate(cell, REQUESTS, knowledge, 1)
    assert found == simulate(cell, REQUESTS, knowledge, 1)
    assert found.failures == 0
    assert found.recomputed_tokens >= 0


def test_engines_that_restart_compute_more() -> None:
    agents = replace(QUIET, disturbance=Disturbance(agent_pause_seconds=0.5), rate=4.0)
    reset = replace(agents, disturbance=replace(agents.disturbance, reset_every=10))
    quiet, disturbed = (simulate(cell, 2 * 43, Knowledge.NONE, 1) for cell in (agents, reset))
    assert disturbed.recomputed_tokens > quiet.recomputed_tokens


@pytest.mark.parametrize(
    "slower",
    [Disturbance(cpu_memory=4.0, load_price=0.2), Disturbance(store_memory=4.0, load_price=0.2)],
    ids=["CPU memory", "a store"],
)
def test_slower_memory_saves_computing(slower: Disturbance) -> None:
    agents = Disturbance(agent_pause_seconds=0.5)
    small = replace(QUIET, disturbance=agents, rate=4.0, working_set=4.0)
    more = replace(small, disturbance=replace(slower, agent_pause_seconds=0.5))
    without, having = (simulate(cell, 4 * 43, Knowledge.INDEX, 1) for cell in (small, more))
    assert having.recomputed_tokens < without.recomputed_tokens
    assert having.failures == 0


def test_agents_take_all_their_turns() -> None:
    cell = replace(QUIET, disturbance=Disturbance(agent_pause_seconds=2.0), rate=4.0)
    found = simulate(cell, 2 * 43, Knowledge.INDEX, 1)
    assert found.failures == 0
    assert found.cached_tokens > 0


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


def test_requests_past_the_gateways_are_unknown_to_them() -> None:
    cell = replace(QUIET, disturbance=Disturbance(bypassing_share=1.0))
    found = simulate(cell, REQUESTS, Knowledge.NONE, 1)
    assert found.failures == 0
