"""Drift: what is tolerated, what is not, and how long an index is out for it."""

import random

from fairlead_kvstore.links.drift import FIRST_SECONDS, MOST_SECONDS, SOUND, Drift


def drifted(drift: Drift, predicted: float, reported: int, now: float = 0.0, most: int = 1_000) -> int | None:
    """Answers until the alarm; None when there was none."""
    for count in range(1, most + 1):
        if drift.seen(predicted, predicted, reported, 1_000, now):
            return count
    return None


def test_five_ghosts_in_a_row_are_drift_and_five_misses_too() -> None:
    assert drifted(Drift(), 1_000, 0) == 6
    assert drifted(Drift(), 0, 1_000) == 6
    assert "does not find" in _words(1_000, 0)
    assert "misses" in _words(0, 1_000)


def _words(predicted: int, reported: int) -> str:
    drift = Drift()
    drifted(drift, predicted, reported)
    return drift.words()


def test_a_bias_within_what_blocks_are_is_never_drift() -> None:
    assert drifted(Drift(), 800, 650) is None
    assert drifted(Drift(), 500, 690) is None


def test_one_wrong_answer_in_ten_is_no_drift() -> None:
    drift, random_ = Drift(), random.Random(7)
    for _ in range(5_000):
        credited, reported = 900 if random_.random() < 0.1 else 500, 500 if random_.random() < 0.9 else 0
        assert not drift.seen(credited, credited, reported, 1_000, 0.0)


def test_what_was_on_its_way_is_neither_a_ghost_nor_a_miss() -> None:
    drift = Drift()
    for _ in range(1_000):
        assert not drift.seen(0, 900, 900, 1_000, 0.0)  # the index learns of it later than the next prompt comes
        assert not drift.seen(0, 900, 0, 1_000, 0.0)  # and that prompt was sooner than the first one's prefill


def test_an_engine_that_reports_nothing_is_counted_as_silent_and_not_as_zero() -> None:
    drift = Drift()
    for _ in range(100):
        assert not drift.seen(1_000, 1_000, None, 1_000, 0.0)
    assert (drift.silent, drift.answers, drift.ratio) == (100, 0, None)


def test_a_quarantine_ends_and_the_next_is_twice_as_long_until_the_index_was_sound_for_long() -> None:
    drift, now = Drift(), 0.0
    drifted(drift, 1_000, 0, now)
    assert drift.quarantined
    assert drift.until == FIRST_SECONDS
    assert not drift.over_by(FIRST_SECONDS - 1)
    assert drift.over_by(FIRST_SECONDS)
    assert not drift.quarantined
    assert drift.words() == ""
    now = FIRST_SECONDS
    assert drifted(drift, 1_000, 0, now) == 3  # on trial
    assert drift.until == now + 2 * FIRST_SECONDS
    now += 2 * FIRST_SECONDS
    assert drift.over_by(now)
    assert drifted(drift, 500, 500, now, SOUND) is None
    drifted(drift, 1_000, 0, now)
    assert drift.until == now + FIRST_SECONDS
    assert drift.quarantines == 3


def test_no_quarantine_is_longer_than_the_longest() -> None:
    drift, now = Drift(), 0.0
    for _ in range(20):
        drifted(drift, 1_000, 0, now)
        assert drift.until is not None
        assert drift.until - now <= MOST_SECONDS
        now = drift.until
        assert drift.over_by(now)


def test_what_is_reported_in_quarantine_is_counted_and_moves_nothing() -> None:
    drift = Drift()
    drifted(drift, 1_000, 0)
    before = (drift.over, drift.under, drift.answers)
    assert not drift.seen(0, 0, 1_000, 1_000, 1.0)
    assert (drift.over, drift.under, drift.answers - 1) == before


def test_late_news_are_counted_and_no_drift_and_misses_still_are() -> None:
    drift = Drift()
    for _ in range(100):
        assert not drift.seen(1_000, 1_000, 0, 1_000, 0.0, late=True)
    assert (drift.late, drift.answers, drift.over) == (100, 100, 0.0)
    assert any(drift.seen(0, 0, 1_000, 1_000, 0.0, late=True) for _ in range(10))
