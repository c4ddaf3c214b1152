"""The plant with caches: conversations, life cycles of replicas, and the scaled schedule."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import Observation, PoolPlan, ReplicaState, ScalingPlan, SleepTier
from fairlead_sim.autoscaling import reference_pools
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller, run_schedule
from fairlead_sim.autoscaling.fleet_plant.conversations import (
    NO_PARENT,
    PREFIX_BLOCK_TOKENS,
    ConversationOptions,
    ConversationPrompts,
    ConversationTurns,
    FleetPlantOptions,
    conversation_turns,
)
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import scale_steps, scaled_schedule_bound
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, PlantFaults
from fairlead_sim.autoscaling.pool import SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import with_sleep_tier
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.pytest_hooks.nightly import shortened

AGREEMENT = [(6, 0.01), (7, 0.005), (9, 0.005)]
TEN_SECONDS = StartupDistribution(10.0, 0.0)
NOTHING = ArrivalTrace([], [], [])
NO_CACHE = FleetPlantOptions(ConversationOptions(cached_share=0.0))


def scenario(
    load: ArrivalTrace = NOTHING,
    *,
    initial: int = 1,
    startup: StartupDistribution = TEN_SECONDS,
    seconds: float = 100.0,
    faults: PlantFaults | None = None,
) -> AutoscalingScenario:
    setups = [reference_pools.reference_pool(reference_pools.small_profile(), initial, startup=startup, minimum=0)]
    model = reference_pools.reference_model(setups, 3.0, 0.15)
    return AutoscalingScenario("made", 1, seconds, model, tuple(setups), load, faults or PlantFaults())


def chat(rate: float, minutes: int, seed: int = 1) -> ArrivalTrace:
    return poisson_arrivals([rate] * minutes, CHAT_LENGTHS, Random(seed))


def steady(rate: float, seconds: float) -> ArrivalTrace:
    count = int(rate * seconds)
    return ArrivalTrace([index / rate for index in range(count)], [1_000] * count, [100] * count)


def outcome_of(
    case: AutoscalingScenario, *steps: tuple[float, int], options: FleetPlantOptions = NO_CACHE
) -> ControllerOutcome:
    controller = ScheduleController([(at, {"S": count}) for at, count in steps])
    return run_controller(case, controller, plant=FleetPlant(case, options))


def assert_each_ends_once(outcome: ControllerOutcome) -> None:
    table = outcome.request_table
    ended = sum(end >= 0.0 for end in table.end)
    assert ended + outcome.abandoned + outcome.lost == outcome.requests
    for at, sent, first, end in zip(table.arrival, table.sent, table.first, table.end, strict=True):
        if end >= 0.0:
            assert at <= sent < first <= end


def test_a_replica_costs_from_its_order_to_its_end() -> None:
    outcome = outcome_of(scenario(), (5.0, 3), (50.0, 1))
    assert outcome.replica_hours["S"] * 3600.0 == pytest.approx(100.0 + 2 * 45.0)
    ready = {sample.now: sample.ready[0] for sample in outcome.samples}
    assert (ready[10.0], ready[15.0], ready[20.0]) == (1, 3, 3)


def test_a_drained_replica_finishes_its_requests_and_costs_until_then() -> None:
    outcome = outcome_of(scenario(steady(1.0, 45.0), initial=3), (45.0, 1))
    assert outcome.lost == outcome.abandoned == 0
    assert_each_ends_once(outcome)
    drained = outcome.replica_hours["S"] * 3600.0 - 100.0 - 2 * 45.0
    after = [end - 45.0 for end in outcome.request_table.end if end > 45.0]
    assert after
    assert 0.0 < drained <= 2 * max(after)


def test_a_crash_cuts_answers_and_the_other_requests_are_sent_again() -> None:
    load = ArrivalTrace([20.0] * 8 + [29.9] * 8, [1_000] * 16, [600] * 16)
    outcome = outcome_of(scenario(load, initial=2, faults=PlantFaults(crashes=(30.0,))))
    assert outcome.lost > 0
    assert outcome.abandoned == 0
    assert_each_ends_once(outcome)
    table = outcome.request_table
    cut = [number for number, end in enumerate(table.end) if end < 0.0]
    assert len(cut) == outcome.lost
    assert all(table.sent[number] < 30.0 and 0.0 <= table.first[number] <= 30.0 for number in cut)
    again = [number for number, at in enumerate(table.arrival) if table.sent[number] == 30.0 and at < 30.0]
    assert again
    assert all(table.end[number] > 30.0 for number in again)
    ready = {sample.now: sample.ready[0] for sample in outcome.samples}
    assert (ready[25.0], ready[35.0], ready[45.0]) == (2, 1, 2)
    assert outcome.replica_hours["S"] * 3600.0 == pytest.approx(2 * 100.0)


def test_requests_wait_at_the_gateway_for_the_first_replica() -> None:
    class OnHeld:
        def __init__(self) -> None:
            self.held: list[float] = []

        def step(self, observation: Observation) -> ScalingPlan:
            assert observation.gateway is not None
            self.held.append(observation.gateway.held)
            return ScalingPlan({"S": PoolPlan(2, "held", "")} if observation.gateway.held else {})

    controller, case = OnHeld(), scenario(steady(1.0, 60.0), initial=0)
    outcome = run_controller(case, controller, plant=FleetPlant(case, NO_CACHE))
    assert controller.held[:2] == [5.0, 10.0]
    assert controller.held[-1] == 0
    assert outcome.abandoned == outcome.lost == 0
    assert_each_ends_once(outcome)
    table = outcome.request_table
    assert table.sent[0] == 15.0
    assert table.sent[:15] == sorted(table.sent[:15])


def test_clients_give_up_after_their_patience() -> None:
    case = scenario(steady(1.0, 20.0), initial=0, seconds=120.0)
    plant = FleetPlant(case, NO_CACHE)
    plant.run(60.5)
    assert plant.requests.abandoned == 1
    plant.run(79.5)
    assert plant.requests.abandoned == 20
    observation = plant.observe()
    assert observation.gateway is not None
    assert (observation.gateway.abandoned, observation.gateway.held) == (20, 0)


def test_overload_ends_each_request_once_and_leaves_none_behind() -> None:
    load = chat(6.0, 3)
    faults = PlantFaults(crashes=(40.0, 100.0), slow=((60.0, 1.5),))
    outcome = outcome_of(scenario(load, initial=2, seconds=180.0, faults=faults), (70.0, 4), (150.0, 1))
    assert outcome.abandoned > 0
    assert outcome.lost > 0
    assert_each_ends_once(outcome)


def test_equal_seeds_give_equal_outcomes() -> None:
    case = scenario(chat(4.0, 2), initial=3, seconds=120.0, faults=PlantFaults(crashes=(60.0,)))
    options = FleetPlantOptions()
    first, second = [outcome_of(case, (30.0, 5), (90.0, 3), options=options) for _ in range(2)]
    assert first.request_table.end == second.request_table.end
    assert first.samples == second.samples
    assert first.cost == second.cost
    other = outcome_of(replace(case, seed=2), (30.0, 5), (90.0, 3), options=options)
    assert other.request_table.end != first.request_table.end


def test_missing_and_zeroed_metrics_and_the_counters_of_a_tick() -> None:
    load = steady(2.0, 100.0)
    faults = PlantFaults(missing=((10.0, 15.0),), zeroed=((20.0, 25.0),))
    plant = FleetPlant(scenario(load, faults=faults))
    observations = []
    for tick in range(5, 160, 5):
        plant.run(float(tick))
        observations.append(plant.observe())
    true, missing, _, zeroed, _, _ = observations[:6]
    assert true.gateway is not None
    assert (true.gateway.arrivals, true.gateway.prompt_tokens) == (10, 10_000)
    assert missing.gateway is None
    assert missing.pools["S"].replicas is None
    assert missing.pools["S"].ready == 1
    [replica] = zeroed.pools["S"].replicas or ()
    assert (replica.running, replica.generated_tokens, replica.cached_tokens) == (0, 0, 0)
    assert replica.state is ReplicaState.READY
    seen = [replica for observation in observations for replica in observation.pools["S"].replicas or ()]
    lost_ticks = [observation for observation in observations if observation is missing or observation is zeroed]
    assert len(lost_ticks) == 2
    last = seen[-1]
    assert (last.running, last.waiting, last.kv_share) == (0, 0, 0.0)
    assert max(replica.kv_share or 0.0 for replica in seen) > 0.1
    full = FleetPlant(scenario(load))
    full.run(160.0)
    [whole] = full.observe().pools["S"].replicas or ()
    assert (whole.first_tokens, whole.finished) == (200, 200)
    assert whole.generated_tokens == 200 * 100
    assert sum(whole.itl_counts or ()) == 200
    assert sum(whole.ttft_counts or ()) == 200
    assert whole.prompt_tokens == 200 * 1_000
    table = full.requests
    between = sum(end - first for first, end in zip(table.first, table.end, strict=True))
    assert whole.itl_seconds == pytest.approx(between)
    waits = sum(first - sent for first, sent in zip(table.first, table.sent, strict=True))
    assert whole.ttft_seconds == pytest.approx(waits)


def test_one_conversation_on_one_replica_computes_only_what_is_new() -> None:
    """1,000 + 2,000 prompt tokens; the second turn finds 15 full blocks of 64 tokens."""
    load = ArrivalTrace([0.0, 60.0], [1_000, 2_000], [10, 10])
    options = FleetPlantOptions(ConversationOptions(cached_share=0.5, system_tokens=0, pause_seconds=1.0))
    plant = FleetPlant(scenario(load), options)
    plant.run(100.0)
    [replica] = plant.observe().pools["S"].replicas or ()
    assert (replica.prompt_tokens, replica.cached_tokens) == (3_000, 15 * 64)
    assert plant.cached_share == pytest.approx(15 * 64 / 3_000)
    assert plant.ideal_cached_share == pytest.approx(15 * 64 / 3_000)
    profile = reference_pools.small_profile()
    cold, warm = [plant.requests.first[number] - plant.requests.arrival[number] for number in (0, 1)]
    assert cold == pytest.approx(profile.prefill_time(1_000, 0) + 2 * profile.sequence_seconds, abs=1e-6)
    assert warm == pytest.approx(profile.prefill_time(2_000, 960) + 3 * profile.sequence_seconds, abs=1e-6)


def test_a_new_replica_has_an_empty_cache() -> None:
    """The conversation's replica is replaced between its turns."""
    load = ArrivalTrace([0.0, 60.0], [1_000, 2_000], [10, 10])
    options = FleetPlantOptions(ConversationOptions(cached_share=0.5, system_tokens=0, pause_seconds=1.0))
    case = scenario(load)
    plant = FleetPlant(case, options)
    run_controller(case, ScheduleController([(10.0, {"S": 0}), (40.0, {"S": 1})]), plant=plant)
    assert plant.requests.end[1] > 60.0
    assert plant.cached_share == 0.0


