"""Instances that say that they are full get no requests for a while, if others have room."""

import random

import pytest

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.resilience.outlier_detection import FaultSource, OutlierDetector

THREE = ("a", "b", "c")
FLOOD, STEADY = CallerKey("flood"), CallerKey("steady")


def new_detector() -> OutlierDetector:
    return OutlierDetector(Limits(), lambda: 0.5)


def fill(detector: OutlierDetector, instance: str, now: float, retry_after: int | None = None) -> None:
    """Lets an instance say to two bodies that it is full."""
    for body in (b"1", b"2"):
        detector.on_full(instance, retry_after, now, FaultSource(ANONYMOUS, body))


def test_pauses_double_to_eight_seconds_until_an_answer() -> None:
    detector, now = new_detector(), 100.0
    for pause in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
        fill(detector, "a", now)
        assert detector.ejected(THREE, now + pause - 0.01).keys() == {"a"}
        now += pause
        assert detector.ejected(THREE, now) == {}
    detector.on_room("a", now)
    fill(detector, "a", now)
    assert detector.ejected(THREE, now + 0.99)
    assert not detector.ejected(THREE, now + 1.0)


@pytest.mark.parametrize("retry_after", [1, 30, 60])
def test_an_instance_rests_for_as_long_as_it_asks(retry_after: int) -> None:
    detector = new_detector()
    fill(detector, "a", 100.0, retry_after)
    assert detector.ejected(THREE, 99.9 + retry_after) == {"a": "it says that it is full"}
    assert detector.ejected(THREE, 100.0 + retry_after) == {}


def test_answers_to_requests_sent_before_prove_no_room() -> None:
    detector = new_detector()
    fill(detector, "a", 100.0, 30)
    detector.on_room("a", 99.0)
    assert detector.ejected(THREE, 101.0)
    detector.on_room("a", 100.5)
    assert not detector.ejected(THREE, 101.0)
    assert not detector.full


@pytest.mark.parametrize("bodies", [1, 40])
def test_one_caller_closes_no_instance_that_answers_others(bodies: int) -> None:
    detector = new_detector()
    for number in range(40):
        now = 100.0 + number / 10
        detector.on_success("a", now, STEADY)
        detector.on_full("a", 60, now, FaultSource(FLOOD, b"%d" % (number % bodies)))
        assert detector.ejected(THREE, now) == {}
    detector.on_full("a", 60, 104.0, FaultSource(STEADY, b"x"))
    assert detector.ejected(THREE, 104.0).keys() == {"a"}


def test_one_body_closes_no_instance() -> None:
    detector = new_detector()
    for number in range(40):
        detector.on_full("a", 60, 100.0 + number, FaultSource(FLOOD, b"same"))
    assert detector.ejected(THREE, 140.0) == {}


def test_full_instances_that_have_left_are_forgotten() -> None:
    detector = new_detector()
    fill(detector, "a", 100.0, 30)
    fill(detector, "b", 100.0)
    detector.retain(["a"])
    assert detector.full == {"a"}


def test_a_broken_instance_does_not_serve_for_a_full_one() -> None:
    detector = new_detector()
    for _ in range(3):
        detector.on_failure("a", "refused", 100.0, THREE)
    fill(detector, "b", 100.0, 30)
    assert detector.ejected(THREE, 101.0).keys() == {"a", "b"}
    fill(detector, "c", 100.0, 30)
    assert detector.ejected(THREE, 101.0).keys() == {"a"}
    assert detector.ejected(("b", "c"), 101.0) == {}


@pytest.mark.parametrize("seed", range(60))
def test_whatever_instances_say_one_is_left_and_none_rests_for_longer_than_it_may(seed: int) -> None:
    draw = random.Random(seed)
    detector, now = new_detector(), 1_000.0
    names = [f"e{number}" for number in range(draw.randint(1, 6))]
    ends: dict[str, float] = {}
    for _ in range(300):
        now += draw.choice([0.0, 0.01, 0.5, 3.0, 20.0])
        name, source = draw.choice(names), FaultSource(draw.choice([ANONYMOUS, FLOOD, STEADY]), draw.randbytes(1))
        event = draw.random()
        if event < 0.6:
            retry_after = draw.choice([None, None, 1, 10, 60])
            detector.on_full(name, retry_after, now, source)
            ends[name] = max(ends.get(name, 0.0), now + (retry_after or 8.0))
        elif event < 0.8:
            sent_at = now - draw.choice([0.0, 5.0])
            detector.on_success(name, now, source.caller)
            detector.on_room(name, sent_at)
        ready = draw.sample(names, draw.randint(1, len(names)))
        left_out = detector.ejected(ready, now)
        assert left_out.keys() < set(ready)
        assert all(now < ends[name] for name in left_out)
