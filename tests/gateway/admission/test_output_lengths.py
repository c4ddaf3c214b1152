"""Output lengths: calibrated quantiles, given what was generated, and changes that are noticed."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.admission.output_lengths import (
    BINS,
    HALF_LIFE_SECONDS,
    LOWER_EDGES,
    PLANNED_SHARE,
    OutputForecast,
    OutputLengths,
    bin_of,
    conditional_quantile,
)


def drawn(draw: random.Random, kind: str) -> int:
    """Chat is short with a long tail, reasoning long."""
    middle, spread = (5.0, 0.9) if kind == "chat" else (7.6, 0.5)
    return max(1, min(30_000, int(draw.lognormvariate(middle, spread))))


def test_after_500_answers_the_ninth_decile_is_within_two_points() -> None:
    for kind in ("chat", "reason"):
        covered = total = 0
        for seed in range(12):
            draw, lengths = random.Random(seed), OutputLengths(max_classes=64)
            for number in range(500):
                lengths.learn(kind, 900.0, drawn(draw, kind), number * 0.5)
            bound = lengths.quantile(0.9, kind, 900.0, 250.0)
            assert bound is not None
            seen = [drawn(draw, kind) <= bound for _ in range(4_000)]
            covered, total = covered + sum(seen), total + len(seen)
        assert abs(covered / total - 0.9) <= 0.02, kind


def test_given_what_is_out_the_median_is_that_of_the_longer_ones() -> None:
    draw, lengths = random.Random(5), OutputLengths(max_classes=64)
    seen = [drawn(draw, "chat") for _ in range(3_000)]
    for number, length in enumerate(seen):
        lengths.learn("chat", 900.0, length, number * 0.1)
    for generated in (50, 200, 600):
        longer = sorted(length for length in seen if length > generated)
        median = lengths.quantile(0.5, "chat", 900.0, 300.0, generated=generated)
        assert median is not None
        assert math.isclose(median, longer[len(longer) // 2], rel_tol=0.08)


def test_without_answers_it_is_none_and_a_new_class_starts_from_all() -> None:
    lengths = OutputLengths(max_classes=64)
    assert lengths.quantile(0.5, "chat", 900.0, 0.0) is None
    for number in range(200):
        lengths.learn("chat", 900.0, 100, float(number))
    stranger = lengths.quantile(0.5, "batch", 20.0, 200.0)
    assert stranger is not None
    assert math.isclose(stranger, 100, rel_tol=0.1)


def test_classes_differ_once_they_have_answers() -> None:
    lengths = OutputLengths(max_classes=64)
    for number in range(300):
        lengths.learn("chat", 900.0, 100, float(number))
        lengths.learn("reason", 900.0, 4_000, float(number))
    short, long = (lengths.quantile(0.5, kind, 900.0, 300.0) for kind in ("chat", "reason"))
    assert short is not None
    assert long is not None
    assert math.isclose(short, 100, rel_tol=0.1)
    assert math.isclose(long, 4_000, rel_tol=0.1)


def test_a_change_is_learned_within_ten_minutes() -> None:
    draw, lengths = random.Random(9), OutputLengths(max_classes=64)
    now = 0.0
    for _ in range(7_200):  # an hour at two a second
        now += 0.5
        lengths.learn("chat", 900.0, drawn(draw, "chat"), now)
    for _ in range(1_200):  # ten minutes of answers two and a half times as long
        now += 0.5
        lengths.learn("chat", 900.0, int(2.5 * drawn(draw, "chat")), now)
    bound = lengths.quantile(0.9, "chat", 900.0, now)
    assert bound is not None
    covered = sum(2.5 * drawn(draw, "chat") <= bound for _ in range(20_000)) / 20_000
    assert abs(covered - 0.9) <= 0.03


def test_without_a_change_chance_does_not_empty_the_hour() -> None:
    draw, lengths = random.Random(2), OutputLengths(max_classes=64)
    sizes = []
    for number in range(20_000):
        lengths.learn("chat", 900.0, drawn(draw, "chat"), number * 0.5)
        if number % 1_000 == 999:
            sizes.append(lengths._all.total / lengths._weight(number * 0.5))
    assert sizes[-1] > 3_000  # of five minutes alone it would be 860


def test_the_number_of_classes_is_bounded() -> None:
    lengths = OutputLengths(max_classes=8)
    for number in range(100):
        lengths.learn(f"tenant-{number}", 900.0, 100, float(number))
    assert len(lengths._histograms) <= 8
    assert lengths.quantile(0.5, "tenant-0", 900.0, 100.0) is not None


def test_the_classes_without_an_answer_for_longest_are_dropped_first() -> None:
    lengths = OutputLengths(max_classes=4)
    for tenant in "abbabc":
        lengths.learn(tenant, 900.0, 100, 0.0)
    assert list(lengths._histograms) == [("b", 4), ("b",), ("c", 4), ("c",)]
    assert [histogram.total for histogram in lengths._histograms.values()] == [3.0, 3.0, 1.0, 1.0]


def test_counts_stay_small_over_many_half_lives() -> None:
    lengths = OutputLengths(max_classes=4)
    for hours in range(0, 200, 10):
        lengths.learn("a", 900.0, 100, hours * HALF_LIFE_SECONDS)
    lengths.learn("a", 900.0, 1_000, 200 * HALF_LIFE_SECONDS)
    assert lengths._all.total < 1e10
    assert lengths.shares("a", 900.0, 200 * HALF_LIFE_SECONDS)[bin_of(1_000)] == pytest.approx(1.0, abs=0.01)


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=60), st.integers(0, 250_000), st.floats(0.0, 1.0))
def test_a_quantile_is_beyond_what_is_out_and_rises_with_its_share(
    seen: list[int], generated: int, share: float
) -> None:
    counts = [0.0] * BINS
    for length in seen:
        counts[bin_of(length)] += 1.0
    quantile = conditional_quantile(counts, share, generated)
    assert quantile >= min(generated, LOWER_EDGES[BINS])
    assert share == 0.0 or quantile <= conditional_quantile(counts, min(1.0, share + 0.1), generated) + 1e-6


def test_the_table_that_is_planned_by_says_what_the_quantile_says() -> None:
    draw, lengths = random.Random(3), OutputLengths(max_classes=8)
    for number in range(600):
        lengths.learn("chat", 500, int(draw.lognormvariate(5.0, 1.0)) + 1, float(number))
    planned = OutputForecast(lengths)
    assert OutputForecast(OutputLengths(max_classes=8)).expected_remaining("chat", 500, 0, 0.0) is None
    for out in (0, 10, 100, 400):
        remaining = planned.expected_remaining("chat", 500, out, 600.0)
        exact = lengths.quantile(PLANNED_SHARE, "chat", 500, 600.0, generated=out)
        assert remaining is not None
        assert exact is not None
        assert remaining == pytest.approx(exact - out, rel=0.15, abs=2.0)
