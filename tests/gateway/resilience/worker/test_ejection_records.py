"""The records of ejected instances that may hang."""

import pytest

from fairlead.limits import Limits
from fairlead_gateway.resilience.outlier_detection import EjectionRecord, EjectionRecords, OutlierDetector
from fairlead_gateway.telemetry.status_types import HealthState

LIMITS = Limits(ejection_probe_after_seconds=10.0, ejection_probe_interval_seconds=15.0)
FOUR = ("a", "b", "c", "d")


def ejected(cause: str = "timeout", now: float = 100.0) -> OutlierDetector:
    detector = OutlierDetector(LIMITS, lambda: 0.5)
    for _ in range(3):
        detector.on_failure("a", cause, now, FOUR)
    return detector


def begun(now: float = 100.0) -> EjectionRecords:
    records = EjectionRecords(LIMITS)
    records.begin("a", ["timeout"], "3 timeouts", now)
    return records


@pytest.mark.parametrize(("cause", "text"), [("timeout", "3 timeouts"), ("status-500", "3 status-500")])
def test_record_begins_when_an_instance_is_ejected_for_a_hang(cause: str, text: str) -> None:
    expected = EjectionRecord(100.0, text, has_silence=cause != "status-500")
    assert ejected(cause).ejection_records.by_instance == {"a": expected}


@pytest.mark.parametrize(
    "cause", ["refused", "connect-timeout", "gone", "reset", "cut", "garbage", "error-event", "tls"]
)
def test_other_failures_eject_without_a_record(cause: str) -> None:
    detector = ejected(cause)
    assert detector.health("a", 100.0)[0] is HealthState.EJECTED
    assert detector.ejection_records.by_instance == {}


def test_record_of_an_instance_that_fails_its_probe_goes_on() -> None:
    detector = ejected(now=100.0)
    assert detector.health("a", 106.0)[0] is HealthState.PROBING
    detector.on_dispatch("a")
    assert detector.on_failure("a", "timeout", 121.0, FOUR)
    assert detector.ejection_records.by_instance == {"a": EjectionRecord(100.0, "3 timeouts")}


def test_answer_ends_the_record_and_is_remembered() -> None:
    detector = ejected(now=100.0)
    detector.on_success("a", 103.0)
    assert detector.ejection_records.by_instance == {}
    assert detector.answer_times() == {"a": 103.0}


@pytest.mark.parametrize("cause", ["refused", "gone"])
def test_refused_connection_ends_the_record_since_nothing_listens(cause: str) -> None:
    detector = ejected()
    detector.on_failure("a", cause, 103.0, FOUR)
    assert detector.ejection_records.by_instance == {}
    assert detector.on_failure("a", cause, 110.0, FOUR)  # after its pause: it is ejected again
    assert detector.ejection_records.by_instance == {}


def test_only_ready_instance_gets_a_record_and_stays_in_use() -> None:
    detector = OutlierDetector(LIMITS, lambda: 0.5)
    for _ in range(3):
        assert not detector.on_failure("a", "timeout", 100.0, ("a",))
    assert detector.is_usable("a", 100.0)
    assert detector.ejection_records.by_instance == {"a": EjectionRecord(100.0, "3 timeouts")}


def test_instance_beyond_the_ejected_share_gets_no_record() -> None:
    detector = ejected()
    for name in ("b", "c"):
        for _ in range(3):
            detector.on_failure(name, "timeout", 100.0, FOUR)
    assert detector.ejection_records.by_instance.keys() == {"a", "b"}


def test_record_ends_when_the_instance_is_not_ready_any_more() -> None:
    detector = ejected()
    detector.retain_ready(["a", "b"])
    assert detector.ejection_records.by_instance.keys() == {"a"}
    detector.retain_ready(["b"])
    assert detector.ejection_records.by_instance == {}


def test_probes_are_due_after_a_while_one_at_a_time_and_spaced() -> None:
    records = begun(now=100.0)
    assert records.due(109.9) == []
    assert records.due(110.0) == ["a"]
    records.on_probe_sent("a", 110.0)
    assert records.due(200.0) == []
    records.on_probe_ended("a", has_failed=True)
    assert records.due(124.9) == []
    assert records.due(125.0) == ["a"]
    assert records.by_instance["a"].failed_probes == 1


def test_bytes_to_another_request_restart_the_record() -> None:
    records = begun(now=100.0)
    records.on_probe_sent("a", 110.0)
    records.on_probe_ended("a", has_failed=True)
    records.restart("a", 120.0)
    assert (records.by_instance["a"].since, records.by_instance["a"].failed_probes) == (120.0, 0)


def test_probe_that_ends_after_its_record_changes_nothing() -> None:
    records = begun()
    records.on_probe_sent("a", 110.0)
    records.end("a")
    records.begin("a", ["timeout"], "3 timeouts", 111.0)
    records.on_probe_ended("a", has_failed=True)
    assert records.by_instance == {"a": EjectionRecord(111.0, "3 timeouts")}


def test_requested_probe_is_due_at_once_without_a_record_and_once() -> None:
    records = EjectionRecords(LIMITS)
    armed: list[bool] = []
    records.on_begin = lambda: armed.append(True)
    records.request_probe("a")
    assert (armed, records.needs_probes, records.due(0.0)) == ([True], True, ["a"])
    records.on_probe_sent("a", 0.0)
    assert (records.needs_probes, records.due(0.0)) == (False, [])
    records.request_probe("a")
    assert records.due(1.0) == []  # one is under way
    records.on_probe_ended("a", has_failed=True)
    assert records.due(1.0) == ["a"]
    records.cancel_probe("a")
    assert not records.needs_probes
