"""The core on models of several pools: separate or missing pools, unlike replicas, and rules."""

import copy
import math
from dataclasses import replace
from functools import cache
from itertools import cycle, product
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    ScalingSettings,
)
from fairlead_autoscaler.core.performance.measured_slowdown import EngineSpeed, update_engine_speed
from fairlead_autoscaler.core.signals.validation import TokenGapSample, pool_totals
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, record_tick
from fairlead_autoscaler.core.workload.load_forecast import recurring_burst_level
from fairlead_testing.autoscaler.control_loop import SMALL_ENGINE
from fairlead_testing.pytest_hooks.nightly import shortened


def _planned(maximum: int, arrivals: float) -> PoolPlan:
    """Returns the plan of a full pool after a minute of so many requests a tick."""
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=1, maximum=maximum),)))
    plan = None
    for tick in range(12):
        seen = PoolObservation(maximum, maximum, replicas=())
        plan = core.step(Observation(tick * 5.0, GatewayTraffic(arrivals, arrivals * 900.0), {"main": seen})).pools[
            "main"
        ]
    assert plan is not None
    return plan


def test_a_pool_that_has_all_it_may_have_and_needs_more_says_so() -> None:
    plan = _planned(2, 500.0)
    assert (plan.replicas, plan.rule) == (2, "maximum")
    assert "the maximum is 2" in plan.reason


def test_a_pool_that_has_all_it_may_have_and_needs_no_more_has_enough() -> None:
    assert _planned(2, 1.0).rule == "enough"


def test_a_pool_that_needs_less_than_it_must_have_says_so() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=2, maximum=4),)))
    seen = {"main": PoolObservation(2, 2, replicas=())}
    plan = [core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), seen)).pools["main"] for tick in range(200)][-1]
    assert (plan.replicas, plan.rule) == (2, "minimum")
    assert "the minimum is 2" in plan.reason


def test_the_last_one_of_a_pool_that_may_have_none_is_not_said_to_be_needed() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=0, maximum=4),)))
    seen = {"main": PoolObservation(1, 1, replicas=())}
    rules = []
    for tick in range(900):
        plan = core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), seen)).pools["main"]
        rules.append((plan.rule, "until idling costs more than a cold start" in plan.reason))
        if plan.replicas == 0:
            break
    assert rules[-2] == ("enough", True)
    assert rules[-1][0] == "zero"


def test_what_is_woken_says_that_a_request_came_not_how_little_it_needs() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=0, maximum=4),)))
    nothing = {"main": PoolObservation(0, 0, replicas=())}
    for tick in range(4):
        core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), nothing))
    plan = core.step(Observation(20.0, GatewayTraffic(0.0, 0.0, 1.0), nothing)).pools["main"]
    assert (plan.replicas, plan.rule) == (1, "wake")
    assert "a request came" in plan.reason


_PROFILE = EngineProfile("L", 9e-5, step_seconds=12e-3, kv_tokens=400_000, max_sequences=256, step_tokens=1_024)


_SEEN = ReplicaMetrics(
    "r",
    ReplicaState.READY,
    500.0,
    60.0,
    running=40.0,
    waiting=0.0,
    prompt_tokens=15_000.0,
    finished=30.0,
    first_tokens=30.0,
)


def _waiting(role: Role, **signals: Any) -> float:
    """Returns the assumed queue of an engine that reports 40 running requests and none waiting."""
    replica = replace(_SEEN, **signals)
    totals = pool_totals(PoolObservation(1, 1, replicas=(replica,)), PoolSpec("main", role, profile=_PROFILE), 0.1)
    assert totals is not None
    assert totals.running + totals.waiting == (replica.running or 0.0) + (replica.waiting or 0.0)
    return totals.waiting


def test_a_prefill_engine_that_calls_its_queue_running_is_known_by_what_a_step_holds() -> None:
    # Prompts of 500 tokens: two in a step, and one more that has just come.
    assert _waiting(Role.PREFILL) == pytest.approx(40.0 - 1_024.0 / 500.0 - 1.0)
    assert _waiting(Role.PREFILL, prompt_tokens=30.0 * 8_000.0) == 38.0
    assert _waiting(Role.PREFILL, waiting=5.0) == pytest.approx(45.0 - 1_024.0 / 500.0 - 1.0)


@pytest.mark.parametrize("running", [0.0, 1.0, 3.0])
def test_what_a_step_holds_waits_for_nothing(running: float) -> None:
    assert _waiting(Role.PREFILL, running=running) == 0.0


@pytest.mark.parametrize("missing", ["running", "first_tokens", "prompt_tokens"])
def test_where_it_cannot_be_told_nothing_is_made_up(missing: str) -> None:
    assert _waiting(Role.PREFILL, **{missing: None}) == 0.0
    assert _waiting(Role.DECODE) == _waiting(Role.SERVE) == 0.0