def test_more_replicas_keep_more_of_the_same_conversations() -> None:
    minutes = shortened(6, 3)
    case, shares = scenario(chat(6.0, minutes), initial=6, seconds=60.0 * minutes), []
    for replicas in (6, 24):
        plant = FleetPlant(case, foresight=True)
        plant.scale("S", replicas)
        plant.run(case.seconds)
        shares.append(plant.cached_share)
    few, many = shares
    assert few + 0.03 < many < plant.ideal_cached_share


def test_a_shared_prefix_costs_less_than_none() -> None:
    minutes = shortened(6, 3)
    case = scenario(chat(6.0, minutes), initial=4, seconds=60.0 * minutes)
    cold = outcome_of(case)
    warm = outcome_of(case, options=FleetPlantOptions(ConversationOptions(cached_share=0.45, pause_seconds=5.0)))
    assert warm.attainment > cold.attainment


@pytest.mark.parametrize(("replicas", "within"), shortened(AGREEMENT, AGREEMENT[:1]))
def test_without_caches_it_agrees_with_the_token_level_plant(replicas: int, within: float) -> None:
    """Routing differs: prompts and memory in flight here, tokens in flight there.

    `make test` compares the smallest fleet, `make nightly` three.
    """
    minutes = shortened(8, 6)
    more, fewer = (25.0 * minutes, replicas + 2), (37.5 * minutes, replicas - 1)
    case = scenario(chat(6.5, minutes), initial=replicas, seconds=60.0 * minutes)
    fleet = outcome_of(case, more, fewer)
    controller = ScheduleController([(at, {"S": count}) for at, count in (more, fewer)])
    tokens = run_controller(case, controller, engine_model=EngineModelKind.TOKEN_LEVEL)
    assert fleet.attainment == pytest.approx(tokens.attainment, abs=within)
    assert fleet.cost == pytest.approx(tokens.cost, rel=0.005)
    assert fleet.starts == tokens.starts


