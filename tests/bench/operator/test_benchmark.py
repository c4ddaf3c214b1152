"""The operator benchmark's rows carry exactly the goals that are checked in, and so does the run
that is committed."""

import json
from collections import Counter
from pathlib import Path

from fairlead_bench.operator.measurement import BatchFigures, OperatorFigures
from fairlead_bench.operator.result_rows import rows
from fairlead_bench.operator.subject_process import BASELINE, FAIRLEAD, reads, writes
from fairlead_bench.results import load_goals

BENCH = Path(__file__).parents[3] / "bench"

GOALS = load_goals("operator")


def figures(cpu_seconds: float = 4.0) -> OperatorFigures:
    crowd = BatchFigures(models=1_000, done=1_000, seconds=9.0, cpu_seconds=cpu_seconds, writes=6_000, reads=1_000)
    return OperatorFigures([0.02, 0.03, 0.9], crowd, crowd, 0, 0.1, 20, 0, 60.0, 150.0)


def test_every_goal_has_a_row() -> None:
    assert {row.metric: row.goal for row in rows({}) if row.goal} == GOALS
    assert not [row for row in rows({}) if row.goal and row.holds]


def test_a_run_within_the_bar_holds_and_one_beyond_it_does_not() -> None:
    assert all(row.holds for row in rows({FAIRLEAD: figures(), BASELINE: figures(9.0)}))
    slow = [row.metric for row in rows({FAIRLEAD: figures(5.0)}) if not row.holds]
    assert slow == [metric for metric in GOALS if metric.startswith("CPU")]


def test_the_two_stand_side_by_side() -> None:
    found = {row.metric: row for row in rows({FAIRLEAD: figures(), BASELINE: figures(8.0)})}
    row = found[f"CPU per model created | beside {BASELINE}"]
    assert (row.value, row.versus_value, row.ratio, row.goal) == (4.0, 8.0, 0.5, None)


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


def test_the_committed_run_has_every_goal_and_both_subjects() -> None:
    content = json.loads((BENCH / "results" / "operator.json").read_text())
    assert set(content) == {"machine", "versions", "seed", "rows", "load_average_before", "figures"}
    assert {row["metric"]: row["goal"] for row in content["rows"] if row["goal"]} == GOALS
    assert set(content["figures"]) == {FAIRLEAD, BASELINE}
    assert content["figures"][FAIRLEAD]["created"]["models"] == 1_000
