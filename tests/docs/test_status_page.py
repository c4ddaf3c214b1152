"""`docs/status.md`: every record that it names exists and holds."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
RECORDS = sorted(set(re.findall(r"`(bench/results/[\w-]+\.json)`", PAGE)))


@pytest.mark.parametrize("name", RECORDS)
def test_record_exists(name: str) -> None:
    record = json.loads((ROOT / name).read_text(encoding="utf-8"))
    assert record.get("holds", True) is True
    parts = {name: part for name, part in record.get("parts", {}).items() if isinstance(part, dict)}
    failed = [name for name, part in parts.items() if not part.get("held", True)]
    assert all(f"The part `{part}` did not hold" in PAGE for part in failed)
