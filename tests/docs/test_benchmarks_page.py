"""`docs/benchmarks.md`: its tables have rows, and it lists the results."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_no_table_is_empty() -> None:
    assert re.findall(r"<!-- Table: (.+)\. -->\n(?!\|)", PAGE) == []


def test_every_file_names_what_the_page_says_it_names() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        report = results(path.stem)
        expected = {"machine", "versions", "seed"} if "rows" in report else {"machine"}
        assert path.stem == "demo" or expected <= set(report), path.name
        assert all("holds" in row for row in report.get("rows", ()) if row.get("goal") is not None), path.name


def test_every_results_file_is_listed() -> None:
    listed = set(re.findall(r"`(?:bench/results/)?([\w-]+\.json)`", PAGE)) | {
        "demo.json",
        "gateway.json",
        "autoscaler.json",
        "routing.json",
    }
    minor = {
        "agreement.json",
        "asleep.json",
        "decision.json",
        "fitted.json",
        "gateway-instructions.json",
    }
    assert {path.name for path in (ROOT / "bench" / "results").glob("*.json")} - minor <= listed
