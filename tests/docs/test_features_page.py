"""`docs/contributing/features.md`: each feature lies where it says, and names a row that exists."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing" / "features.md").read_text(encoding="utf-8")
FEATURES = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines() if "| `" in line]


@pytest.mark.parametrize(("folders", "loss"), [row[1:] for row in FEATURES], ids=[row[0] for row in FEATURES])
def test_feature_names_its_folders_and_what_would_be_lost(folders: str, loss: str) -> None:
    goals = yaml.safe_load((ROOT / "bench" / "goals.yaml").read_text(encoding="utf-8"))
    metrics = {goal["metric"] for rows in goals.values() for goal in rows}
    assert [path for path in re.findall("`(.*?)`", folders) if not (ROOT / path).exists()] == []
    assert (loss.strip("`") in metrics) if loss.startswith("`") else loss.endswith(".")
