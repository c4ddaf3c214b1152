"""Results of the tests on a cluster, written to out/e2e.json, and by ``make e2e LOAD=1`` to
bench/results/e2e.json.

Readers compare times with the goals, never a test: a machine with other work would fail it.
"""

import json
import os
from pathlib import Path
from typing import Any

from fairlead_testing.reports import ReportLine, commit, lines_as_json, machine

ROOT = Path(__file__).parents[3]
FULL = os.environ.get("FAIRLEAD_E2E", "") == "full"
REPORTS = ROOT / "bench" / "results" if FULL else ROOT / "out"


def record_result(part: str, lines: list[ReportLine], *, into: str = "e2e", **figures: Any) -> None:
    """Add one part to the report of this name; its parts of another machine, or of another state of
    the sources, are dropped."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{into}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    head = {"machine": machine(), "commit": commit(ROOT)}
    if {name: report.get(name) for name in head} != head:
        report = head | {"full": FULL, "holds": True, "parts": {}}
    report["parts"][part] = {**figures, "verdict": lines_as_json(lines)}
    report["parts"] = dict(sorted(report["parts"].items()))
    report["holds"] = all(line["holds"] for one in report["parts"].values() for line in one["verdict"])
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
