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
    assert all(part.get("held", True) for part in record.get("parts", {}).values() if isinstance(part, dict))


def test_what_was_never_run_live_has_no_record() -> None:
    """The page says that SGLang and GPUs were never run; a record of either must change it."""
    engines = (ROOT / "bench" / "results").glob("*.json")
    recorded = [path.name for path in engines if re.match(r"(sglang|gpu|cuda)", path.stem)]
    assert "**SGLang, live**" in PAGE
    assert "**GPUs or other accelerators**" in PAGE
    assert recorded == []
