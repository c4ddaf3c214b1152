"""Replicas that sleep instead of ending: their number, the order of waking, and no loss without a
tier.
"""

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_autoscaler.core import (
    CoreState,
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    Rule,
    ScalingCore,
    ScalingSettings,
    SleepTier,
    WakeTiming,
)
from fairlead_autoscaler.core.state import decode_state, encode_state
from fairlead_autoscaler.core.workload.idle_gaps import IdleGaps
from fairlead_testing.autoscaler.control_loop import SMALL_ENGINE
from fairlead_testing.pytest_hooks.nightly import shortened

_START, _WAKE = 120.0, 10.0


def model_of(tier: SleepTier | None, minimum: int = 0, maximum: int = 20, together: int | None = None) -> ModelSpec:
    """Returns a model with one pool whose replicas start in two minutes and wake in ten seconds."""
    pool = PoolSpec("main", minimum=minimum, maximum=maximum, profile=SMALL_ENGINE, tier=tier)
    pool = replace(pool, startup_p50_seconds=_START, startup_p90_seconds=_START)
    return ModelSpec("chat", 15.0, 0.15, (pool,), replicas_most=together)


class SleepingPool:
    """The pods of a plan. Sleepers wake before new pods start, and pods sleep before others end.

    awake, asleep: the times at which each is ready. Requests take a tick.
    """

    def __init__(self, model: ModelSpec, awake: int, asleep: int = 0) -> None:
        self.core = ScalingCore(model)
        self.now = 0.0
        self.awake = [-1.0] * awake
        self.asleep = [-1.0] * asleep
        self.running: dict[str, float] = {}

    def tick(self, requests: float | None) -> PoolPlan:
        """Runs five seconds with so many requests; None if the metrics are missing."""
        self.now += 5.0
        plan = self.core.step(self.observation(requests)).pools["main"]
        self.follow(plan)
        return plan

    def observation(self, requests: float | None) -> Observation:
        """Returns the present state of the pool."""
        ready = [at for at in self.awake if at <= self.now]
        share = 0.0 if requests is None else requests / max(1, len(ready))
        traffic = None if requests is None else GatewayTraffic(requests, requests * 900.0)
        names = [f"r{index}" for index in range(len(ready))]
        replicas = tuple(_busy(name, share, self.running.get(name, 0.0)) for name in names)
        self.running = dict.fromkeys(names, share)
        seen = PoolObservation(
            len(self.awake),
            len(ready),
            len(self.awake) - len(ready),
            asleep_desired=len(self.asleep),
            asleep=len([at for at in self.asleep if at <= self.now]),
            replicas=None if requests is None else replicas,
        )
        return Observation(self.now, traffic, {"main": seen})

    def follow(self, plan: PoolPlan) -> None:
        """Makes the pods as planned."""
        while len(self.awake) < plan.replicas and self.asleep:
            self.awake.append(max(self.asleep.pop(0), self.now) + _WAKE)
        self.awake.sort()
        while len(self.awake) > plan.replicas:
            left = self.awake.pop()
            if len(self.asleep) < plan.asleep:
                self.asleep.append(left)
        self.asleep = sorted(self.asleep)[: plan.asleep]
        self.awake += [self.now + _START] * (plan.replicas - len(self.awake))
        self.asleep += [self.now + _START] * (plan.asleep - len(self.asleep))


def _busy(name: str, share: float, finished: float) -> ReplicaMetrics:
    tokens = finished * 200.0
    return ReplicaMetrics(
        name,
        ReplicaState.READY,
        500.0,
        running=share,
        waiting=0.0,
        kv_share=0.3,
        prompt_tokens=share * 900.0,
        generated_tokens=tokens,
        itl_seconds=tokens * 0.06,
        finished=finished,
        first_tokens=share,
    )


def run(beds: SleepingPool, requests: float | None, ticks: int) -> Iterator[PoolPlan]:
    """Yields the plans of so many ticks with so many requests each."""
    for _ in range(ticks):
        yield beds.tick(requests)


def last(beds: SleepingPool, requests: float | None, ticks: int) -> PoolPlan:
    """Returns the last of these plans."""
    *_, plan = run(beds, requests, ticks)
    return plan


def test_who_is_not_needed_sleeps_and_is_woken_before_anybody_starts() -> None:
    beds = SleepingPool(model_of(SleepTier(4, wake_seconds=_WAKE), minimum=1), 6)
    busy = last(beds, 30.0, 60)
    idle = last(beds, 5.0, 60)
    assert idle.replicas < busy.replicas
    assert idle.asleep >= 1
    assert all(at <= beds.now for at in beds.asleep)
    plans = list(run(beds, 30.0, 6))
    woken = next(plan for plan in plans if plan.replicas > idle.replicas)
    assert "wake, in 10 s" in woken.reason
    soon = [at for at in beds.awake if at <= beds.now + _WAKE]
    assert len(soon) == idle.replicas + idle.asleep, (
        "all that slept are woken, and only what is missing then is started"
    )


