"""Goals of benchmarks: committed results carry those that are checked in; thresholds are met."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead_bench.results import load_goals

RESULTS = Path(__file__).parents[2] / "bench" / "results"
MISSED = {
    "fairness": [
        "p99 TTFT of the steady tenants: fair ÷ alone",
        "p99 TTFT of the steady tenants: steady ones Interactive ÷ alone",
    ],
    "hardening": ["KV events of a hostile engine: CPU time of a slice of the indexer, at most"],
}
"""Rows that are known not to hold."""
THRESHOLDS = ("adapters", "canary", "fairness", "fallbacks", "hardening", "large-bodies", "scheduling")
"""Benchmarks that are a nightly test: runs with thresholds, which compare no products."""
RECORDED = (*THRESHOLDS, "autoscaler", "gateways", "index", "mix", "operator", "quota", "sharing")


@pytest.mark.parametrize("name", RECORDED)
def test_committed_results_have_a_row_for_each_goal(name: str) -> None:
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    assert {row["metric"]: row["goal"] for row in rows if row["goal"] is not None} == load_goals(name)
    if name in THRESHOLDS:
        assert [row["metric"] for row in rows if not row["holds"]] == MISSED.get(name, [])


@pytest.mark.nightly
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds_hold(name: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    subprocess.run([sys.executable, "-m", "fairlead_bench", name, "--out", str(file)], check=False)
    missed = [row["metric"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if not row["holds"]]
    assert set(missed) <= set(MISSED.get(name, []))