def test_a_slow_engine_takes_longer_for_each_token_from_then_on() -> None:
    load = steady(0.1, 200.0)
    plant = FleetPlant(scenario(load, seconds=200.0, faults=PlantFaults(slow=((100.0, 2.0),))), NO_CACHE)
    plant.run(100.0)
    plant.observe()
    plant.run(300.0)
    table = plant.requests
    paces = [(end - first) / 99.0 for first, end in zip(table.first, table.end, strict=True)]
    before = [pace for pace, end in zip(paces, table.end, strict=True) if end < 100.0]
    after = [pace for pace, at in zip(paces, load.arrivals, strict=True) if at > 100.0]
    assert min(after) == pytest.approx(2.0 * min(before), rel=1e-6)


def test_a_replica_that_starts_after_the_slowdown_is_slow_too() -> None:
    load = ArrivalTrace([50.0], [100], [101])
    case = scenario(load, initial=0, faults=PlantFaults(slow=((5.0, 3.0),)))
    table = outcome_of(case, (20.0, 1)).request_table
    gap = (table.end[0] - table.first[0]) / 100.0
    profile = reference_pools.small_profile()
    assert gap == pytest.approx(3.0 * profile.step_time(computed=1, sequences=1, resident=150), rel=0.01)


def test_two_pools_share_the_load() -> None:
    setups = (
        reference_pools.reference_pool(reference_pools.small_profile(), 2),
        reference_pools.reference_pool(reference_pools.large_profile(), 1, cost=3.7),
    )
    case = replace(scenario(chat(6.0, 2), seconds=120.0), pools=setups)
    case = replace(case, model=reference_pools.reference_model(setups, 3.0, 0.15))
    plant = FleetPlant(case)
    plant.run(120.0)
    observation = plant.observe()
    for name in ("S", "L"):
        assert sum(replica.first_tokens or 0.0 for replica in observation.pools[name].replicas or ()) > 20
    assert observation.shapes
    assert len(observation.shapes) == sum(0.0 <= end <= 120.0 for end in plant.requests.end)


