"""The benchmark of scheduling carries the goals that are checked in, and its results hold them or
say that they do not."""

from fairlead_bench.results import load_goals
from fairlead_bench.scheduling import LAPS, LAPS_SHORT, TWO, SchedulingTraffic, length_rows, slo_attainment
from fairlead_testing.pytest_hooks.nightly import shortened

GOALS = load_goals("scheduling")


def test_lengths_are_calibrated() -> None:
    assert [row.holds for row in length_rows(GOALS, [5])] == [True]


def test_the_gate_keeps_both_classes_where_arrival_and_deadline_order_do_not() -> None:
    requests = shortened(2_000, 1_500)
    short, long, stretch = slo_attainment(TWO, "gate", 0.85, [5], requests)
    assert min(short, long) >= 0.9
    assert stretch <= 5.0
    for how in ("fcfs", "edf"):
        assert min(slo_attainment(TWO, how, 0.85, [5], requests)[:2]) < 0.9


def test_a_traffic_of_short_ones_is_the_mix_without_its_long_ones() -> None:
    def sizes(traffic: SchedulingTraffic) -> list[int]:
        return [request.prompt_tokens for request in traffic.requests(0.5, 3, 4_000)]

    long = [size for size in sizes(LAPS) if size > 2_048]
    assert 0.04 <= len(long) / 4_000 <= 0.06
    assert max(sizes(LAPS_SHORT)) <= 2_048
