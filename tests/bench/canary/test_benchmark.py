"""The benchmark of canaries carries the goals that are checked in, and its results hold them."""

import json
from pathlib import Path

from fairlead_bench.canary.benchmark import HEALTHY, REGRESSIONS, rollback_minutes
from fairlead_bench.results import load_goals

RESULTS = Path(__file__).parents[3] / "bench" / "results" / "canary.json"


def test_the_results_have_a_row_for_each_goal_and_hold_it() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert {row["metric"]: row["goal"] for row in rows if row["goal"] is not None} == load_goals("canary")
    assert all(row["holds"] for row in rows)


def test_a_regression_is_found_between_the_first_minute_and_its_time() -> None:
    case = REGRESSIONS["TPOT 30 % higher"]
    minutes = rollback_minutes(case, 1)
    assert minutes is not None
    assert 1.0 < minutes <= case.minutes
    assert rollback_minutes(HEALTHY["the same revision"], 1) is None