LARGE = PoolSpec("large", cost_per_hour=3.7, minimum=1, maximum=20, profile=builtin_profile("h100-llama8b"))
SMALL = PoolSpec("small", cost_per_hour=1.0, minimum=0, maximum=40, profile=builtin_profile("l4-qwen8b"))
MODEL = ModelSpec("chat", 3.0, 0.2, (LARGE, SMALL))


class Fleet:
    """Pools whose numbers are those that were planned last, each look after five seconds."""

    def __init__(self, model: ModelSpec) -> None:
        self.core, self.now, self.counts = ScalingCore(model), 0.0, {pool.name: 1 for pool in model.pools}

    def step(self, *named: str) -> dict[str, PoolPlan]:
        """Returns the plans of a tick with these pools, at sixty requests a second."""
        self.now += 5.0
        pools = {name: PoolObservation(self.counts[name], self.counts[name], replicas=()) for name in named}
        plans = self.core.step(Observation(self.now, GatewayTraffic(300.0, 300_000.0), pools)).pools
        self.counts |= {name: plan.replicas for name, plan in plans.items()}
        return dict(plans)


@pytest.fixture
def settled() -> Fleet:
    return copy.deepcopy(_settled())


@cache
def _settled() -> Fleet:
    """Returns a fleet after an hour, when its forecasts are known to be good and the large pool
    carries the whole load.
    """
    fleet = Fleet(MODEL)
    for _ in range(720):
        fleet.step("large", "small")
    return fleet


def test_one_that_vanishes_for_a_look_or_now_and_then_moves_nothing(settled: Fleet) -> None:
    had = dict(settled.counts)
    for tick in range(120):
        settled.step("small") if tick % 10 == 0 else settled.step("large", "small")
        assert settled.counts["small"] == had["small"]
        assert settled.counts["large"] <= had["large"]


def test_after_a_minute_the_others_carry_what_it_did(settled: Fleet) -> None:
    had = settled.counts["small"]
    for _ in range(11):
        assert settled.step("small") == {}
    for _ in range(6):
        settled.step("small")
    assert settled.counts["small"] > had


def test_a_pool_that_was_never_there_holds_nobody_up() -> None:
    fleet = Fleet(MODEL)
    for _ in range(60):
        fleet.step("small")
    assert fleet.counts["small"] > 1


def test_where_all_pools_share_a_number_nobody_takes_what_it_may_still_have() -> None:
    prefill, decode = (replace(LARGE, name=role.value, role=role) for role in (Role.PREFILL, Role.DECODE))
    fleet = Fleet(replace(MODEL, pools=(prefill, decode), replicas_most=6))
    for _ in range(60):
        fleet.step("Prefill", "Decode")
    assert sum(fleet.counts.values()) <= 6
    assert fleet.step("Decode") == {}


_SETTINGS = ScalingSettings()
_UNEVEN_PROFILE = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)
_POOL = PoolSpec("main", profile=_UNEVEN_PROFILE)


def _pace(prompts: float, sequences: float, gap_seconds: float) -> TokenGapSample:
    """Returns a replica that ran so many sequences and computed so many prompt tokens in 5 s."""
    gaps = sequences * 5.0
    return TokenGapSample(0.0, prompts, gaps / gap_seconds, gaps)


def _gap(prompts_per_second: float, sequences: float, slower: float) -> float:
    """Returns the step time where each part takes so many times as long as the profile says."""
    per_sequence = _UNEVEN_PROFILE.sequence_seconds + _UNEVEN_PROFILE.prefill_token_seconds
    plain = slower * (_UNEVEN_PROFILE.step_seconds + per_sequence * sequences)
    return plain / (1.0 - slower * _UNEVEN_PROFILE.prefill_token_seconds * prompts_per_second)


@pytest.mark.parametrize("slower", [1.0, 1.35])
def test_new_replicas_do_not_make_busy_ones_seem_slow(slower: float) -> None:
    busy = _pace(9_000.0, 20.0, _gap(1_800.0, 20.0, slower))
    new = _pace(0.0, 1.0, _gap(0.0, 1.0, slower))
    known = EngineSpeed()
    for _ in range(20):
        known = update_engine_speed(known, (busy, new, new, new), _POOL, 5.0)
    assert known.slowdown() == pytest.approx(slower, rel=0.02)


def _counted(ticks: list[float]) -> ArrivalHistory:
    load = ArrivalHistory()
    for number, requests in enumerate(ticks):
        load = record_tick(load, ArrivalBin(5.0 * (number + 1), 5.0, requests, requests * 1_000.0, 30.0), _SETTINGS)
    return load


