"""The drift detector: tolerated errors, drift, and the length of a quarantine."""

import random

from fairlead_gateway.kv_index.supervisor.model_index import (
    FIRST_SECONDS,
    MAX_SECONDS,
    SOUND_ANSWERS,
    CacheOutcome,
    DriftDetector,
)


def drifted(drift: DriftDetector, predicted: float, reported: int, now: float = 0.0, most: int = 1_000) -> int | None:
    """Returns the number of answers until the alarm, or None without one."""
    for count in range(1, most + 1):
        if drift.observe(CacheOutcome(predicted, predicted, reported, 1_000), now):
            return count
    return None


def test_five_ghosts_in_a_row_are_drift_and_five_misses_too() -> None:
    assert drifted(DriftDetector(), 1_000, 0) == 6
    assert drifted(DriftDetector(), 0, 1_000) == 6
    assert "does not find" in _words(1_000, 0)
    assert "misses" in _words(0, 1_000)


def _words(predicted: int, reported: int) -> str:
    drift = DriftDetector()
    drifted(drift, predicted, reported)
    return drift.reason


def test_a_bias_within_what_blocks_are_is_never_drift() -> None:
    assert drifted(DriftDetector(), 800, 650) is None
    assert drifted(DriftDetector(), 500, 690) is None


def test_one_wrong_answer_in_ten_is_no_drift() -> None:
    drift, random_ = DriftDetector(), random.Random(7)
    for _ in range(5_000):
        credited, reported = 900 if random_.random() < 0.1 else 500, 500 if random_.random() < 0.9 else 0
        assert not drift.observe(CacheOutcome(credited, credited, reported, 1_000), 0.0)


def test_what_was_on_its_way_is_neither_a_ghost_nor_a_miss() -> None:
    drift = DriftDetector()
    for _ in range(1_000):
        assert not drift.observe(
            CacheOutcome(0, 900, 900, 1_000), 0.0
        )  # the next prompt comes before the index learns of it
        assert not drift.observe(
            CacheOutcome(0, 900, 0, 1_000), 0.0
        )  # and that prompt came before the prefill of the first one


def test_an_engine_that_reports_nothing_is_counted_as_silent_and_not_as_zero() -> None:
    drift = DriftDetector()
    for _ in range(100):
        assert not drift.observe(CacheOutcome(1_000, 1_000, None, 1_000), 0.0)
    assert (drift.unreported, drift.answers, drift.ratio) == (100, 0, None)


def test_each_quarantine_is_twice_as_long_until_the_index_is_sound() -> None:
    drift, now = DriftDetector(), 0.0
    drifted(drift, 1_000, 0, now)
    assert drift.is_quarantined
    assert drift.quarantined_until == FIRST_SECONDS
    assert not drift.end_quarantine(FIRST_SECONDS - 1)
    assert drift.end_quarantine(FIRST_SECONDS)
    assert not drift.is_quarantined
    assert drift.reason == ""
    now = FIRST_SECONDS
    assert drifted(drift, 1_000, 0, now) == 3  # on trial
    assert drift.quarantined_until == now + 2 * FIRST_SECONDS
    now += 2 * FIRST_SECONDS
    assert drift.end_quarantine(now)
    assert drifted(drift, 500, 500, now, SOUND_ANSWERS) is None
    drifted(drift, 1_000, 0, now)
    assert drift.quarantined_until == now + FIRST_SECONDS
    assert drift.quarantines == 3


def test_no_quarantine_is_longer_than_the_longest() -> None:
    drift, now = DriftDetector(), 0.0
    for _ in range(20):
        drifted(drift, 1_000, 0, now)
        assert drift.quarantined_until is not None
        assert drift.quarantined_until - now <= MAX_SECONDS
        now = drift.quarantined_until
        assert drift.end_quarantine(now)


def test_what_is_reported_in_quarantine_is_counted_and_moves_nothing() -> None:
    drift = DriftDetector()
    drifted(drift, 1_000, 0)
    before = (drift.overcredit, drift.undercredit, drift.answers)
    assert not drift.observe(CacheOutcome(0, 0, 1_000, 1_000), 1.0)
    assert (drift.overcredit, drift.undercredit, drift.answers - 1) == before


def test_late_news_are_counted_and_no_drift_and_misses_still_are() -> None:
    drift = DriftDetector()
    for _ in range(100):
        assert not drift.observe(CacheOutcome(1_000, 1_000, 0, 1_000), 0.0, is_late=True)
    assert (drift.late, drift.answers, drift.overcredit) == (100, 100, 0.0)
    assert any(drift.observe(CacheOutcome(0, 0, 1_000, 1_000), 0.0, is_late=True) for _ in range(10))
