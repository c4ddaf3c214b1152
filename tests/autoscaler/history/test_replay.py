"""A recording is decided on again, by the recorded settings alike, by others otherwise."""

from dataclasses import replace
from functools import cache

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead_autoscaler.core import (
    GatewayTraffic,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    ScalingSettings,
    ShapeCount,
)
from fairlead_autoscaler.history.recorder import TickRecord, decode_record, encode_record
from fairlead_autoscaler.history.replay import SettingChanges, parse_changes, replay
from fairlead_sim.autoscaling.reference_pools import large_profile, small_profile

MODEL = ModelSpec(
    "default/tiny",
    2.0,
    0.2,
    (PoolSpec("main", maximum=20, profile=builtin_profile("l4-qwen8b")),),
    ttft_bounds=(2.0,),
    itl_bounds=(0.2,),
)


@cache
def recorded(ticks: int, state_every: int = 1) -> list[TickRecord]:
    """Returns the records of a load that doubles in the middle; plans are fulfilled at once."""
    core, desired, looks = ScalingCore(MODEL), 2, []
    for tick in range(ticks):
        requests = 5.0 if tick < ticks // 2 else 10.0
        share = requests / desired
        replicas = tuple(
            ReplicaMetrics(
                f"r{n}",
                ReplicaState.READY,
                500.0,
                20.0,
                4.0,
                0.0,
                0.2,
                500 * share,
                100 * share,
                8.0 * share,
                share,
                share,
            )
            for n in range(desired)
        )
        seen = Observation(
            5.0 * tick,
            GatewayTraffic(requests, 500 * requests),
            {"main": PoolObservation(desired, desired, replicas=replicas)},
        )
        before = core.state if tick % state_every == 0 else None
        plan = core.step(seen)
        looks.append(decode_record(encode_record(TickRecord(1e9 + 5.0 * tick, MODEL, seen, plan, before=before))))
        desired = plan.pools["main"].replicas
    return looks


def test_the_recorded_settings_decide_as_they_did_also_through_json() -> None:
    (one,) = replay(recorded(150), SettingChanges())
    assert (one.model, one.pool, one.has_state, one.deviations) == ("default/tiny", "main", True, 0)
    assert len(one.moments) == 150
    assert one.differences() == []
    assert one.mean_need("again") == one.mean_need("other") == one.mean_need("recorded")


def test_a_window_in_the_middle_begins_with_what_the_core_knew_then() -> None:
    looks = recorded(150, state_every=60)[50:]
    (one,) = replay(looks, SettingChanges())
    assert one.has_state
    assert one.moments[0].wall == looks[10].wall
    assert one.deviations == 0


MIXED = replace(
    MODEL,
    pools=(
        PoolSpec("S", maximum=30, profile=small_profile()),
        PoolSpec("L", cost_per_hour=3.7, minimum=0, maximum=9, profile=large_profile()),
    ),
)


@cache
def mixed(ticks: int) -> list[TickRecord]:
    """Returns the records of two pools under a steady load.

    A solver wants one large and one small replica, and replies three ticks after the query.
    """
    core, there, looks, answers = ScalingCore(MIXED), {"S": 9, "L": 0}, [], dict[int, dict[str, MixResult]]()
    for tick in range(ticks):
        seen = Observation(
            5.0 * tick,
            GatewayTraffic(40.0, 40_000.0),
            {name: PoolObservation(count, count, replicas=()) for name, count in there.items()},
            shapes=(ShapeCount(1_000.0, 200.0, 45.0), ShapeCount(200.0, 400.0, 5.0)),
            mixes=answers.get(tick, {}),
        )
        before = core.state if tick % 36 == 0 else None
        plan = core.step(seen)
        answers[tick + 3] = {role: MixResult(one.at, {"S": 1, "L": 1}, "milp") for role, one in plan.asks.items()}
        looks.append(decode_record(encode_record(TickRecord(1e9 + 5.0 * tick, MIXED, seen, plan, before=before))))
        there = {name: one.replicas for name, one in plan.pools.items()}
    return looks


def nobody(asked: MixRequest) -> MixResult:
    raise AssertionError(asked)


def test_a_mix_that_was_asked_for_is_replayed_with_the_answer_that_came_then() -> None:
    looks = mixed(160)
    assert sum(bool(look.plan.asks) for look in looks) == 3
    whole = replay(looks, SettingChanges(), nobody)
    from_an_open_question = replay(looks[36:], SettingChanges(), nobody)
    assert {one.deviations for one in (*whole, *from_an_open_question)} == {0}
    large_ones = next(one for one in whole if one.pool == "L")
    assert large_ones.moments[-1].reproduced.inputs["mix_replicas"].value == 1.0


def test_a_mix_that_was_not_asked_for_is_solved_and_told_at_the_next_look() -> None:
    def one_more(asked: MixRequest) -> MixResult:
        return MixResult(asked.at, {"S": 1, "L": 2}, "milp")

    looks = [replace(look, observation=replace(look.observation, mixes={})) for look in mixed(160)]
    changes = parse_changes(["target=0.9"])
    large_ones = next(one for one in replay(looks, changes, one_more) if one.pool == "L")
    assert large_ones.moments[-1].changed.inputs["mix_replicas"].value == 2.0
    unanswered = next(one for one in replay(looks, changes) if one.pool == "L")
    assert "mix_replicas" not in unanswered.moments[-1].changed.inputs


def test_without_what_it_knew_it_begins_anew_and_says_so() -> None:
    (one,) = replay([replace(look, before=None) for look in recorded(30)], SettingChanges())
    assert not one.has_state
    assert len(one.moments) == 30


def test_other_settings_decide_otherwise_and_each_difference_is_told_once() -> None:
    (one,) = replay(recorded(150), parse_changes(["itl=0.08"]))
    needed = one.mean_need("other"), one.mean_need("again")
    assert needed[0] is not None
    assert needed[1] is not None
    assert needed[0] > needed[1] > 0.0
    differences = one.differences()
    assert 0 < len(differences) < len(one.moments)
    assert all(moment.reproduced.replicas != moment.changed.replicas for moment in differences)


def test_models_and_objectives_are_told_apart() -> None:
    other = [replace(look, model=replace(look.model, name="default/other")) for look in recorded(20)]
    found = replay([*recorded(20), *other], parse_changes(["ttft=0.5", "target=0.999"]))
    assert [one.model for one in found] == ["default/other", "default/tiny"]


def test_settings_are_read_by_their_kind() -> None:
    changes = parse_changes(["goal_usual=0.8", "freeze=true", "target=0.95", "itl=0.1"])
    assert changes == SettingChanges({"goal_usual": 0.8, "freeze": True}, {"target": 0.95, "itl_seconds": 0.1})
    model, settings = changes.apply_to(recorded(1)[0])
    assert (model.target, model.itl_seconds) == (0.95, 0.1)
    assert settings == ScalingSettings().with_values({"goal_usual": 0.8, "freeze": True})


@pytest.mark.parametrize(
    "text",
    [
        "goal_usual",
        "goal_usual=",
        "goal_usual=much",
        "goal_usual=nan",
        "goal_usual=inf",
        "freeze=maybe",
        "budget_reserv=1",
        "window_seconds=-5",
        "period=60",
    ],
)
def test_what_is_no_setting_or_no_value_of_it_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--set"):
        parse_changes([text])


def test_settings_with_which_nothing_can_be_decided_are_refused() -> None:
    with pytest.raises(BadInput, match="nothing can be decided"):
        replay(recorded(30), parse_changes(["drain_seconds=0"]))