def test_prefill_and_decode_pools_are_refused() -> None:
    setups = (
        reference_pools.reference_pool(reference_pools.large_profile(), 1, role=Role.PREFILL, name="prefill"),
        reference_pools.reference_pool(reference_pools.large_profile(), 1, role=Role.DECODE, name="decode"),
    )
    case = replace(scenario(), pools=setups, model=reference_pools.reference_model(setups, 2.0, 0.1))
    with pytest.raises(BadInput, match="prefill or decode pools"):
        FleetPlant(case)


LOAD = poisson_arrivals([8.0] * 20, CHAT_LENGTHS, Random(1))


def prompts_of(load: ArrivalTrace, turns: ConversationTurns, options: ConversationOptions) -> ConversationPrompts:
    return ConversationPrompts(load, turns, options, secret=b"s", seed=b"m")


def endless_cache_share(requests: list[TraceRequest], prompts: ConversationPrompts) -> float:
    cached: set[int] = set()
    reused = 0
    for request in requests:
        keys = prompts.block_keys(request)
        reused += PREFIX_BLOCK_TOKENS * len([key for key in keys if key in cached])
        cached.update(keys)
    return reused / sum(request.prompt_tokens for request in requests)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_an_endless_cache_would_have_the_share_that_was_asked_for(share: float) -> None:
    options = ConversationOptions(cached_share=share)
    turns = conversation_turns(LOAD, options, Random(2))
    assert turns.cached_share == pytest.approx(share, abs=0.01)
    prompts = prompts_of(LOAD, turns, options)
    requests = [prompts.take(number) for number in range(len(LOAD))]
    assert endless_cache_share(requests, prompts) == pytest.approx(turns.cached_share, abs=0.001)
    assert [request.prompt_tokens for request in requests] == list(LOAD.prompts)
    assert [request.output_tokens for request in requests] == list(LOAD.outputs)
    assert [request.arrival for request in requests] == list(LOAD.arrivals)


