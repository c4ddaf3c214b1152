"""The model's policy is applied over the plan of the core."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    ModelSpec,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingPlan,
    SleepTier,
)
from fairlead_autoscaler.scaling_policy import (
    EnforcedPlan,
    Moment,
    PolicyState,
    enforce,
    has_requests,
    step_size,
    update_policy_state,
    with_widest_bounds,
)
from fairlead_autoscaler.target import ModelState, PoolState

WALL = 1_800_000_000.0  # a Friday, 08:00 UTC
AUTO: dict[str, Any] = {"mode": "Auto"}


def state(
    desired: int, *, least: int = 0, most: int = 10, policy: dict[str, Any] | None = None, **pool: Any
) -> ModelState:
    model = ModelSpec("default/tiny", 2.0, None, (PoolSpec("main", minimum=least, maximum=most),))
    return ModelState(model, Autoscaling(**(policy or AUTO)), {"main": PoolState(desired, **pool)})


def ruled(
    now_is: ModelState,
    replicas: int | None,
    *,
    watch: PolicyState | None = None,
    now: float = 1_000.0,
    woken: bool = False,
    frozen: bool = False,
    asleep: int = 0,
) -> EnforcedPlan:
    plan = ScalingPlan(
        {} if replicas is None else {"main": PoolPlan(replicas, "need", "as the load needs", asleep=asleep)}
    )
    seen = watch or update_policy_state(PolicyState(), now_is, 0.0, has_requests=True)
    return enforce(seen, now_is, plan, Moment(now, WALL, woken, frozen))["main"]


def test_a_plan_within_all_wishes_is_written_with_its_own_reason() -> None:
    ruling = ruled(state(2), 5)
    assert ruling == EnforcedPlan(5, 2, "need", "as the load needs", 5, bounds=(0, 10))
    assert ruling.needs_write


def test_what_is_as_it_should_be_is_not_written_and_no_plan_leaves_everything() -> None:
    assert not ruled(state(5), 5).needs_write
    ruling = ruled(state(3), None)
    assert (ruling.replicas, ruling.rule, ruling.needs_write) == (3, "no-plan", False)


def test_bounds_hold_whatever_was_planned_and_say_so() -> None:
    assert ruled(state(2, least=1, most=4), 9).replicas == 4
    ruling = ruled(state(2, least=1, most=4), 0)
    assert (ruling.replicas, ruling.rule, ruling.planned) == (1, "bounds", 0)
    assert "as the load needs" in ruling.reason


def test_bounds_are_those_of_the_hour() -> None:
    schedule = {"name": "early", "begin": "07:00", "end": "09:00", "minReplicas": 4}
    policy = AUTO | {"schedules": [schedule]}
    assert ruled(state(1, least=1, most=8, policy=policy), 1).replicas == 4
    later = AUTO | {"schedules": [schedule | {"begin": "09:00", "end": "10:00"}]}
    assert ruled(state(1, least=1, most=8, policy=later), 1).replicas == 1


def test_no_more_than_a_step_within_a_minute_up_and_down() -> None:
    policy = AUTO | {"step_up": 2, "step_down": "50%"}
    assert ruled(state(3, policy=policy), 9).replicas == 5
    grown = PolicyState({"main": ((990.0, 3), (995.0, 5))}, 990.0)
    assert ruled(state(5, policy=policy), 9, watch=grown).replicas == 5
    assert ruled(state(4, policy=policy), 1).replicas == 2
    shrunk = PolicyState({"main": ((990.0, 4), (995.0, 2))}, 990.0)
    assert ruled(state(2, policy=policy), 1, watch=shrunk).replicas == 2


def test_a_step_never_turns_a_direction_round() -> None:
    policy = AUTO | {"step_up": 1, "step_down": 1}
    jumped = PolicyState({"main": ((990.0, 2), (995.0, 8))}, 990.0)  # another writer raised it
    assert ruled(state(8, policy=policy), 9, watch=jumped).replicas == 8


def test_the_numbers_of_the_last_minute_are_kept_and_older_ones_forgotten() -> None:
    seen = update_policy_state(
        PolicyState({"main": ((930.0, 9), (950.0, 3))}, 950.0), state(4), 1_000.0, has_requests=False
    )
    assert seen == PolicyState({"main": ((950.0, 3), (1_000.0, 4))}, 950.0)
    assert update_policy_state(seen, state(4), 1_001.0, has_requests=True).last_request_at == 1_001.0


def test_to_zero_only_after_the_silence_that_was_asked_for() -> None:
    policy = AUTO | {"zero": {"after": "5m"}}
    quiet = PolicyState({}, 1_000.0)
    soon = ruled(state(2, policy=policy), 0, watch=quiet, now=1_299.0)
    assert (soon.replicas, soon.rule) == (1, "zero-after")
    assert ruled(state(2, policy=policy), 0, watch=quiet, now=1_300.0).replicas == 0
    assert ruled(state(0, policy=policy), 0, watch=quiet, now=1_001.0).replicas == 0


def test_the_one_that_is_kept_for_a_while_sleeps_where_it_may() -> None:
    facts = PoolSpec("main", minimum=0, maximum=10, tier=SleepTier(most=1))
    policy = Autoscaling(**AUTO, zero={"after": "5m"})
    now_is = ModelState(ModelSpec("default/tiny", 2.0, None, (facts,)), policy, {"main": PoolState(2)})
    plan = ScalingPlan({"main": PoolPlan(0, "zero", "silent")})
    for silent, asleep in ((299.0, 1), (300.0, 0)):
        ruling = enforce(PolicyState({}, 1_000.0), now_is, plan, Moment(1_000.0 + silent, WALL))["main"]
        assert (ruling.replicas, ruling.asleep) == (0, asleep)


def test_a_held_request_starts_one_where_there_is_none_and_only_there() -> None:
    ruling = ruled(state(0), 0, woken=True)
    assert (ruling.replicas, ruling.rule) == (1, "wake")
    assert ruling.reason == "a request is queued and there is no replica"
    lately = ruled(state(1), 0, woken=True)
    assert (lately.replicas, lately.rule) == (1, "wake")
    assert lately.reason == "a request was queued within the last 30 s, for which this one was woken"
    assert ruled(state(0), None, woken=True).replicas == 1
    assert ruled(state(2), 2, woken=True).replicas == 2
    assert ruled(state(0), 3, woken=True).replicas == 3


def test_waking_starts_one_of_each_role_and_only_where_none_of_the_role_runs() -> None:
    facts = (
        PoolSpec("small", minimum=0, maximum=4),
        PoolSpec("large", minimum=0, maximum=4),
        PoolSpec("pre", role=Role.PREFILL, minimum=0, maximum=4),
    )
    model = ModelSpec("default/tiny", 2.0, None, facts)
    pools = {"small": PoolState(0), "large": PoolState(0), "pre": PoolState(1)}
    now_is = ModelState(model, Autoscaling(**AUTO), pools)
    rulings = enforce(PolicyState(), now_is, ScalingPlan(), Moment(0.0, WALL, is_woken=True))
    assert {name: ruling.replicas for name, ruling in rulings.items()} == {"small": 1, "large": 0, "pre": 1}


def test_of_prefill_and_decode_one_always_runs() -> None:
    facts = PoolSpec("pre", role=Role.PREFILL, minimum=0, maximum=4)
    now_is = ModelState(ModelSpec("default/tiny", 2.0, None, (facts,)), Autoscaling(**AUTO), {"pre": PoolState(2)})
    plan = ScalingPlan({"pre": PoolPlan(0, "zero", "silent")})
    ruling = enforce(PolicyState({}, 0.0), now_is, plan, Moment(1e6, WALL))["pre"]
    assert (ruling.replicas, ruling.rule) == (1, "bounds")
    assert with_widest_bounds(now_is.model, now_is.policy).pools[0].minimum == 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"policy": {"mode": "Advise"}}, "the mode is Advise"),
        ({"policy": {"mode": "Disabled"}}, "the mode is Disabled"),
        ({"replicas_owner": "an HPA"}, "an HPA sets the number"),
        ({"pause_reason": "a rollout goes on"}, "a rollout goes on"),
    ],
)
def test_what_keeps_a_number_from_being_written_is_said(more: dict[str, Any], why: str) -> None:
    ruling = ruled(state(2, **more), 5)
    assert (ruling.replicas, ruling.unwritten, ruling.needs_write) == (5, why, False)


def test_the_freeze_stops_every_write() -> None:
    assert ruled(state(2), 5, frozen=True).unwritten == "all scaling is frozen"


@pytest.mark.property
@given(
    desired=st.integers(0, 12),
    planned=st.none() | st.integers(0, 40),
    least=st.integers(0, 6),
    room=st.integers(0, 8),
    up=st.none() | st.integers(1, 5) | st.sampled_from(["1%", "50%", "100%"]),
    down=st.none() | st.integers(1, 5) | st.sampled_from(["1%", "50%", "100%"]),
    sizes=st.lists(st.integers(0, 12), max_size=6),
    woken=st.booleans(),
)
def test_never_outside_the_bounds_and_never_the_other_way(
    desired: int,
    planned: int | None,
    least: int,
    room: int,
    up: int | str | None,
    down: int | str | None,
    sizes: list[int],
    woken: bool,
) -> None:
    policy = AUTO | {"step_up": up, "step_down": down}
    now_is = state(desired, least=least, most=max(1, least + room), policy=policy)
    watch = PolicyState({"main": tuple((990.0, size) for size in sizes)}, 0.0)
    ruling = ruled(now_is, planned, watch=watch, woken=woken)
    assert least <= ruling.replicas <= max(1, least + room)
    if planned is not None and ruling.rule not in ("bounds", "wake"):
        assert (ruling.replicas - desired) * (planned - desired) >= 0


def test_the_core_plans_within_the_widest_bounds_that_there_ever_are() -> None:
    schedules = [
        {"name": "day", "begin": "08:00", "end": "20:00", "minReplicas": 4, "maxReplicas": 20},
        {"name": "night", "begin": "20:00", "end": "08:00", "maxReplicas": 2},
    ]
    now_is = state(1, least=3, most=8, policy=AUTO | {"schedules": schedules})
    pool = with_widest_bounds(now_is.model, now_is.policy).pools[0]
    assert (pool.minimum, pool.maximum) == (2, 20)


def test_a_percentage_is_of_what_there_is_and_one_at_least() -> None:
    assert [step_size(3, 10), step_size("50%", 5), step_size("10%", 1), step_size("100%", 0)] == [3, 2, 1, 1]


def test_what_is_not_known_counts_as_asked_for() -> None:
    idle = {
        "main": PoolObservation(
            1, 1, replicas=(ReplicaMetrics("a", ReplicaState.READY, 9.0, running=0.0, waiting=0.0),)
        )
    }
    assert not has_requests(idle, 0.0, 0.0)
    assert has_requests(idle, None, 0.0)
    assert has_requests(idle, 1.0, 0.0)
    assert has_requests(idle, 0.0, 1.0)
    busy = {"main": replace(idle["main"], replicas=(ReplicaMetrics("a", ReplicaState.READY, 9.0, running=1.0),))}
    assert has_requests(busy, 0.0, 0.0)


@pytest.mark.parametrize(
    ("now_is", "planned", "woken", "wanted"),
    [
        (state(0, asleep=1), (0, 1), True, (1, 0)),  # the held request wakes who sleeps
        (state(2, asleep=3, policy=AUTO | {"step_up": 2}), (5, 0), False, (4, 1)),  # who is not to serve yet sleeps on
        (
            state(1, asleep=0, policy=AUTO | {"step_up": 1}),
            (4, 1),
            False,
            (2, 0),
        ),  # and no new sleeper starts meanwhile
        (state(2, policy=AUTO | {"step_up": 2}), (5, 0), False, (4, 0)),  # and no sleeper starts for it
        (state(4, asleep=0, policy=AUTO | {"step_down": 1}), (1, 3), False, (3, 1)),
        (state(1, asleep=2, least=3), (1, 2), False, (3, 0)),
        (state(3, asleep=2, most=4), (3, 2), False, (3, 1)),
        (state(3, asleep=2), (3, 2), False, (3, 2)),
    ],
)
def test_who_is_to_serve_beyond_the_plan_is_woken_and_who_is_not_sleeps_on(
    now_is: ModelState, planned: tuple[int, int], woken: bool, wanted: tuple[int, int]
) -> None:
    ruling = ruled(now_is, planned[0], asleep=planned[1], woken=woken)
    assert (ruling.replicas, ruling.asleep) == wanted
    pool = now_is.pools["main"]
    assert ruling.needs_write is ((ruling.replicas, ruling.asleep) != (pool.desired, pool.asleep))


def test_a_replica_sleeps_at_once_and_ends_after_the_configured_silence() -> None:
    policy = AUTO | {"zero": {"after": "10m"}}
    silent = PolicyState({}, 700.0)
    ruling = ruled(state(1, policy=policy), 0, asleep=1, watch=silent)
    assert (ruling.replicas, ruling.asleep, ruling.rule) == (0, 1, "need")
    ruling = ruled(state(0, asleep=1, policy=policy), 0, watch=silent)
    assert (ruling.replicas, ruling.asleep, ruling.rule) == (0, 1, "zero-after")
    ruling = ruled(state(0, asleep=1, policy=policy), 0, watch=PolicyState({}, 300.0))
    assert (ruling.replicas, ruling.asleep) == (0, 0)
    assert not ruling.is_growing
