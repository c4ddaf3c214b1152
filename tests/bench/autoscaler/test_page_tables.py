"""Tables of the documentation: which cells are bold, and which goals hold."""

from pathlib import Path

from fairlead_bench.autoscaler.page_tables import FAIRLEAD, GoalRow, goal_rows, preset_table

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"


def test_share_below_the_slo_is_bold_and_costs_are_those_of_fairlead() -> None:
    table = {
        FAIRLEAD: {"day 1": {"attainment": 0.995, "cost": 10.0}},
        "wva at 0.1 (fixed)": {"day 1": {"attainment": 0.9, "cost": 8.0}},
        "wva at 0.5 (best)": {"day 1": {"attainment": 0.992, "cost": 15.0}},
    }
    titles = {"wva": "WVA", "hpa": "HPA"}
    head, rule, *rows = preset_table(table, titles, "fixed").splitlines()
    assert (head, rule) == ("| controller, setting | day |", "|---|---:|")
    assert rows == ["| Fairlead | 99.5, 1.0 |", "| WVA, 0.1 | **90.0**, 0.8 |"]
    assert preset_table(table, titles, "best", digits=2).splitlines()[-1] == "| WVA, 0.5 | 99.2, 1.50 |"


def test_goal_without_a_measurement_is_neither_held_nor_missed() -> None:
    assert GoalRow("a", "1", True).line() == "| a | 1 | yes |\n"
    assert GoalRow("a", "1", False).line() == "| a | 1 | **no** |\n"
    assert GoalRow("a", "–", None).line() == "| a | – | not measured |\n"


def test_every_goal_has_its_row_once() -> None:
    goals = [row.goal for row in goal_rows(RESULTS)]
    assert len(goals) == len(set(goals))
    assert len(goals) > 20
