"""The plant: replica lifetimes and costs, its gateway, and the observations of a controller."""

from dataclasses import replace
from random import Random

import pytest

from fairlead_autoscaler.core.types import Observation, PoolPlan, ReplicaState, ScalingPlan
from fairlead_sim.autoscaling import reference_pools, scenarios
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, Plant, PlantFaults
from fairlead_sim.autoscaling.plant_engine import StepTotals
from fairlead_sim.autoscaling.pool import StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.traffic import CHAT_DAY, CHAT_LENGTHS, SHORT_OUTPUT_LENGTHS, daily_rates, poisson_arrivals

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
    return ArrivalTrace([one / rate for one in range(count)], [1_000] * count, [100] * count)


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
        made = replace(scenarios.step_cold(seed), seconds=600.0)
        return run_controller(made, ScheduleController([(100.0, {"S": 5})])).request_table.first[:400]

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
    made = scenario(ArrivalTrace([6.5, 8.0], [100, 100], [10, 10]), initial=0, seconds=60.0)
    outcome = run_controller(made, controller, hint_seconds=hint)
    assert controller.looks[:3] == asked
    assert outcome.abandoned == outcome.lost == 0
