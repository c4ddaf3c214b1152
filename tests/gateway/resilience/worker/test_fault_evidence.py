"""Faults count against an instance from two callers on, or from two bodies of the only one."""

import pytest

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.resilience.outlier_detection import FaultEvidence, FaultSource, OutlierDetector
from fairlead_gateway.telemetry.status_types import HealthState

FOUR = ("a", "b", "c", "d")
FLOOD, STEADY = CallerKey("flood"), CallerKey("steady")


def is_ejected(detector: OutlierDetector, sources: list[FaultSource | None], *, now: float = 1.0) -> bool:
    verdicts = [detector.on_failure("a", "status-500", now, FOUR, source) for source in sources]
    return any(verdicts)


def new_detector() -> OutlierDetector:
    return OutlierDetector(Limits(), lambda: 0.5)


@pytest.mark.parametrize("caller", [ANONYMOUS, FLOOD])
def test_one_body_of_one_caller_ejects_no_instance(caller: CallerKey) -> None:
    assert not is_ejected(new_detector(), [FaultSource(caller, b"poison")] * 60)


def test_one_body_of_two_callers_ejects_an_instance() -> None:
    sources: list[FaultSource | None] = [FaultSource(FLOOD, b"x"), FaultSource(STEADY, b"x"), FaultSource(FLOOD, b"x")]
    assert is_ejected(new_detector(), sources)


def test_two_bodies_of_the_only_caller_eject_an_instance() -> None:
    sources: list[FaultSource | None] = [FaultSource(FLOOD, b"%d" % number) for number in range(3)]
    assert is_ejected(new_detector(), sources)


def test_bodies_of_one_caller_eject_no_instance_that_answers_another_caller() -> None:
    detector = new_detector()
    detector.on_success("a", 1.0, STEADY)
    sources: list[FaultSource | None] = [FaultSource(FLOOD, b"%d" % number) for number in range(60)]
    assert not is_ejected(detector, sources, now=2.0)
    assert is_ejected(detector, [FaultSource(STEADY, b"1")], now=3.0)


def test_an_answer_to_another_caller_protects_an_instance_for_ten_seconds() -> None:
    detector = new_detector()
    detector.on_success("a", 1.0, STEADY)
    sources: list[FaultSource | None] = [FaultSource(FLOOD, b"%d" % number) for number in range(3)]
    assert not is_ejected(detector, sources, now=10.9)
    assert is_ejected(detector, sources[:1], now=11.1)


def test_a_body_that_another_instance_answered_ejects_as_often_as_before() -> None:
    assert is_ejected(new_detector(), [FaultSource(FLOOD, b"same", is_harmless=True)] * 3)


def test_refused_connections_need_no_second_caller() -> None:
    assert is_ejected(new_detector(), [None, None, None])


def test_one_caller_does_not_eject_an_instance_that_warms_up_for_another() -> None:
    detector = new_detector()
    assert is_ejected(detector, [None, None, None], now=0.0)
    assert detector.ejected(FOUR, 6.0) == {}
    detector.on_dispatch("a")
    detector.on_success("a", 6.5, STEADY)
    assert not is_ejected(detector, [FaultSource(FLOOD, b"poison")] * 5, now=7.0)
    assert is_ejected(detector, [FaultSource(STEADY, b"x")], now=7.0)


def test_what_is_remembered_of_failures_is_bounded() -> None:
    evidence = FaultEvidence()
    for number in range(10_000):
        evidence.add(FaultSource(CallerKey(f"{number}"), b"%d" % number))
    assert (len(evidence._callers), len(evidence._bodies)) == (8, 8)


def test_flood_of_answers_to_one_caller_does_not_hide_that_the_engine_serves_others() -> None:
    detector = new_detector()
    detector.on_success("a", 0.0, STEADY)
    for _ in range(1_000):
        detector.on_success("a", 0.5, FLOOD)
    assert not is_ejected(detector, [FaultSource(FLOOD, bytes([number])) for number in range(20)])


def returning_detector() -> OutlierDetector:
    """Returns a detector whose instance `a` has answered a caller, was ejected, and returns."""
    detector = new_detector()
    detector.on_success("a", 0.0, STEADY)
    assert is_ejected(detector, [None, None, None], now=0.0)
    assert detector.ejected(FOUR, 6.0) == {}
    detector.ejection_records.end("a")
    return detector


def test_one_callers_requests_eject_no_instance_again_that_returns_to_others() -> None:
    detector = returning_detector()
    detector.on_dispatch("a")
    assert not is_ejected(detector, [FaultSource(FLOOD, bytes([number])) for number in range(60)], now=6.0)
    assert detector.ejection_records.due(6.0) == ["a"]
    assert detector.ejected(FOUR, 6.1) == {"a": "one request probes it after an ejection: 3 status-500"}
    detector.ejection_records.on_probe_sent("a", 6.5)
    detector.on_dispatch("a")
    detector.on_success("a", 7.0)  # the worker's own probe
    assert detector.health("a", 7.0)[0] is HealthState.WARMING
    assert not is_ejected(detector, [FaultSource(FLOOD, bytes([number])) for number in range(60)], now=7.0)


def test_instance_that_returns_is_ejected_again_by_a_second_caller() -> None:
    detector = returning_detector()
    detector.on_dispatch("a")
    assert not is_ejected(detector, [FaultSource(FLOOD, b"x")], now=6.0)
    assert is_ejected(detector, [FaultSource(STEADY, b"y")], now=6.1)


def test_instance_that_returns_is_ejected_again_by_the_workers_own_probe() -> None:
    detector = returning_detector()
    detector.on_dispatch("a")
    assert not is_ejected(detector, [FaultSource(FLOOD, b"x")], now=6.0)
    assert is_ejected(detector, [None], now=6.5)


def test_instance_that_returns_is_ejected_again_by_its_only_caller() -> None:
    detector = returning_detector()
    detector.on_dispatch("a")
    assert is_ejected(detector, [FaultSource(STEADY, b"x")], now=6.0)


def test_instance_whose_return_no_probe_of_the_worker_decides_is_not_probed_for_ever() -> None:
    detector = returning_detector()
    verdicts = []
    for now in (6.0, 9.0, 12.0):
        assert detector.ejected(FOUR, now) == {}
        detector.on_dispatch("a")
        verdicts.append(is_ejected(detector, [FaultSource(FLOOD, b"x")], now=now))
    assert verdicts == [False, False, True]


def test_request_from_before_an_ejection_does_not_eject_again_after_the_pause() -> None:
    detector = new_detector()
    detector.on_success("a", 0.0, STEADY)
    assert is_ejected(detector, [None, None, None], now=0.0)
    assert not is_ejected(detector, [FaultSource(FLOOD, b"old")], now=6.0)
