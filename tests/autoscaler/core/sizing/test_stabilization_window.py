"""The window of needs: it keeps present replicas, and starts none that were not there."""

import copy
import math
from functools import cache

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ScalingCore,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow, add_need, cap_newest_need, keep_recent

_PROFILE = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)


class _FixedPool:
    """A pool whose number another writer sets, and a core that plans for it."""

    def __init__(self, maximum: int = 20) -> None:
        pool = PoolSpec("main", minimum=1, maximum=maximum, profile=_PROFILE, startup_p50_seconds=30.0)
        self.core, self.now = ScalingCore(ModelSpec("chat", 3.0, 0.15, (pool,))), 0.0

    def step(self, arrivals: float | None, desired: int) -> PoolPlan:
        self.now += 5.0
        seen = PoolObservation(desired, desired, replicas=())
        gateway = None if arrivals is None else GatewayTraffic(arrivals, arrivals * 900.0)
        return self.core.step(Observation(self.now, gateway, {"main": seen})).pools["main"]


def test_what_was_needed_but_not_granted_is_not_started_once_it_is_over() -> None:
    pool = _FixedPool()
    asked = [pool.step(40.0, 1).replicas for _ in range(40)]
    assert max(asked) > 5
    after = [pool.step(0.0, 1).replicas for _ in range(150)]
    assert after[70:] == [1] * 80, "a minute of bins later nothing of it is left, while the window would hold on"


def test_what_was_granted_stays_for_the_window() -> None:
    pool = _FixedPool()
    for _ in range(40):
        pool.step(40.0, 12)
    kept = [pool.step(0.0, 12).replicas for _ in range(15)]
    assert min(kept) > 5


def test_without_metrics_the_number_rises_above_the_highest_need_with_a_hedge() -> None:
    pool, there = _FixedPool(maximum=60), 8
    for arrivals in [40.0] * 60 + [20.0] * 20:
        there = pool.step(arrivals, there).replicas
    (group,) = pool.core.state.groups.values()
    needed = group.window.largest
    assert group.need is not None
    assert needed > 1.3 * group.need, "load fell, and the window still holds what it was"
    assert {pool.step(None, there).replicas for _ in range(12)} == {there}
    rises = pool.step(None, there)
    hedged = rises.inputs["hedged_replicas"].value
    assert hedged is not None
    assert rises.rule == "metrics-missing-up"
    allowance = group.need / group.recent_needs[-1][1]
    assert rises.replicas - hedged == math.ceil(1.25 * allowance * needed) > there
    assert hedged == rises.replicas - hedged - there, "as many again as are missing"
    assert pool.step(None, rises.replicas).replicas == rises.replicas


def test_more_than_there_may_be_is_told_but_not_remembered() -> None:
    pool = _FixedPool(maximum=3)
    for _ in range(40):
        plan = pool.step(500.0, 3)
    assert (plan.replicas, plan.rule) == (3, "maximum")
    needed = plan.inputs["needed_here_replicas"].value
    assert needed is not None
    assert needed > 50.0
    (group,) = pool.core.state.groups.values()
    assert group.window.largest == 3.0


def test_only_the_newest_need_is_cut() -> None:
    window = add_need(add_need(NeedWindow(), 0.0, 5.0, 300.0), 5.0, 4.0, 300.0)
    assert cap_newest_need(window, 2.0).needs == ((0.0, 5.0), (5.0, 2.0))
    assert cap_newest_need(window, 4.0) is window
    assert cap_newest_need(NeedWindow(), 0.0).needs == ()


def test_only_needs_of_the_last_minute_are_recent() -> None:
    recent: tuple[tuple[float, float], ...] = ()
    for tick in range(30):
        recent = keep_recent(recent, 5.0 * tick, float(tick), ScalingSettings())
    assert recent == tuple((5.0 * tick, float(tick)) for tick in range(18, 30))


@cache
def _usual_pool() -> _FixedPool:
    """Returns a pool after 200 ticks of the same load. To be copied, not stepped."""
    pool = _FixedPool()
    for _ in range(200):
        pool.step(20.0, 20)
    return pool


def _kept_after(high_ticks: int) -> list[float]:
    """Returns the remembered need at each tick of the minute after so many ticks of more load."""
    pool = copy.deepcopy(_usual_pool())
    kept = []
    for tick, arrivals in enumerate([40.0] * high_ticks + [20.0] * 12):
        pool.step(arrivals, 20)
        (group,) = pool.core.state.groups.values()
        if tick >= high_ticks:
            kept.append(group.window.largest)
    return kept


def test_a_need_of_less_than_a_minute_acts_at_once_but_is_not_remembered() -> None:
    pool = _FixedPool()
    usual = [pool.step(20.0, 6).replicas for _ in range(200)][-1]
    rises = [pool.step(60.0, 6).replicas for _ in range(6)]
    assert max(rises) > usual
    (group,) = pool.core.state.groups.values()
    assert group.need is not None
    assert group.window.largest < 0.8 * group.need
    assert max(_kept_after(6)) < 0.8 * min(_kept_after(40))


def test_the_least_of_a_minute_has_lasted_and_is_remembered() -> None:
    pool = copy.deepcopy(_usual_pool())
    needs = []
    for _ in range(40):
        pool.step(40.0, 20)
        (group,) = pool.core.state.groups.values()
        assert group.need is not None
        needs.append(group.recent_needs[-1][1])
        assert needs[-1] < group.need, "the window keeps the need without the error of the forecast"
        assert group.window.needs[-1][1] == min(need for _, need in group.recent_needs)
    assert group.window.largest >= min(needs[-12:])
