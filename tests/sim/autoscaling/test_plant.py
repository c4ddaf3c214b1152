"""The plant and its engine in closed form, and requests that no start could have served."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import Observation, PoolPlan, ReplicaState, ScalingPlan
from fairlead_sim.autoscaling import reference_pools, scenarios
from fairlead_sim.autoscaling.closed_loop import (
    ControllerOutcome,
    ScheduleController,
    is_within_slo,
    run_controller,
    run_schedule,
)
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant, PlantFaults
from fairlead_sim.autoscaling.plant_engine import AggregatedEngine, PlantEngine, StepTotals, TokenEngine
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.request_table import NOT_YET, ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.traffic import CHAT_DAY, CHAT_LENGTHS, SHORT_OUTPUT_LENGTHS, daily_rates, poisson_arrivals
from fairlead_sim.autoscaling.unservable_requests import find_unservable, servable_share
from fairlead_testing.pytest_hooks.nightly import shortened

TEN_SECONDS = StartupDistribution(10.0, 0.0)
NOTHING = ArrivalTrace([], [], [])


def scenario(
    load: ArrivalTrace = NOTHING,
    *,
    initial: int = 1,
    startup: StartupDistribution = TEN_SECONDS,
    seconds: float = 100.0,
    minimum: int = 0,
    troubles: PlantFaults | None = None,
) -> AutoscalingScenario:
    setups = [
        reference_pools.reference_pool(reference_pools.small_profile(), initial, startup=startup, minimum=minimum)
    ]
    wanted = reference_pools.reference_model(setups, 3.0, 0.15)
    return AutoscalingScenario("made", 1, seconds, wanted, tuple(setups), load, troubles or PlantFaults())


def steady(rate: float, seconds: float) -> ArrivalTrace:
    count = int(rate * seconds)
    return ArrivalTrace([index / rate for index in range(count)], [1_000] * count, [100] * count)


def test_a_replica_costs_from_its_order_to_its_end() -> None:
    outcome = run_controller(scenario(), ScheduleController([(5.0, {"S": 3}), (50.0, {"S": 1})]))
    assert outcome.replica_hours["S"] * 3600.0 == pytest.approx(100.0 + 2 * 45.0)
    ready = {look.now: look.ready[0] for look in outcome.samples}
    assert (ready[10.0], ready[15.0], ready[20.0]) == (1, 3, 3)


def test_what_drains_costs_until_it_is_empty_and_cuts_nothing() -> None:
    outcome = run_controller(scenario(steady(0.5, 50.0), initial=2), ScheduleController([(45.0, {"S": 0})]))
    assert outcome.lost == 0
    kept = sum(end > 45.0 for end in outcome.request_table.end)
    assert kept > 0
    assert outcome.replica_hours["S"] * 3600.0 > 2 * 45.0 + 1.0
    assert max(outcome.request_table.end) - 45.0 < 10.0 or outcome.abandoned  # arrivals after it are held, in vain


def test_starts_that_fail_are_paid_for_and_tried_again() -> None:
    failing = StartupDistribution(10.0, 0.0, failure_share=0.6)
    outcome = run_controller(scenario(startup=failing, initial=0, seconds=400.0), ScheduleController([(0.0, {"S": 4})]))
    assert outcome.samples[-1].ready == (4,)
    firsts = [look.now for look in outcome.samples if look.ready == (4,)]
    assert firsts[0] > 15.0
    assert outcome.replica_hours["S"] * 3600.0 == pytest.approx(4 * 395.0, abs=1.0)


def test_a_crash_cuts_answers_and_the_other_requests_are_retried() -> None:
    load = steady(2.0, 60.0)
    calm = run_controller(scenario(load, initial=2), ScheduleController([]))
    outcome = run_controller(scenario(load, initial=2, troubles=PlantFaults(crashes=(30.0,))), ScheduleController([]))
    assert calm.lost == 0
    assert outcome.lost > 0
    assert sum(end < 0.0 for end in outcome.request_table.end) == outcome.lost
    ready = {look.now: look.ready[0] for look in outcome.samples}
    assert (ready[25.0], ready[35.0], ready[45.0]) == (2, 1, 2)


def test_without_a_replica_requests_are_held_and_none_is_lost() -> None:
    class Waking:
        def step(self, observation: Observation) -> ScalingPlan:
            assert observation.gateway is not None
            held.append(observation.gateway.held)
            return ScalingPlan({"S": PoolPlan(2, "held", "")} if observation.gateway.held else {})

    held: list[float] = []
    outcome = run_controller(scenario(steady(1.0, 60.0), initial=0), Waking())
    assert max(held) > 0
    assert held[-1] == 0
    assert outcome.abandoned == 0
    assert min(outcome.request_table.end) > 0.0
    assert outcome.request_table.first[0] == pytest.approx(5.0 + 10.0 + 0.5, abs=1.0)


def test_clients_give_up_after_their_patience() -> None:
    outcome = run_controller(scenario(steady(1.0, 20.0), initial=0, seconds=120.0), ScheduleController([]))
    assert outcome.abandoned == 20
    assert outcome.attainment == 0.0


def test_blind_and_lying_looks() -> None:
    plant = Plant(scenario(steady(2.0, 100.0), troubles=PlantFaults(missing=((10.0, 15.0),), zeroed=((20.0, 25.0),))))
    seen = []
    for tick in range(5, 35, 5):
        plant.run(float(tick))
        seen.append(plant.observe())
    true, blind, _, lying, after, _ = seen
    assert true.gateway is not None
    assert true.gateway.arrivals == 10
    assert true.gateway.prompt_tokens == 10_000
    assert blind.gateway is None
    assert blind.pools["S"].replicas is None
    assert blind.pools["S"].ready == 1
    assert lying.gateway is not None
    assert lying.gateway.arrivals == 0
    [liar] = lying.pools["S"].replicas or ()
    assert (liar.running, liar.generated_tokens, liar.kv_share, liar.state) == (0, 0, 0.0, ReplicaState.READY)
    [honest] = after.pools["S"].replicas or ()
    assert (honest.running or 0) + (honest.waiting or 0) > 0
    assert honest.generated_tokens


def test_counters_are_what_happened_between_two_looks() -> None:
    plant = Plant(scenario(steady(1.0, 60.0)))
    totals = dict.fromkeys(("first_tokens", "finished", "generated_tokens", "prompt_tokens"), 0.0)
    for tick in range(5, 200, 5):
        plant.run(float(tick))
        [replica] = plant.observe().pools["S"].replicas or ()
        for name in totals:
            totals[name] += getattr(replica, name)
        assert sum(replica.ttft_counts or ()) == replica.first_tokens
        assert sum(replica.itl_counts or ()) == replica.finished
    assert totals == {"first_tokens": 60, "finished": 60, "generated_tokens": 6_000, "prompt_tokens": 60_000}


def test_a_finished_answer_counts_once_by_its_mean_gap() -> None:
    totals = StepTotals((1.0,), (0.05, 0.1))
    totals.add_answer(4.9, 100)
    totals.add_answer(5.1, 100)
    totals.add_answer(10.0, 100)
    totals.add_answer(10.1, 100)
    assert (totals.finished, totals.itl_counts) == (4, [1, 2, 1])
    totals.add_answer(0.0, 0)
    assert (totals.finished, totals.itl_counts) == (5, [1, 2, 1]), "one token has no gap"
    totals.add_gaps(50, 0.2)
    assert totals.gap_seconds == 10.0
    assert totals.itl_counts == [1, 2, 1], "gaps alone are no answer"


def test_slow_steps_take_longer() -> None:
    load = steady(0.1, 100.0)
    usual = run_controller(scenario(load), ScheduleController([]))
    slow = run_controller(scenario(load, troubles=PlantFaults(slow=((50.0, 1.35),))), ScheduleController([]))
    ratio = [
        (there - at) / (here - at)
        for at, here, there in zip(load.arrivals, usual.request_table.end, slow.request_table.end, strict=True)
    ]
    assert ratio[:4] == pytest.approx([1.0] * 4)
    assert ratio[6:] == pytest.approx([1.35] * 4)


def test_changes_and_turns() -> None:
    outcome = run_controller(
        scenario(), ScheduleController([(5.0, {"S": 3}), (20.0, {"S": 4}), (40.0, {"S": 2}), (60.0, {"S": 3})])
    )
    assert outcome.changes_per_hour == pytest.approx(4 * 36.0)
    assert outcome.reversals_per_hour == pytest.approx(2 * 36.0)


def test_bounds_are_the_pools() -> None:
    outcome = run_controller(scenario(minimum=1), ScheduleController([(5.0, {"S": 0}), (50.0, {"S": 1_000})]))
    assert {look.desired[0] for look in outcome.samples} == {1, reference_pools.MAX_REPLICAS}


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    def course(seed: int) -> list[float]:
        case = replace(scenarios.step_cold(seed), seconds=600.0)
        return run_controller(case, ScheduleController([(100.0, {"S": 5})])).request_table.first[:400]

    assert course(1) == course(1)
    assert course(1) != course(2)


def test_loads_have_the_means_that_were_asked_for() -> None:
    draw = Random(4)
    rates = daily_rates(CHAT_DAY, 24 * 60, 8.0)
    assert sum(rates) / len(rates) == pytest.approx(8.0)
    assert max(rates) / min(rates) == pytest.approx(5.2 / 2.0, rel=0.02)
    chat = poisson_arrivals([8.0] * 60, CHAT_LENGTHS, draw)
    assert len(chat) == pytest.approx(8.0 * 3600.0, rel=0.03)
    assert sum(chat.prompts) / len(chat) == pytest.approx(1_155, rel=0.03)
    assert sum(chat.outputs) / len(chat) == pytest.approx(211, rel=0.03)
    code = poisson_arrivals([8.0] * 60, SHORT_OUTPUT_LENGTHS, draw)
    assert sum(code.prompts) / len(code) == pytest.approx(2_048, rel=0.03)
    assert sum(code.outputs) / len(code) == pytest.approx(28, rel=0.05)


class Counting:
    """Wants one replica once it sees a request; ``looks``: the times of its steps."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.wanted = 0

    def step(self, observation: Observation) -> ScalingPlan:
        self.looks.append(observation.now)
        if observation.gateway is not None and observation.gateway.held:
            self.wanted = 1
        return ScalingPlan({"S": PoolPlan(self.wanted, "test", "what is held wants a replica")})