def test_without_a_share_no_two_prompts_have_anything_in_common() -> None:
    options = ConversationOptions(cached_share=0.0)
    turns = conversation_turns(LOAD, options, Random(2))
    prompts = prompts_of(LOAD, turns, options)
    assert endless_cache_share([prompts.take(number) for number in range(len(LOAD))], prompts) == 0.0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 900.0), st.integers(1, 3_000), st.integers(1, 300)), min_size=1, max_size=80),
    st.floats(0.0, 0.9),
)
def test_a_turn_follows_a_finished_shorter_one_and_each_has_one_next(
    drawn: list[tuple[float, int, int]], share: float
) -> None:
    arrivals, lengths, outputs = zip(*sorted(drawn), strict=True)
    load = ArrivalTrace(arrivals, lengths, outputs)
    options = ConversationOptions(cached_share=share, pause_seconds=5.0)
    turns = conversation_turns(load, options, Random(3))
    assert turns == conversation_turns(load, options, Random(3))
    parents = [parent for parent in turns.parents if parent != NO_PARENT]
    assert len(set(parents)) == len(parents)
    for number, parent in enumerate(turns.parents):
        if parent != NO_PARENT:
            assert parent < number
            assert lengths[number] > lengths[parent] + outputs[parent]
            assert arrivals[number] > arrivals[parent]
    prompts = prompts_of(load, turns, options)
    requests = [prompts.take(number) for number in range(len(load))]
    for number, parent in enumerate(turns.parents):
        if parent != NO_PARENT:
            shared = lengths[parent] // PREFIX_BLOCK_TOKENS
            mine, before = prompts.block_keys(requests[number]), prompts.block_keys(requests[parent])
            assert mine[:shared] == before
            assert len(set(mine) & set(before)) == shared


def test_the_gateway_sees_the_same_common_prefixes_as_the_engines() -> None:
    load = ArrivalTrace([0.0, 100.0, 200.0], [512, 1_024, 1_024], [10, 10, 10])
    options = ConversationOptions(cached_share=0.5, system_tokens=256, pause_seconds=1.0)
    turns = conversation_turns(load, options, Random(1))
    assert list(turns.parents) == [NO_PARENT, 0, NO_PARENT]
    prompts = prompts_of(load, turns, options)
    first, second, third = [prompts.prefix_chain(prompts.take(number)) for number in range(3)]
    blocks = 512 * 4 // 256
    assert second.hashes[:blocks] == first.hashes
    assert third.hashes[: blocks // 2] == first.hashes[: blocks // 2]
    assert third.hashes[blocks // 2] != first.hashes[blocks // 2]
    assert len({first.tail, second.tail, third.tail}) == 3


@pytest.mark.parametrize("wrong", [{"cached_share": 1.0}, {"pause_seconds": 0.0}, {"system_tokens": -1}])
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        ConversationOptions(**wrong)  # type: ignore[arg-type]


TICK_SECONDS = 5.0
SECONDS = 150.0
REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 140.0), st.integers(1, 4_000), st.integers(1, 300)), min_size=1, max_size=60
)
PLANS = st.dictionaries(st.integers(0, 28), st.integers(0, 5), max_size=6)


def life_cycles_scenario(
    load: ArrivalTrace, crashes: tuple[float, ...] = (), *, initial: int = 1
) -> AutoscalingScenario:
    startup = StartupDistribution(5.0, 20.0, failure_share=0.2)
    setup = reference_pools.reference_pool(reference_pools.small_profile(), initial, startup=startup, minimum=0)
    model = reference_pools.reference_model([setup], 3.0, 0.15)
    return AutoscalingScenario("made", 1, SECONDS, model, (setup,), load, PlantFaults(crashes=crashes))


@settings(max_examples=40, deadline=None)
@given(REQUESTS, PLANS, st.lists(st.floats(1.0, 149.0), max_size=3))
def test_each_request_ends_once_and_cost_is_the_sum_of_lifetimes(
    drawn: list[tuple[float, int, int]], plans: dict[int, int], crashes: list[float]
) -> None:
    arrivals, prompts, outputs = zip(*sorted(drawn), strict=True)
    plant = FleetPlant(life_cycles_scenario(ArrivalTrace(arrivals, prompts, outputs), tuple(crashes)))
    born: dict[str, float] = {}
    seen: dict[str, float] = {}
    for tick in range(int(SECONDS / TICK_SECONDS)):
        now = (tick + 1) * TICK_SECONDS
        plant.run(now)
        for replica in plant.observe().pools["S"].replicas or ():
            born[replica.id] = now - replica.age_seconds
            seen[replica.id] = now
        if tick in plans:
            plant.scale("S", plans[tick])
    plant.finish()
    table, pool = plant.requests, plant.pools["S"]
    ended = sum(end >= 0.0 for end in table.end)
    assert ended + table.abandoned + table.lost == len(arrivals)
    for at, sent, first, end in zip(table.arrival, table.sent, table.first, table.end, strict=True):
        if end >= 0.0:
            assert at <= sent < first <= end
            assert first - at <= 60.0
    # A replica ends at most a tick after it was observed last. Some are never observed.
    observed = sum(seen[name] - at for name, at in born.items())
    unseen = TICK_SECONDS * (len(born) + sum(plans.values()) + 10)
    assert observed - 1e-6 <= pool.replica_seconds <= observed + unseen


