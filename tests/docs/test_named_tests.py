"""Pages name tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FAULTS = DOCS / "reference" / "faults.md"
EXAMPLE = DOCS / "contributing" / "style.md"
_TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
_NAMED = re.compile(r"\b(test_\w+)(…|\.py)?")


def test_every_test_that_a_page_names_exists() -> None:
    files = [path for folder in ("tests", "e2e") for path in (ROOT / folder).rglob("test_*.py")]
    known = {path.name for path in files}.union(*(_TEST.findall(path.read_text()) for path in files))
    unknown = [
        (page.name, name)
        for page in DOCS.rglob("*.md")
        if page != EXAMPLE
        for name, rest in _NAMED.findall(page.read_text())
        if not (any(one.startswith(name) for one in known) if rest == "…" else f"{name}{rest}" in known)
    ]
    assert unknown == []


def test_every_fault_names_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", FAULTS.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    assert [number for number, cell in rows if not _NAMED.search(cell)] == []