def _bursts(load: ArrivalHistory) -> float:
    return recurring_burst_level(load, lambda each: each.requests / each.seconds, 1_800.0, 0.2, _SETTINGS)


def test_requests_that_come_in_clumps_are_bursts_before_there_was_a_second_one() -> None:
    clumps = _counted([60.0, 2.0, 45.0, 4.0, 90.0, 3.0, 30.0, 30.0])
    assert _bursts(clumps) > 2.0 * 204.0 / 30.0  # more than twice the half minute that was seen
    even = _counted([33.0, 35.0, 31.0, 36.0, 34.0, 35.0, 30.0, 30.0])
    assert _bursts(even) == 0.0


def _binned(counts: list[float]) -> ArrivalHistory:
    return _counted([count / 6.0 for count in [*counts, counts[-1]] for _ in range(6)])


def _few(load: ArrivalHistory) -> float:
    """Returns ``_bursts`` with two replica-seconds a request."""
    return recurring_burst_level(load, lambda each: 2.0 * each.requests / each.seconds, 1_800.0, 2.0, _SETTINGS)


def test_one_small_bin_between_two_large_ones_is_no_gap_between_bursts() -> None:
    assert _few(_binned([140.0, 199.0, 150.0, 85.0, 145.0, 190.0, 150.0])) == 0.0
    assert _few(_binned([140.0, 199.0, 150.0, 20.0, 145.0, 190.0, 150.0])) > 190.0 / 15.0


def test_a_tick_that_comes_now_says_nothing_of_clumps() -> None:
    even = [33.0, 35.0, 31.0, 36.0, 34.0, 35.0]
    assert _counted([*even, 500.0]).burstiness == _counted([*even, 34.0]).burstiness


def test_the_more_bursts_were_seen_the_less_room_is_kept_above_them() -> None:
    minute = [60.0, 2.0, 45.0, 4.0, 90.0, 3.0] + [0.0] * 6
    few, many = _bursts(_counted([*minute, 0.0])), _bursts(_counted([*minute * 10, 0.0]))
    assert few > 1.5 * many > 1.5 * 204.0 / 30.0


def test_one_burst_much_above_all_others_is_not_kept_room_for_as_a_whole() -> None:
    minute = [60.0, 2.0, 45.0, 4.0, 90.0, 3.0] + [0.0] * 6
    usual = _bursts(_counted([*minute * 12, 0.0]))
    once = _bursts(_counted([*minute * 6, *[3.0 * each for each in minute], *minute * 5, 0.0]))
    assert usual < once < 3.0 * usual


def test_a_look_in_which_nothing_was_generated_says_nothing_of_speed() -> None:
    known = EngineSpeed(30.0, 20.0)
    assert update_engine_speed(known, (), _POOL, 5.0) == known
    assert update_engine_speed(known, (TokenGapSample(0.0, 500.0, 0.0, 0.0),), _POOL, 5.0) == known


_PARTIAL_POOL = PoolSpec(
    "main",
    minimum=0,
    maximum=60,
    profile=SMALL_ENGINE,
    startup_p50_seconds=120.0,
    startup_p90_seconds=250.0,
)
_MODEL = ModelSpec("chat", 3.0, 0.15, (_PARTIAL_POOL,), ttft_bounds=(1.0, 3.0), itl_bounds=(0.05, 0.15))
_REQUESTS, _PROMPT, _OUTPUT, _GAP = 30.0, 1_000.0, 200.0, 0.05
_SIGNALS = [
    "running",
    "waiting",
    "kv_share",
    "prompt_tokens",
    "generated_tokens",
    "itl_seconds",
    "finished",
    "first_tokens",
    "ttft_seconds",
    "ttft_counts",
    "itl_counts",
]


_WRONG = (None, math.nan, -1.0)


