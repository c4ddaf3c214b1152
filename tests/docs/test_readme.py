"""The README's table and summary pictures, compared with the pages and records behind them."""

import json
import re
from pathlib import Path

from fairlead_bench.autoscaler import summary_plot
from fairlead_bench.routing.demo_summary_plot import PICTURE, REPORT, figures_digest, panels

ROOT = Path(__file__).parents[2]


def table_with(path: Path, label: str) -> list[dict[str, str]]:
    """Returns the rows of the table that has a row of this label; the label's column is empty."""
    blocks = re.findall(r"(?:^\|.*\n)+", re.sub(r"<!--.*?-->", "", path.read_text()), re.MULTILINE)
    text = next(block for block in blocks if f"\n| {label} |".lower() in block.lower())
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_comparison_is_that_of_its_page() -> None:
    label = "Runs the engines"
    page = {row[""].lower(): row for row in table_with(ROOT / "docs/comparison.md", label)}
    shown = table_with(ROOT / "README.md", label)
    assert len(shown) == 7
    for row in shown:
        behind = page[row.pop("").lower()]
        assert row == {name: behind[name] for name in row}


def test_the_picture_of_routing_has_the_figures_of_its_record() -> None:
    report = json.loads((ROOT / REPORT).read_text())
    assert f"figures {figures_digest(panels(report))}" in (ROOT / PICTURE).read_text()
    assert f"]({PICTURE})" in (ROOT / "README.md").read_text()


def test_the_picture_of_the_autoscaler_has_every_scenario_of_its_records() -> None:
    rows = summary_plot.scenario_rows(ROOT)
    assert len(rows) == 16
    assert [len(row.unseen) for row in rows] == [20] * 16
    assert f"figures {summary_plot.figures_digest(rows)}" in (ROOT / summary_plot.PICTURE).read_text()
