"""The plan of one pool: stabilization, reserves before a scale-down, hedged starts, and reasons."""

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

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
from fairlead_autoscaler.core.sizing.replica_count import PoolDemand, Rule, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow, add_need, cap_newest_need, keep_recent
from fairlead_autoscaler.core.state import PoolMemory

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


def _planned(
    there: int, needed: float, capacity_after: float = 1.0, *, ready: int | None = None, shares_limit: bool = False
) -> tuple[int, str]:
    """Returns the number and rule of a pool of so many replicas that needs these.

    ready: of those that are there; None: all.
    """
    target = -int(-needed // 1)
    demand = PoolDemand(target, needed, False, False, False, (120.0, 250.0), capacity_after, {}, "TPOT target")
    demand = replace(demand, shares_limit=shares_limit)
    planner = StatelessPoolPlanner(
        PoolMemory(),
        PoolObservation(there, there if ready is None else ready, replicas=()),
        SignalDoubt(None, None, False),
        (1, 60),
        1_000.0,
        ScalingSettings(),
    )
    plan = planner.next_memory_and_plan(demand)[1]
    return plan.replicas, plan.rule


@pytest.mark.parametrize(
    ("needed", "replicas", "rule"),
    [
        (5.35, 6, Rule.DOWN),
        (5.45, 7, Rule.DOWN),
        (6.35, 7, Rule.DOWN),
        (6.45, 8, Rule.WHAT_IF),
        (7.2, 8, Rule.ENOUGH),
    ],
)
def test_six_tenths_of_a_replica_must_be_left_after_a_step_down(needed: float, replicas: int, rule: Rule) -> None:
    assert _planned(8, needed) == (replicas, rule)


def test_the_last_step_needs_no_room() -> None:
    assert _planned(2, 0.9) == (1, Rule.DOWN)


def test_caches_that_go_count_before_the_room() -> None:
    assert _planned(8, 6.0, 0.95) == (7, Rule.DOWN)
    assert _planned(8, 6.0, 0.90) == (8, Rule.WHAT_IF)


@pytest.mark.parametrize(
    ("ready", "replicas", "rule"),
    [
        (7, 8, Rule.STARTING),
        (6, 8, Rule.STARTING),
        (8, 7, Rule.DOWN),
    ],
)
def test_the_last_start_is_finished_if_one_replica_fewer_is_needed(ready: int, replicas: int, rule: Rule) -> None:
    assert _planned(8, 6.3, ready=ready) == (replicas, rule)


def test_starts_are_cancelled_if_fewer_than_are_ready_or_two_fewer_are_needed() -> None:
    assert _planned(8, 5.3, ready=7) == (6, Rule.DOWN)
    assert _planned(8, 5.3, ready=6) == (6, Rule.DOWN)


def test_the_last_start_is_cancelled_where_another_group_may_need_the_replica() -> None:
    assert _planned(8, 6.3, ready=7, shares_limit=True) == (7, Rule.DOWN)


_UNEQUAL, _EQUAL = (120.0, 250.0), (10.0, 10.0)


def _plan(
    missing: int,
    *,
    urgent: bool = True,
    overloaded: bool = False,
    starts: tuple[float, float] = _UNEQUAL,
    most: int = 60,
    blind_seconds: float | None = None,
) -> PoolPlan:
    """Returns the plan of a pool of ten that needs so many more."""
    wanted = PoolDemand(10 + missing, 10.0 + missing, urgent, overloaded, False, starts, 1.0, {}, "batch")
    doubt = SignalDoubt(blind_seconds, None, False)
    observed = PoolObservation(10, 10, replicas=())
    return StatelessPoolPlanner(PoolMemory(), observed, doubt, (1, most), 0.0, ScalingSettings()).next_memory_and_plan(
        wanted
    )[1]


@pytest.mark.parametrize(
    ("missing", "overloaded", "beside"), [(1, False, 0), (2, False, 2), (4, False, 4), (1, True, 0), (4, True, 8)]
)
def test_the_more_is_missing_the_more_are_started_beside(missing: int, overloaded: bool, beside: int) -> None:
    plan = _plan(missing, overloaded=overloaded)
    assert plan.replicas == 10 + missing + beside
    assert plan.rule == ("hedged" if beside else "up")


def test_where_starts_take_all_the_same_time_none_is_started_beside() -> None:
    assert _plan(4, overloaded=True, starts=_EQUAL).replicas == 14
    assert _plan(4, urgent=False, starts=_EQUAL, blind_seconds=60.0).replicas == 14


def test_no_more_are_started_beside_than_there_may_be() -> None:
    assert _plan(4, overloaded=True, most=16).replicas == 16


def test_without_metrics_a_rise_is_hedged_whether_requests_wait_or_not() -> None:
    plan = _plan(3, urgent=False, blind_seconds=60.0)
    assert (plan.replicas, plan.rule) == (16, "metrics-missing-up")
    assert _plan(3, urgent=False, blind_seconds=55.0).replicas == 10


def _wanted(needed: float) -> PoolDemand:
    return PoolDemand(3, needed, False, False, False, (120.0, 250.0), 1.0, {}, "KV memory")


@pytest.mark.parametrize(
    ("needed", "reason"),
    [
        (2.4, "2.40 are needed, limited by KV memory"),
        (2.003, "2.003 are needed, limited by KV memory"),  # and not 2.00, of which two would do
        (2.0000001, "2.00 are needed, limited by KV memory"),
        (0.001, "almost none are needed"),
    ],
)
def test_what_is_needed_explains_the_number(needed: float, reason: str) -> None:
    assert _wanted(needed).need_reason == reason


@pytest.mark.parametrize("page", ["concepts/autoscaling.md", "how-to/capacity-and-cost.md"])
def test_pages_quote_the_reason_as_it_is(page: str) -> None:
    text = (Path(__file__).resolve().parents[4] / "docs" / page).read_text(encoding="utf-8")
    assert f"planned: 6, by the rule enough: {_wanted(5.24).need_reason}\n" in text
    assert "`limited by KV memory`" in text
