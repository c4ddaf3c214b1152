"""Rows of workers in, profiles out: in order whatever comes late, one fit a pool, a pace for the slow one, and nothing for ever."""

import math
import random
from dataclasses import replace

import pytest

from fairlead.fleet import Fleet, Instance, Model, Role
from fairlead.limits import Limits
from fairlead.profile import EngineProfile, preset
from fairlead_gateway.learning.pupil import SETTLE_EVERY_SECONDS, Pupil
from fairlead_gateway.learning.rows import Kind, Row

PRIOR, TRUE = preset("h100-llama8b"), preset("a100-qwen7b")
SIZED = replace(PRIOR, step_tokens=TRUE.step_tokens, kv_tokens=TRUE.kv_tokens)
KEY = "default/tiny"


def fleet(*names: str, **more: object) -> Fleet:
    def instance(name: str) -> Instance:
        return replace(Instance(name, "default", "tiny", "main", "", profile=SIZED), **more)  # type: ignore[arg-type]

    return Fleet(models={KEY: Model("default", "tiny")}, instances={KEY: tuple(instance(name) for name in names)})


def alone(instance: str, number: int, at: float, seconds: float, tokens: float) -> list[Row]:
    """One prompt that meets nobody."""
    request = f"{instance} {number}"
    return [
        Row(Kind.SENT, at, request, instance, tokens, 0.0),
        Row(Kind.FIRST, at + seconds, request),
        Row(Kind.DONE, at + seconds + 0.1, request, cached=0.0, output=2.0),
    ]


def taught(pupil: Pupil, paces: dict[str, float], rounds: int, *, at: float = 0.0) -> dict[str, EngineProfile]:
    """Each instance gets a prompt a second, by turns of 200 to 6,000 tokens; what was told in the end."""
    told: dict[str, EngineProfile] = {}
    for number in range(rounds):
        now, tokens = at + number, 200.0 + 400.0 * (number % 15)
        for name, pace in paces.items():
            pupil.heard(alone(name, number, now, pace * TRUE.prefill(tokens), tokens), 0)
        told |= pupil.step(now)
    return told


def test_what_is_learned_is_told_when_it_changed_enough() -> None:
    pupil = Pupil(Limits())
    pupil.apply(fleet("a", "b"))
    assert pupil.step(SETTLE_EVERY_SECONDS) == {}
    told = taught(pupil, {"a": 1.0, "b": 1.0}, 200, at=20.0)
    for name in ("a", "b"):
        assert math.isclose(told[name].prefill(3_000), TRUE.prefill(3_000), rel_tol=0.05)
        known = pupil.look(name)
        assert known is not None
        assert known.stands
        assert known.error is not None
        assert known.error < 0.1
    assert pupil.told() == told
    assert taught(pupil, {"a": 1.0, "b": 1.0}, 40, at=220.0) == {}, "nothing new"


def test_the_slow_one_of_equal_engines_is_known_as_that() -> None:
    pupil = Pupil(Limits())
    pupil.apply(fleet("a", "b", "slow"))
    told = taught(pupil, {"a": 1.0, "b": 1.0, "slow": 1.5}, 400)
    prices = {name: told[name].prefill(3_000) / TRUE.prefill(3_000) for name in told}
    assert prices == pytest.approx({"a": 1.0, "b": 1.0, "slow": 1.5}, rel=0.08)


def test_times_that_scatter_do_not_make_all_engines_slow_ones() -> None:
    draw = random.Random(3)
    pupil = Pupil(Limits())
    pupil.apply(fleet("a", "b", "slow"))
    paces = {"a": 1.0, "b": 1.0, "slow": 1.5}
    for number in range(1_200):
        now, tokens = float(number), 200.0 + 400.0 * (number % 15)
        for name, pace in paces.items():
            seconds = pace * TRUE.prefill(tokens) * draw.lognormvariate(0.0, 0.6)
            pupil.heard(alone(name, number, now, seconds, tokens), 0)
        pupil.step(now)
    found = {name: pupil.look(name) for name in paces}
    seen = {name: one.pace for name, one in found.items() if one is not None}
    assert seen["slow"] / seen["a"] == pytest.approx(1.5, rel=0.25)
    assert seen["a"] == pytest.approx(1.0, rel=0.25)
    assert seen["b"] == pytest.approx(1.0, rel=0.25)


def test_rows_of_a_late_worker_are_put_in_their_place() -> None:
    limits = Limits()
    in_order, late = Pupil(limits), Pupil(limits)
    for pupil in (in_order, late):
        pupil.apply(fleet("a"))
    for number in range(60):
        rows = alone("a", number, float(number), TRUE.prefill(1_000.0 + number), 1_000.0 + number)
        in_order.heard(rows, 0)
        late.heard(rows[1:], 0)  # another worker's: its word comes first
        late.heard(rows[:1], 0)
        for pupil in (in_order, late):
            pupil.step(float(number))
    known, same = in_order.look("a"), late.look("a")
    assert known == same
    assert known is not None
    assert known.spans > 30


def test_instances_that_leave_are_forgotten_and_legs_of_hand_offs_are_not_learned_from() -> None:
    pupil = Pupil(Limits())
    pupil.apply(fleet("a", "b"))
    taught(pupil, {"a": 1.0, "b": 1.0}, 60)
    pupil.apply(fleet("b"))
    assert pupil.look("a") is None
    known = pupil.look("b")
    assert known is not None
    assert known.spans > 30, "what was learned with its help stays"
    assert set(pupil.told()) == {"b"}
    pupil.apply(fleet("b", role=Role.DECODE, transfer="nixl"))
    assert pupil.look("b") is None


def test_too_many_rows_are_counted_and_requests_without_an_end_are_let_go() -> None:
    pupil = Pupil(replace(Limits(), learn_rows_waiting=10, learn_flights=4))
    pupil.apply(fleet("a"))
    pupil.heard([Row(Kind.SENT, 0.1 * number, f"r{number}", "a", 100.0, 0.0) for number in range(15)], 3)
    assert pupil.dropped == 3 + 5
    pupil.step(100.0)
    pupil.heard([Row(Kind.FIRST, 101.0, "r0"), Row(Kind.FIRST, 101.0, "nobody")], 0)
    pupil.step(200.0)
    known = pupil.look("a")
    assert known is not None
    assert known.spans == 0.0