def test_without_a_tier_nobody_sleeps_and_nothing_else_changes() -> None:
    without, none = SleepingPool(model_of(None), 6), SleepingPool(model_of(SleepTier(0)), 6)
    for requests in (30.0, 5.0, 0.0, 40.0):
        for plan, other in zip(run(without, requests, 40), run(none, requests, 40), strict=True):
            assert plan.asleep == other.asleep == 0
            assert plan.replicas == other.replicas


def test_as_many_as_the_floor_says_sleep_also_where_nothing_was_ever_asked() -> None:
    beds = SleepingPool(model_of(SleepTier(3, least=2)), 0)
    plan, *_ = run(beds, 0.0, 3)
    assert (plan.replicas, plan.asleep, plan.rule) == (0, 2, Rule.ASLEEP)
    assert "2 fall asleep" in plan.reason


def test_a_tier_costs_nobody_his_turn_where_accelerators_are_counted() -> None:
    beds = SleepingPool(model_of(SleepTier(4, least=4), minimum=1, together=5), 5)
    for requests in (30.0, 2.0):
        for plan in run(beds, requests, 160):
            assert plan.replicas + plan.asleep <= 5
    assert plan.asleep == 4


def test_the_last_sleepers_end_when_all_idle_gaps_outlast_the_break_even() -> None:
    model = model_of(SleepTier(2, wake_seconds=_WAKE))
    known, young = SleepingPool(model, 1), SleepingPool(model, 1)
    known.core = ScalingCore(model, state=CoreState(silence=IdleGaps(gaps=(14_400.0,) * 4)))  # four hours each
    last(known, 3.0, 120)
    slept = [plan.asleep for plan in run(known, 0.0, 600)]
    assert max(slept) >= 1
    assert slept[-1] == 0, "within fifty minutes"
    last(young, 3.0, 120)
    assert last(young, 0.0, 600).asleep >= 1, "who has no history sleeps on for as long as that is worth"


def test_after_says_when_the_last_one_ends() -> None:
    beds = SleepingPool(model_of(SleepTier(2, after_seconds=900.0, wake_seconds=_WAKE)), 1)
    last(beds, 3.0, 60)
    slept = [plan.asleep for plan in run(beds, 0.0, 300)]
    assert max(slept) >= 1
    assert slept[-1] == 0
    assert 800.0 <= 5.0 * len([count for count in slept if count]) <= 1_200.0


def test_wakings_are_learned_by_their_level_each_once_and_kept_with_the_state() -> None:
    model = model_of(SleepTier(2, level=2))
    core = ScalingCore(model)
    seen = PoolObservation(1, 1, replicas=(replace(_busy("r0", 1.0, 1.0), woken=WakeTiming(2, 1, 20.0)),))
    for tick in range(3):
        plan = core.step(Observation(5.0 * tick, GatewayTraffic(1.0, 900.0), {"main": seen})).pools["main"]
    assert list(core.state.pools["main"].wakes["2"].seconds) == [20.0]
    assert plan.inputs["wake_seconds"].value == 20.0
    again = replace(seen, replicas=(replace(_busy("r0", 1.0, 1.0), woken=WakeTiming(2, 2, 24.0)),))
    core.step(Observation(15.0, GatewayTraffic(1.0, 900.0), {"main": again}))
    assert list(core.state.pools["main"].wakes["2"].seconds) == [20.0, 24.0]
    assert decode_state(encode_state(core.state)) == core.state


def test_frozen_means_the_sleeping_too() -> None:
    model = model_of(SleepTier(4, least=4))
    core = ScalingCore(model, ScalingSettings(freeze=True), CoreState())
    plan = core.step(
        Observation(0.0, GatewayTraffic(9.0, 900.0), {"main": PoolObservation(1, 1, asleep_desired=1, asleep=1)})
    )
    assert (plan.pools["main"].replicas, plan.pools["main"].asleep) == (1, 1)


MINUTES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 60), st.sampled_from(["there", "there", "there", "missing"])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=shortened(settings.default.max_examples, 10))
@given(MINUTES, st.integers(0, 3), st.integers(3, 24), st.integers(0, 4), st.integers(0, 8), st.integers(0, 6))
def test_bounds_hold_for_both_together_and_doubt_or_a_restart_ends_nobody(
    minutes: list[tuple[int, int, str]], minimum: int, maximum: int, least: int, more: int, awake: int
) -> None:
    tier = SleepTier(max(1, least + more), least=least, wake_seconds=_WAKE)
    beds = SleepingPool(model_of(tier, minimum, maximum), min(max(awake, minimum), maximum))
    for ticks, requests, signals in minutes:
        for _ in range(ticks):
            had, served = len(beds.awake) + len(beds.asleep), len(beds.awake)
            plan = beds.tick(float(requests) if signals == "there" else None)
            assert minimum <= plan.replicas <= maximum
            assert min(least, maximum - plan.replicas) <= plan.asleep <= tier.most
            assert plan.replicas + plan.asleep <= maximum
            if signals == "missing" or beds.now < 120.0:
                assert plan.replicas >= served, plan
                assert plan.replicas + plan.asleep >= had, plan
