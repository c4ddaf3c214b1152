"""What the tests on a cluster measured, written down: out/e2e.json, and bench/results/e2e.json by ``make e2e-load``.

Times are compared with the bar where somebody reads them, never in a test: a machine with other work would fail it for nothing.
"""

import json
import os
from pathlib import Path
from typing import Any

from fairlead.testing.reports import Line, commit, machine, verdict

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("FAIRLEAD_E2E", "") == "full"
REPORT = ROOT / "bench" / "results" / "e2e.json" if FULL else ROOT / "out" / "e2e.json"


def record(part: str, lines: list[Line], **figures: Any) -> None:
    """Add one part to the report; parts of another machine, or of another state of the sources, are dropped."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    head = {"machine": machine(), "commit": commit(ROOT)}
    if {name: report.get(name) for name in head} != head:
        report = head | {"full": FULL, "holds": True, "parts": {}}
    report["parts"][part] = {**figures, "verdict": verdict(lines)}
    report["parts"] = dict(sorted(report["parts"].items()))
    report["holds"] = all(line["holds"] for one in report["parts"].values() for line in one["verdict"])
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
