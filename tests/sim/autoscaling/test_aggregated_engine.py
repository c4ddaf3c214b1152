"""The aggregated engine and the token-level one, in one plant and on the same requests."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import reference_pools, scenarios
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, PlantFaults
from fairlead_sim.autoscaling.plant_engine import AggregatedEngine, PlantEngine, StepTotals, TokenEngine
from fairlead_sim.autoscaling.request_table import NOT_YET, ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, SHORT_OUTPUT_LENGTHS, poisson_arrivals
from fairlead_testing.pytest_hooks.nightly import shortened

BOUNDS = (0.05, 0.1, 0.2)
PART = shortened(5, 3)
"""Minutes of overload in the middle of a scenario."""


def served(
    kind: Callable[..., PlantEngine], load: ArrivalTrace, role: Role, patience: float, factor: float
) -> tuple[RequestTable, PlantEngine]:
    book = RequestTable(load, patience)
    engine = kind(reference_pools.small_profile(), role, book, StepTotals(BOUNDS, BOUNDS))
    engine.slowdown = factor
    for request, arrival in enumerate(load.arrivals):
        engine.advance(arrival)
        engine.add(request, arrival)
    engine.advance(load.arrivals[-1] + 10_000.0)
    return book, engine


@pytest.mark.property
@settings(deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.floats(0.0, 2.0), st.integers(1, 6_000), st.integers(1, 700)), min_size=1, max_size=40
    ),
    role=st.sampled_from([Role.SERVE, Role.PREFILL, Role.DECODE]),
    factor=st.sampled_from([1.0, 1.35]),
)
def test_every_token_comes_when_the_token_level_engine_says(
    requests: list[tuple[float, int, int]], role: Role, factor: float
) -> None:
    at, arrivals = 0.0, []
    for gap, _, _ in requests:
        at += gap
        arrivals.append(at)
    load = ArrivalTrace(arrivals, [prompt for _, prompt, _ in requests], [output for _, _, output in requests])
    book, engine = served(AggregatedEngine, load, role, 1e9, factor)
    exact_book, exact = served(TokenEngine, load, role, 1e9, factor)
    assert book.first == pytest.approx(exact_book.first, abs=1e-6)
    assert book.end == pytest.approx(exact_book.end, abs=1e-6)
    assert [request for _, request in book.prefilled] == [request for _, request in exact_book.prefilled]
    assert engine.totals.generated_tokens == exact.totals.generated_tokens
    assert engine.totals.gap_seconds == pytest.approx(exact.totals.gap_seconds)
    assert engine.totals.ttft_counts == exact.totals.ttft_counts
    assert (engine.running(), engine.waiting(), engine.load_tokens(), engine.kv_share()) == (0, 0, 0, 0.0)


def troubled() -> AutoscalingScenario:
    """Returns a scenario of rising and falling overload, with crashes and slow steps."""
    draw = Random(5)
    load = poisson_arrivals([2.0] * PART + [11.0] * PART + [3.0] * (2 * PART - 1), CHAT_LENGTHS, draw)
    return replace(
        scenarios.step_cold(1),
        seconds=PART * 240.0,
        load=load,
        faults=PlantFaults(crashes=(PART * 80.0, PART * 160.0), slow=((PART * 180.0, 1.35),)),
    )


def both(scenario: AutoscalingScenario, *steps: tuple[float, int]) -> tuple[ControllerOutcome, ControllerOutcome]:
    plan = [(at, {"S": replicas}) for at, replicas in steps]
    return run_controller(scenario, ScheduleController(plan)), run_controller(
        scenario, ScheduleController(plan), engine_model=EngineModelKind.TOKEN_LEVEL
    )


def test_a_whole_plant_comes_to_the_same() -> None:
    quick, exact = both(troubled(), (0.0, 3), (PART * 50.0, 7), (PART * 140.0, 4))
    assert 0.3 < exact.attainment < 0.95  # neither idle nor hopeless, or nothing would be compared
    assert exact.lost
    assert exact.abandoned
    assert quick.attainment == pytest.approx(exact.attainment, abs=0.005)
    assert quick.replica_hours["S"] == pytest.approx(exact.replica_hours["S"], rel=0.03)


def test_short_answers_on_large_engines_come_to_the_same() -> None:
    load = poisson_arrivals([6.0] * 4, SHORT_OUTPUT_LENGTHS, Random(3))
    setups = [reference_pools.reference_pool(reference_pools.large_profile(), 2)]
    scenario = AutoscalingScenario(
        "short", 1, 240.0, reference_pools.reference_model(setups, 2.0, 0.2), tuple(setups), load
    )
    quick, exact = (
        run_controller(scenario, ScheduleController([])),
        run_controller(scenario, ScheduleController([]), engine_model=EngineModelKind.TOKEN_LEVEL),
    )
    assert quick.request_table.first == pytest.approx(exact.request_table.first, abs=1e-6)
    assert quick.request_table.end == pytest.approx(exact.request_table.end, abs=1e-6)
    assert NOT_YET not in quick.request_table.end


def test_preempting_engines_start_sooner_and_count_every_token_once() -> None:
    load = ArrivalTrace([0.01 * place for place in range(60)], [1_000] * 60, [700] * 60)
    book, engine = served(TokenEngine, load, Role.SERVE, 1e9, 1.0)
    other, preempting = served(partial(TokenEngine, preempting=True), load, Role.SERVE, 1e9, 1.0)
    assert sum(other.first) < sum(book.first)
    assert max(other.end[place] - other.first[place] for place in range(60)) > max(
        book.end[place] - book.first[place] for place in range(60)
    )  # a request began and was preempted
    for one, seen in ((book, engine), (other, preempting)):
        assert seen.totals.generated_tokens == sum(load.outputs)
        assert seen.totals.gap_seconds == pytest.approx(sum(one.end) - sum(one.first))
        assert sum(seen.totals.itl_counts) == seen.totals.finished == 60
