"""The aggregated engine beside the token-level one, in one plant and on the same requests."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.fleet import Role
from fairlead_sim.scaling import pools, scenarios
from fairlead_sim.scaling.book import NEVER, Book, Load
from fairlead_sim.scaling.engine import AggregatedEngine, Engine, Tally
from fairlead_sim.scaling.load import CHAT, SHORT_OUTPUT, poisson
from fairlead_sim.scaling.loop import Outcome, Schedule, run
from fairlead_sim.scaling.plant import Engines, Scenario, Troubles
from fairlead_sim.scaling.token_engine import TokenEngine

BOUNDS = (0.05, 0.1, 0.2)


def served(kind: Callable[..., Engine], load: Load, role: Role, patience: float, factor: float) -> tuple[Book, Engine]:
    book = Book(load, patience)
    engine = kind(pools.small(), role, book, Tally(BOUNDS, BOUNDS))
    engine.factor = factor
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
    load = Load(arrivals, [prompt for _, prompt, _ in requests], [output for _, _, output in requests])
    book, engine = served(AggregatedEngine, load, role, 1e9, factor)
    exact_book, exact = served(TokenEngine, load, role, 1e9, factor)
    assert book.first == pytest.approx(exact_book.first, abs=1e-6)
    assert book.end == pytest.approx(exact_book.end, abs=1e-6)
    assert [request for _, request in book.prefilled] == [request for _, request in exact_book.prefilled]
    assert engine.tally.generated_tokens == exact.tally.generated_tokens
    assert engine.tally.gap_seconds == pytest.approx(exact.tally.gap_seconds)
    assert engine.tally.ttft_counts == exact.tally.ttft_counts
    assert (engine.running(), engine.waiting(), engine.burden_tokens(), engine.kv_share()) == (0, 0, 0, 0.0)


def troubled() -> Scenario:
    """Load that grows and ebbs, more than the replicas carry for a while, with crashes and slow steps."""
    draw = Random(5)
    load = poisson([2.0] * 5 + [11.0] * 5 + [3.0] * 9, CHAT, draw)
    return replace(
        scenarios.step_cold(1),
        seconds=1200.0,
        load=load,
        troubles=Troubles(crashes=(400.0, 800.0), slow=((900.0, 1.35),)),
    )


def both(scenario: Scenario, *steps: tuple[float, int]) -> tuple[Outcome, Outcome]:
    plan = [(at, {"S": replicas}) for at, replicas in steps]
    return run(scenario, Schedule(plan)), run(scenario, Schedule(plan), engines=Engines.TOKENS)


def test_a_whole_plant_comes_to_the_same() -> None:
    quick, exact = both(troubled(), (0.0, 3), (250.0, 7), (700.0, 4))
    assert 0.3 < exact.attainment < 0.95  # neither idle nor hopeless, or nothing would be compared
    assert exact.lost
    assert exact.abandoned
    assert quick.attainment == pytest.approx(exact.attainment, abs=0.005)
    assert quick.replica_hours["S"] == pytest.approx(exact.replica_hours["S"], rel=0.03)


def test_short_answers_on_large_engines_come_to_the_same() -> None:
    load = poisson([6.0] * 4, SHORT_OUTPUT, Random(3))
    setups = [pools.pool(pools.large(), 2)]
    scenario = Scenario("short", 1, 240.0, pools.model(setups, 2.0, 0.2), tuple(setups), load)
    quick, exact = run(scenario, Schedule([])), run(scenario, Schedule([]), engines=Engines.TOKENS)
    assert quick.book.first == pytest.approx(exact.book.first, abs=1e-6)
    assert quick.book.end == pytest.approx(exact.book.end, abs=1e-6)
    assert NEVER not in quick.book.end


def test_engines_that_preempt_begin_sooner_and_count_every_token_once() -> None:
    load = Load([0.01 * place for place in range(60)], [1_000] * 60, [700] * 60)
    book, engine = served(TokenEngine, load, Role.SERVE, 1e9, 1.0)
    other, preempting = served(partial(TokenEngine, preempting=True), load, Role.SERVE, 1e9, 1.0)
    assert sum(other.first) < sum(book.first)
    assert max(other.end[place] - other.first[place] for place in range(60)) > max(
        book.end[place] - book.first[place] for place in range(60)
    )  # somebody began and was put back
    for one, seen in ((book, engine), (other, preempting)):
        assert seen.tally.generated_tokens == sum(load.outputs)
        assert seen.tally.gap_seconds == pytest.approx(sum(one.end) - sum(one.first))
        assert sum(seen.tally.itl_counts) == sum(load.outputs) - 60