class Steady:
    """Six requests a second on the planned replicas, the same at every tick of five seconds."""

    def __init__(self) -> None:
        self.core, self.now, self.replicas = ScalingCore(_MODEL), 0.0, 8

    def step(
        self, requests: float = _REQUESTS, counted: float | None = 1.0, longer: float = 1.0, **signals: Any
    ) -> PoolPlan:
        """Returns the plan after a tick.

        counted: the gateways' counts, as a factor of the arrivals; None if they are missing.
        longer: the length of prompts, as a factor.
        signals: values that replicas report instead of their own; None if one is missing.
        """
        self.now += 5.0
        each = requests / self.replicas
        running = each / 5.0 * _OUTPUT * _GAP
        seen = ReplicaMetrics(
            "r",
            ReplicaState.READY,
            self.now + 500.0,
            120.0,
            running=running,
            waiting=0.0,
            kv_share=min(1.0, running * (_PROMPT + _OUTPUT / 2) / SMALL_ENGINE.kv_tokens),
            prompt_tokens=each * _PROMPT,
            generated_tokens=each * _OUTPUT,
            itl_seconds=each * _OUTPUT * _GAP,
            finished=each,
            first_tokens=each,
            ttft_seconds=each * 0.5,
            ttft_counts=(each, 0.0, 0.0),
            itl_counts=(0.0, each * _OUTPUT, 0.0),
        )
        replicas = tuple([replace(seen, id=f"r{index}", **signals) for index in range(self.replicas)])
        pool = PoolObservation(self.replicas, self.replicas, replicas=None if counted is None else replicas)
        gateway = None if counted is None else GatewayTraffic(requests * counted, requests * counted * longer * _PROMPT)
        plan = self.core.step(Observation(self.now, gateway, {"main": pool})).pools["main"]
        self.replicas = plan.replicas
        return plan


@cache
def settled_core() -> Steady:
    """After ten minutes with all signals. To be copied, not stepped."""
    steady = Steady()
    for _ in range(120):
        steady.step()
    return steady


@cache
def with_all_signals() -> tuple[int, ...]:
    """Returns the replicas of the ten minutes that follow (five in `make test`), if no signal is
    missing.
    """
    whole = copy.deepcopy(settled_core())
    return tuple(whole.step().replicas for _ in range(shortened(120, 60)))


@pytest.mark.parametrize(("signal", "wrong"), shortened([*product(_SIGNALS, _WRONG)], [*zip(_SIGNALS, cycle(_WRONG))]))
def test_a_signal_that_is_missing_alone_moves_nothing(signal: str, wrong: float | None) -> None:
    steady = copy.deepcopy(settled_core())
    had = steady.replicas
    value: Any = (wrong, wrong, wrong) if signal.endswith("counts") and wrong is not None else wrong
    for whole in with_all_signals():
        assert whole <= steady.step(**{signal: value}).replicas <= had


@pytest.mark.parametrize("signal", ["running", "waiting"])
def test_nothing_goes_to_zero_while_nobody_knows_what_is_in_flight(signal: str) -> None:
    steady, silent = Steady(), Steady()
    unknown: dict[str, Any] = {signal: None}
    for _ in range(60):
        steady.step()
        silent.step()
    ticks = 0
    while silent.replicas and ticks < 1_200:
        silent.step(0.0)
        ticks += 1
    assert silent.replicas == 0
    for _ in range(2 * ticks):
        steady.step(0.0, **unknown)
    assert steady.replicas == 1


@pytest.mark.parametrize("missed", [1, 3, 60])
def test_what_was_counted_while_nobody_looked_is_no_burst(missed: int) -> None:
    steady, none = copy.deepcopy(settled_core()), copy.deepcopy(settled_core())
    for _ in range(missed):
        steady.step(counted=None)
        none.step(counted=None)
    had = steady.replicas
    steady.step(counted=missed + 1.0)
    none.step()
    for _ in range(24):
        assert steady.step().replicas == none.step().replicas == had


def test_more_that_really_comes_after_such_a_time_is_seen_with_the_second_look() -> None:
    steady = copy.deepcopy(settled_core())
    for _ in range(12):
        steady.step(counted=None)
    steady.step(3.0 * _REQUESTS)
    inputs = steady.step(3.0 * _REQUESTS).inputs
    level, capacity = inputs["level_replicas"].value, inputs["capacity_requests_per_second"].value
    assert level is not None
    assert capacity is not None
    assert level * capacity == pytest.approx(3.0 * _REQUESTS / 5.0, rel=0.05)


@pytest.mark.parametrize(("served", "slow"), [(2.0, False), (500.0, True)])
def test_gaps_of_who_has_only_just_begun_say_nothing_of_how_fast_engines_are(served: float, slow: bool) -> None:
    steady = copy.deepcopy(settled_core())
    before = steady.step()
    for _ in range(3):  # as when all that was held for a replica is computed at once
        after = steady.step(age_seconds=120.0 + served, itl_seconds=_REQUESTS / steady.replicas * _OUTPUT * 3 * _GAP)
    known = before.inputs["speed_factor"].value, after.inputs["speed_factor"].value
    assert known[0] is not None
    assert known[1] is not None
    assert (known[1] > 1.5 * known[0]) is slow


def test_prompts_longer_than_the_kv_cache_are_ignored_as_a_miscount() -> None:
    steady = copy.deepcopy(settled_core())
    had = steady.replicas
    steady.step(longer=1e5)
    assert {steady.step().replicas for _ in range(60)} == {had}
