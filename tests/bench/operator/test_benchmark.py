"""The operator benchmark's rows carry exactly the goals that are checked in, and so does the run
that is committed."""

from collections import Counter

from fairlead_bench.operator.benchmark import BatchFigures, OperatorFigures, reads, rows, writes
from fairlead_bench.results import load_goals

GOALS = load_goals("operator")


def figures(cpu_seconds: float = 4.0) -> OperatorFigures:
    crowd = BatchFigures(models=1_000, done=1_000, seconds=9.0, cpu_seconds=cpu_seconds, writes=6_000, reads=1_000)
    return OperatorFigures([0.02, 0.03, 0.9], crowd, crowd, 0, 0.1, 20, 0, 60.0, 150.0)


def test_every_goal_has_a_row() -> None:
    assert {row.metric: row.goal for row in rows(OperatorFigures()) if row.goal} == GOALS
    assert not [row for row in rows(OperatorFigures()) if row.goal and row.holds]


def test_a_run_within_the_bar_holds_and_one_beyond_it_does_not() -> None:
    assert all(row.holds for row in rows(figures()))
    slow = [row.metric for row in rows(figures(5.0)) if not row.holds]
    assert slow == [metric for metric in GOALS if metric.startswith("CPU")]


def test_the_benchmarks_own_writes_and_events_are_not_counted() -> None:
    asked = Counter(
        {
            ("APPLY", "modeldeployments", ""): 1,
            ("APPLY", "modeldeployments", "status"): 2,
            ("PATCH", "modeldeployments", ""): 4,
            ("POST", "deployments", ""): 8,
            ("POST", "events", ""): 16,
            ("GET", "services", ""): 32,
            ("PATCH", "leases", ""): 64,
        }
    )
    assert (writes(asked), reads(asked)) == (14, 32)
