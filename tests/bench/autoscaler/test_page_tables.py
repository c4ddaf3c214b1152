"""Tables of the documentation: which cells are bold, and which goals hold."""

from pathlib import Path

from fairlead_bench.autoscaler.page_tables import FAIRLEAD, GoalRow, goal_rows, judging_table, preset_table

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


def test_scenarios_that_no_preset_ran_are_no_columns() -> None:
    cell = {"attainment": 0.995, "cost": 10.0}
    table = {FAIRLEAD: {"day": cell, "drift": cell}, "wva at 0.1 (fixed)": {"drift": cell}}
    head, _, ours, _ = preset_table(table, {"wva": "WVA"}, "fixed").splitlines()
    assert head == "| controller, setting | drift |"
    assert ours == "| Fairlead | 99.5, 1.0 |"


def test_judging_runs_are_counted_and_costs_compared_where_an_optimum_is_known() -> None:
    def run(share: float, cost: float) -> dict[str, float]:
        return {"servable": share, "cost": cost}

    table = {
        FAIRLEAD: {"drift": {"7": run(0.99, 12.0), "8": run(0.98, 30.0)}, "on-off": {"9": run(0.97, 1.0)}},
        "offline optimum": {"drift": {"7": run(0.99, 10.0)}},
    }
    assert judging_table(table).splitlines()[2:] == [
        "| `drift` | 2 | 98.50% | 98.00% | 1 | 1.20 ×, 1 |",
        "| `on-off` | 1 | 97.00% | 97.00% | 1 | – |",
    ]


def test_goal_without_a_measurement_is_neither_held_nor_missed() -> None:
    assert GoalRow("a", "1", True).line() == "| a | 1 | yes |\n"
    assert GoalRow("a", "1", False).line() == "| a | 1 | **no** |\n"
    assert GoalRow("a", "–", None).line() == "| a | – | not measured |\n"


def test_every_goal_has_its_row_once() -> None:
    goals = [row.goal for row in goal_rows(RESULTS)]
    assert len(goals) == len(set(goals))
    assert len(goals) > 20