@pytest.mark.parametrize(("hint", "asked"), [(None, [5.0, 10.0, 15.0]), (0.5, [5.0, 7.0, 12.0])])
def test_only_a_request_without_replicas_advances_the_next_step(hint: float | None, asked: list[float]) -> None:
    controller = Counting()
    case = scenario(ArrivalTrace([6.5, 8.0], [100, 100], [10, 10]), initial=0, seconds=60.0)
    outcome = run_controller(case, controller, hint_seconds=hint)
    assert controller.looks[:3] == asked
    assert outcome.abandoned == outcome.lost == 0


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
    for table, seen in ((book, engine), (other, preempting)):
        assert seen.totals.generated_tokens == sum(load.outputs)
        assert seen.totals.gap_seconds == pytest.approx(sum(table.end) - sum(table.first))
        assert sum(seen.totals.itl_counts) == seen.totals.finished == 60


START_SECONDS = 60.0
TTFT_SECONDS = 3.0


def made_scenario(
    *stretches: tuple[float, float, float], initial: int, changes: tuple[float, ...] = ()
) -> AutoscalingScenario:
    """Returns a scenario with (begin, end, rate) of requests, and starts that take a minute."""
    arrivals = [begin + index / rate for begin, end, rate in stretches for index in range(int((end - begin) * rate))]
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
    unservable = arrivals_of(scenario, find_unservable(scenario))
    ready = scenario.model.interval_seconds + START_SECONDS
    assert unservable == [at for at in scenario.load.arrivals if at <= unservable[-1]]
    assert unservable[-1] == pytest.approx(ready - TTFT_SECONDS, abs=1.0)


def test_a_start_fleet_that_is_too_small_still_serves_some() -> None:
    scenario = made_scenario((0.0, 900.0, 10.0), initial=2)
    unservable = find_unservable(scenario)
    from_zero = find_unservable(made_scenario((0.0, 900.0, 10.0), initial=0))
    assert 0 < len(unservable) < len(from_zero)


def test_the_first_look_after_a_sudden_change_counts_as_well() -> None:
    stretches = (0.0, 300.0, 1.0), (302.0, 900.0, 12.0)
    unnoticed, noticed = (made_scenario(*stretches, initial=2, changes=changes) for changes in ((), (302.0,)))
    assert find_unservable(unnoticed) == frozenset()
    unservable = arrivals_of(noticed, find_unservable(noticed))
    assert unservable[0] >= 302.0
    assert unservable[-1] < 305.0 + START_SECONDS + TTFT_SECONDS


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
