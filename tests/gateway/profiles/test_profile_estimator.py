"""The profile estimator: late timings, one fit per pool, slow instances, and bounded memory."""

import math
import random
from dataclasses import replace

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Fleet, Instance, Model, Role
from fairlead_gateway.profiles.messages import TimingEvent, TimingEventKind
from fairlead_gateway.profiles.profile_estimator import SOLVE_INTERVAL_SECONDS, ProfileEstimator

PRIOR, TRUE = builtin_profile("h100-llama8b"), builtin_profile("a100-qwen7b")
SIZED = replace(PRIOR, step_tokens=TRUE.step_tokens, kv_tokens=TRUE.kv_tokens)
KEY = "default/tiny"


def fleet(*names: str, **more: object) -> Fleet:
    def instance(name: str) -> Instance:
        return replace(Instance(name, "default", "tiny", "main", "", profile=SIZED), **more)  # type: ignore[arg-type]

    return Fleet(models={KEY: Model("default", "tiny")}, instances={KEY: tuple(instance(name) for name in names)})


def alone(instance: str, number: int, at: float, seconds: float, tokens: float) -> list[TimingEvent]:
    """Returns the timings of a prompt that is alone on its engine."""
    request = f"{instance} {number}"
    return [
        TimingEvent(TimingEventKind.DISPATCHED, at, request, instance, tokens, 0.0),
        TimingEvent(TimingEventKind.FIRST_TOKEN, at + seconds, request),
        TimingEvent(TimingEventKind.FINISHED, at + seconds + 0.1, request, cached=0.0, output=2.0),
    ]


def taught(
    pupil: ProfileEstimator, paces: dict[str, float], rounds: int, *, at: float = 0.0
) -> dict[str, EngineProfile]:
    """Sends each instance a prompt a second and returns the last profiles.

    Prompts have 200 to 6,000 tokens in turn.
    """
    profiles: dict[str, EngineProfile] = {}
    for number in range(rounds):
        now, tokens = at + number, 200.0 + 400.0 * (number % 15)
        for name, pace in paces.items():
            pupil.add_timings(alone(name, number, now, pace * TRUE.prefill_time(tokens), tokens))
        profiles |= pupil.update(now)
    return profiles


def test_what_is_learned_is_told_when_it_changed_enough() -> None:
    pupil = ProfileEstimator()
    pupil.update_fleet(fleet("a", "b"))
    assert pupil.update(SOLVE_INTERVAL_SECONDS) == {}
    profiles = taught(pupil, {"a": 1.0, "b": 1.0}, 200, at=20.0)
    for name in ("a", "b"):
        assert math.isclose(profiles[name].prefill_time(3_000), TRUE.prefill_time(3_000), rel_tol=0.05)
        known = pupil.learned_profile(name)
        assert known.is_reliable
        assert known.error is not None
        assert known.error < 0.1
    assert pupil.sent_profiles == profiles
    assert taught(pupil, {"a": 1.0, "b": 1.0}, 40, at=220.0) == {}, "nothing new"


def test_the_slow_one_of_equal_engines_is_known_as_that() -> None:
    pupil = ProfileEstimator()
    pupil.update_fleet(fleet("a", "b", "slow"))
    profiles = taught(pupil, {"a": 1.0, "b": 1.0, "slow": 1.5}, 400)
    prices = {name: profiles[name].prefill_time(3_000) / TRUE.prefill_time(3_000) for name in profiles}
    assert prices == pytest.approx({"a": 1.0, "b": 1.0, "slow": 1.5}, rel=0.08)


def test_times_that_scatter_do_not_make_all_engines_slow_ones() -> None:
    draw = random.Random(3)
    pupil = ProfileEstimator()
    pupil.update_fleet(fleet("a", "b", "slow"))
    paces = {"a": 1.0, "b": 1.0, "slow": 1.5}
    for number in range(1_200):
        now, tokens = float(number), 200.0 + 400.0 * (number % 15)
        for name, pace in paces.items():
            seconds = pace * TRUE.prefill_time(tokens) * draw.lognormvariate(0.0, 0.6)
            pupil.add_timings(alone(name, number, now, seconds, tokens))
        pupil.update(now)
    profiles = {name: pupil.learned_profile(name) for name in paces}
    seen = {name: profile.slowdown for name, profile in profiles.items() if profile is not None}
    assert seen["slow"] / seen["a"] == pytest.approx(1.5, rel=0.25)
    assert seen["a"] == pytest.approx(1.0, rel=0.25)
    assert seen["b"] == pytest.approx(1.0, rel=0.25)


def test_rows_of_a_late_worker_are_put_in_their_place() -> None:
    in_order, late = ProfileEstimator(), ProfileEstimator()
    for pupil in (in_order, late):
        pupil.update_fleet(fleet("a"))
    for number in range(60):
        rows = alone("a", number, float(number), TRUE.prefill_time(1_000.0 + number), 1_000.0 + number)
        in_order.add_timings(rows)
        late.add_timings(rows[1:])  # of another worker, whose report comes first
        late.add_timings(rows[:1])
        for pupil in (in_order, late):
            pupil.update(float(number))
    known, same = in_order.learned_profile("a"), late.learned_profile("a")
    assert known == same
    assert known.observations > 30


def test_departed_instances_are_forgotten_and_handoffs_are_not_learned_from() -> None:
    pupil = ProfileEstimator()
    pupil.update_fleet(fleet("a", "b"))
    taught(pupil, {"a": 1.0, "b": 1.0}, 60)
    pupil.update_fleet(fleet("b"))
    assert pupil.learned_profile("a") is None
    assert pupil.learned_profile("b").observations > 30, "what was learned with its help stays"
    assert set(pupil.sent_profiles) == {"b"}
    pupil.update_fleet(fleet("b", role=Role.DECODE, transfer="nixl"))
    assert pupil.learned_profile("b") is None


def test_too_many_rows_are_counted_and_requests_without_an_end_are_let_go() -> None:
    pupil = ProfileEstimator(max_events=10, max_inflight=4)
    pupil.update_fleet(fleet("a"))
    pupil.add_timings(
        [TimingEvent(TimingEventKind.DISPATCHED, 0.1 * number, f"r{number}", "a", 100.0, 0.0) for number in range(15)]
    )
    assert pupil.dropped == 5
    pupil.update(100.0)
    pupil.add_timings(
        [
            TimingEvent(TimingEventKind.FIRST_TOKEN, 101.0, "r0"),
            TimingEvent(TimingEventKind.FIRST_TOKEN, 101.0, "nobody"),
        ]
    )
    pupil.update(200.0)
    assert pupil.learned_profile("a").observations == 0.0


def test_requests_in_flight_at_an_instance_that_leaves_are_not_measured() -> None:
    estimator = ProfileEstimator()
    estimator.update_fleet(fleet("a"))
    *before, end = alone("a", 1, 0.0, 1.0, 1_000.0)
    estimator.add_timings(before)
    estimator.update(50.0)
    estimator.update_fleet(Fleet())
    estimator.add_timings([end])
    assert estimator.update(100.0) == {}
