"""The routing benchmark's rows carry exactly the metrics and goals that are checked in."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead_bench.results import load_goals
from fairlead_bench.routing import benchmark
from fairlead_bench.routing.benchmark import (
    Measured,
    RoutingCell,
    RoutingRows,
    geometric_mean,
    grid_rows,
    main,
    wilson_low,
)
from fairlead_cli.replay.traffic import load_traffic
from fairlead_sim.workload.traces import BUNDLED_TRACE
from fairlead_testing.pytest_hooks.nightly import shortened

FAMILIES = ("agents", "tenants", "rag", "flash-crowd", "bursty")
GOALS = load_goals("routing")


class Fixed:
    """A laboratory in which the default carries ``more`` times what all others do."""

    trace = Path("a trace")

    def __init__(self, more: float) -> None:
        self._more = more

    def __call__(self, cells: Iterable[RoutingCell]) -> dict[RoutingCell, Measured]:
        return {cell: self._found(cell) for cell in cells}

    def capacities(self, cells: Sequence[RoutingCell]) -> list[float]:
        return [self._found(cell)["capacity"] for cell in cells]

    def _found(self, cell: RoutingCell) -> Measured:
        mine = self._more if cell.preset == "dual-hash" else 1.0
        times = ("ttft_p90", "tpot_p99")
        shares = ("attainment", "worst_window")
        figures = {"capacity": 30.0 * mine, "a_minute": 400_000.0 * mine}
        return figures | dict.fromkeys(times, 1.0 / mine) | dict.fromkeys(shares, min(1.0, mine))


def fixed(more: float) -> Any:
    return Fixed(more)


def side(ttft: float, cached: float) -> dict[str, Any]:
    seconds = {"mean": ttft, "p50": ttft, "p90": ttft, "p99": ttft}
    return {
        "requests": 1,
        "errors": 0,
        "ttft_seconds": seconds,
        "itl_seconds": seconds,
        "within_objective": 1.0,
        "cached_token_share": cached,
        "load_cov": 0.0,
    }


def report() -> dict[str, Any]:
    policies = {"dual-hash": (1.0, 0.2), "round-robin": (4.0, 0.05), "least-request": (1.2, 0.05)}
    both = {name: {"live": side(*figures), "simulated": side(*figures)} for name, figures in policies.items()}
    return {"policies": both, "lag_p99_seconds": 0.021}


def test_every_goal_has_a_row_and_every_row_with_a_goal_is_checked_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "RATES", ())
    traffic = load_traffic(BUNDLED_TRACE, limit=shortened(1_000, 100), rate=benchmark.RATE, seed=0)
    monkeypatch.setattr(benchmark, "load_traffic", lambda *_, **__: traffic)
    monkeypatch.setattr(benchmark, "SECRETS", 1)
    live = tmp_path / "report.json"
    live.write_text(json.dumps(report()))
    out = tmp_path / "routing.json"
    assert main(["--only", "demo", "--live", str(live), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert set(content) == {"machine", "versions", "seed", "rows", "load_average", "seeds"}
    goals = {row["metric"]: row["goal"] for row in content["rows"] if row["goal"]}
    keys = {"metric", "value", "unit", "versus", "versus_value", "ratio", "goal", "holds"}
    assert all(set(row) == keys for row in content["rows"])
    rows = [*RoutingRows(fixed(1.0), [1, 2]).rows(), *grid_rows(fixed(1.0), [1])]
    assert goals | {row.metric: row.goal for row in rows if row.goal} == GOALS


def test_a_row_that_does_not_hold_stays_in() -> None:
    rows = {row.metric: row for row in benchmark.live_rows(report())}
    assert rows["p90 TTFT, live: dual-hash ÷ round-robin"].holds
    assert not rows["p90 TTFT, live: dual-hash ÷ least-request"].holds
    assert not rows["event-loop lag p99 of the live run"].holds
    assert rows["mean TTFT, dual-hash: live ÷ simulated"].holds


@pytest.mark.parametrize("more", [0.9, 1.4])
def test_the_bar_tells_a_better_default_from_a_worse_one(more: float) -> None:
    rows = [row for row in RoutingRows(fixed(more), [1]).rows() if row.metric in GOALS]
    compared = [row for row in rows if "default ÷" in row.metric and not row.metric.startswith("calibration")]
    assert len(compared) > 20
    assert {row.holds for row in compared} == {more > 1.0}
    (worst,) = [row for row in grid_rows(fixed(more), [1]) if row.goal]
    assert worst.holds == (more > 1.0)


def test_an_interval_is_below_its_share_and_closer_with_more_requests() -> None:
    assert wilson_low(1.0, 100) == pytest.approx(0.963, abs=0.001)
    assert wilson_low(0.9, 100) < wilson_low(0.9, 10_000) < 0.9


def test_a_geometric_mean_of_a_capacity_that_is_none_is_none() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([2.0, 0.0]) == 0.0
