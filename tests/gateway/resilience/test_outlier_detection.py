"""The breaker as a pure core: what ejects, what does not, how an instance comes back."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.telemetry.status_types import HealthState

LIMITS = Limits()
FOUR = ("a", "b", "c", "d")


def breaker(jitter: float = 0.5) -> OutlierDetector:
    return OutlierDetector(LIMITS, lambda: jitter)


def ejected(detector: OutlierDetector, now: float = 0.0, instance: str = "a") -> None:
    assert [detector.on_failure(instance, "timeout", now, FOUR) for _ in range(3)] == [False, False, True]


def test_three_faults_in_a_row_eject_and_the_reason_is_told() -> None:
    detector = breaker()
    detector.on_failure("a", "reset", 0.0, FOUR)
    detector.on_failure("a", "timeout", 0.0, FOUR)
    detector.on_failure("a", "timeout", 0.0, FOUR)
    assert detector.ejected(FOUR, 3.0) == {"a": "ejected 3 s ago: 2 timeouts, 1 reset"}


def test_an_answer_in_between_ends_the_row() -> None:
    detector = breaker()
    for _ in range(3):
        detector.on_failure("a", "reset", 0.0, FOUR)
        detector.on_failure("a", "reset", 0.0, FOUR)
        for _ in range(5):
            detector.on_success("a", 0.0)
    assert detector.ejected(FOUR, 0.0) == {}


def test_half_of_ten_answers_in_ten_seconds_eject_and_older_ones_do_not_count() -> None:
    detector = breaker()
    for second in range(40):
        assert not detector.on_failure("a", "cut", float(second * 4), FOUR)
        detector.on_success("a", float(second * 4))
    ejections = []
    for step in range(5):
        ejections.append(detector.on_failure("b", "cut", step / 10, FOUR))
        detector.on_success("b", step / 10)
    assert not any(ejections)
    assert detector.on_failure("b", "cut", 0.6, FOUR)


def test_never_more_than_half_of_the_ready_ones_sit_out() -> None:
    detector = breaker()
    for instance in FOUR:
        for _ in range(5):
            detector.on_failure(instance, "refused", 0.0, FOUR)
    assert set(detector.ejected(FOUR, 1.0)) == {"a", "b"}
    alone = breaker()
    assert not any(alone.on_failure("a", "refused", 0.0, ("a",)) for _ in range(10))


def test_when_only_ejected_ones_are_left_nobody_sits_out() -> None:
    detector = breaker()
    ejected(detector)
    assert detector.ejected(("a",), 0.0) == {}


def test_after_its_pause_one_request_probes_and_an_answer_lets_it_warm_up() -> None:
    detector = breaker()
    ejected(detector)
    assert detector.ejected(FOUR, 4.9)
    assert detector.health("a", 5.1)[0] is HealthState.PROBING
    assert detector.ejected(FOUR, 5.1) == {}
    detector.on_dispatch("a")
    assert detector.ejected(FOUR, 5.2) == {"a": "one request probes it after an ejection: 3 timeouts"}
    detector.on_success("a", 5.3)
    assert detector.health("a", 5.3) == (
        HealthState.WARMING,
        "warming up (10% of its share) after an ejection: 3 timeouts",
    )
    assert sum(not detector.ejected(FOUR, 10.3) for _ in range(100)) == 50
    assert detector.ejected(FOUR, 15.4) == {}
    assert detector.health("a", 15.4) == (HealthState.HEALTHY, "")


def test_a_probe_that_says_nothing_of_the_engine_is_followed_by_another() -> None:
    detector = breaker()
    ejected(detector)
    assert detector.ejected(FOUR, 6.0) == {}
    detector.on_dispatch("a")
    detector.on_inconclusive("a")
    assert detector.ejected(FOUR, 6.0) == {}


def test_a_fault_on_the_way_back_ejects_at_once_and_for_longer() -> None:
    detector = breaker()
    ejected(detector)
    now, pauses = 0.0, []
    for _ in range(8):
        start = now
        while detector.ejected(FOUR, now):
            now += 0.5
        pauses.append(now - start)
        detector.on_dispatch("a")
        assert detector.on_failure("a", "reset", now, FOUR)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0, 120.0]


def test_pauses_differ_by_the_jitter() -> None:
    short, long = breaker(0.0), breaker(1.0)
    ejected(short)
    ejected(long)
    assert not short.ejected(FOUR, 4.1)
    assert long.ejected(FOUR, 5.9)
    assert not long.ejected(FOUR, 6.1)


def test_who_leaves_the_fleet_is_forgotten() -> None:
    detector = breaker()
    ejected(detector)
    detector.retain(("b", "c", "d"))
    assert detector.ejected(FOUR, 0.0) == {}


STEPS = st.tuples(st.sampled_from(["fault", "good", "sent", "unknown", "ask"]), st.sampled_from(FOUR), st.floats(0, 8))


@given(st.lists(STEPS, max_size=200), st.integers(1, 4))
def test_whatever_happens_half_of_the_ready_ones_may_be_used_and_all_come_back(
    steps: list[tuple[str, str, float]], count: int
) -> None:
    detector, now, ready = breaker(), 0.0, FOUR[:count]
    for what, instance, pause in steps:
        now += pause
        if what == "fault":
            detector.on_failure(instance, "reset", now, ready)
        elif what == "good":
            detector.on_success(instance, now)
        elif what == "sent":
            detector.on_dispatch(instance)
        elif what == "unknown":
            detector.on_inconclusive(instance)
        assert sum(detector.health(item, now)[0] is HealthState.EJECTED for item in ready) <= count / 2
        assert len(detector.ejected(ready, now)) < count
    for _ in range(3):
        now += 200.0
        for item in ready:
            detector.health(item, now)
            detector.on_dispatch(item)
            detector.on_success(item, now)
    assert {detector.health(item, now)[0] for item in ready} <= {HealthState.HEALTHY, HealthState.WARMING}