def test_a_replica_returns_from_its_sleep_with_an_empty_cache() -> None:
    load = ArrivalTrace([1.0, 100.0, 120.0], [1_000, 2_000, 3_000], [10, 10, 10])
    case = with_sleep_tier(life_cycles_scenario(load), SleepTier(most=2), SleepTimings(wake_seconds=10.0))
    case = replace(case, pools=tuple(replace(setup, startup=StartupDistribution(10.0, 0.0)) for setup in case.pools))
    plant = FleetPlant(case)
    plant.run(30.0)
    plant.scale("S", 0, 1)
    plant.run(50.0)
    observation = plant.observe().pools["S"]
    assert (observation.ready, observation.asleep) == (0, 1)
    plant.scale("S", 1)
    plant.run(150.0)
    assert plant.pools["S"].starts == []
    assert plant.cached_share == pytest.approx(31 * 64 / 6_000)
    assert min(plant.requests.end) > 0.0


MINUTES = shortened((2, 3, 2), (1, 2, 1))
"""Minutes with few requests, with twice as many, and with few again."""
STEPS = [(0.0, {"S": 4}), (60.0 * MINUTES[0], {"S": 8}), (60.0 * sum(MINUTES[:2]), {"S": 3})]


def scaled_schedule_scenario() -> AutoscalingScenario:
    load = poisson_arrivals([2.0] * MINUTES[0] + [4.0] * MINUTES[1] + [2.0] * MINUTES[2], CHAT_LENGTHS, Random(1))
    setup = reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=StartupDistribution(10.0, 0.0))
    return AutoscalingScenario(
        "made", 1, 60.0 * sum(MINUTES), reference_pools.reference_model([setup], 3.0, 0.15), (setup,), load
    )


def test_it_attains_the_target_for_less_than_the_schedule_it_scales() -> None:
    case = scaled_schedule_scenario()
    whole = run_schedule(case, STEPS, FleetPlant(case, foresight=True))
    bound = scaled_schedule_bound(case, STEPS, runs=shortened(6, 3))
    assert whole.attainment >= 0.99
    assert bound.attainment >= 0.99
    assert bound.cost < 0.8 * whole.cost
    again = run_schedule(case, bound.steps, FleetPlant(case, foresight=True))
    assert (again.attainment, again.cost) == (bound.attainment, bound.cost)


@pytest.mark.nightly
def test_lower_counts_for_a_part_of_the_time_save_more_than_whole_factors() -> None:
    """Two steps of ten minutes: one factor for both leaves too much in the first."""
    setup = reference_pools.reference_pool(reference_pools.small_profile(), 1, startup=StartupDistribution(10.0, 0.0))
    load = poisson_arrivals([0.5] * 10 + [2.0] * 10, CHAT_LENGTHS, Random(1))
    model = reference_pools.reference_model([setup], 3.0, 0.15)
    case = AutoscalingScenario("made", 1, 1_200.0, model, (setup,), load)
    steps = [(0.0, {"S": 3}), (600.0, {"S": 3})]
    bound = scaled_schedule_bound(case, steps, runs=10)
    assert bound.attainment >= 0.99
    (_, first), (_, second) = bound.steps
    assert first["S"] < second["S"]


def test_a_schedule_that_is_too_small_is_raised() -> None:
    case = scaled_schedule_scenario()
    few = [(at, {"S": max(1, counts["S"] // 3)}) for at, counts in STEPS]
    assert run_schedule(case, few, FleetPlant(case, foresight=True)).attainment < 0.9
    bound = scaled_schedule_bound(case, few, runs=shortened(6, 4))
    assert bound.attainment >= 0.99


def test_without_a_schedule_that_attains_the_target_the_best_one_is_returned() -> None:
    case = scaled_schedule_scenario()
    bound = scaled_schedule_bound(case, [(0.0, {"S": 1})], target=1.1, runs=3)
    single = run_schedule(case, [(0.0, {"S": 1})], FleetPlant(case, foresight=True))
    assert bound.attainment > single.attainment


@pytest.mark.parametrize(
    ("factor", "counts"), [(1.0, [4, 8, 3]), (0.5, [2, 4, 2]), (0.1, [1, 1, 1]), (9.0, [36, 60, 27])]
)
def test_counts_are_rounded_within_the_bounds_of_the_pool(factor: float, counts: list[int]) -> None:
    assert [step["S"] for _, step in scale_steps(scaled_schedule_scenario(), STEPS, factor)] == counts
