"""The benchmark of an autoscaled fleet's cost: its static fleets and its rows."""

import pytest

from fairlead_bench.autoscaler import fleet_cost
from fairlead_bench.measurement_cache import Measured
from fairlead_bench.results import load_goals


def figures(cost: float, attainment: float = 0.99, *, most: float = 8.0) -> Measured:
    return {"attainment": attainment, "cost": cost, "mean": 4.2, "most": most, "moves": 3.0, "lost": 0.0}


@pytest.mark.parametrize("enough", [3, 4, 7, 8, 9, 13])
def test_the_static_fleet_is_the_smallest_that_keeps_the_share(enough: int) -> None:
    tried: list[int] = []

    def measure(size: int) -> Measured:
        tried.append(size)
        return figures(float(size), 0.99 if size >= enough else 0.9, most=float(size))

    found = fleet_cost.smallest_static(measure, figures(0.0))
    assert found["cost"] == max(enough, 4)
    assert len(tried) == len(set(tried)) <= 6


def test_rows_compare_each_rule_with_the_static_fleet_and_have_the_goal() -> None:
    by_rule = {"none": figures(7.0), "moves": figures(6.0), "Llumnix' rule": figures(9.0), "static": figures(10.0)}
    rows = {row.metric: row for row in fleet_cost.cost_rows(load_goals(fleet_cost.NAME), {"drift": by_rule})}
    assert rows["drift: cost ÷ static fleet of the same share: moves"].ratio == pytest.approx(0.6)
    assert rows["drift: cost: moves ÷ none"].ratio == pytest.approx(6.0 / 7.0)
    mean = rows["cost ÷ static fleet, geometric mean: moves"]
    assert (mean.value, mean.holds) == (pytest.approx(0.6), True)
