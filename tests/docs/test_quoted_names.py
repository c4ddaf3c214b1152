"""Names of limits, settings and fields that pages quote exist in the programs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("autoscaler", "bench", "cli", "fairlead", "gateway", "kvstore", "operator", "sim", "testing")
DOCS = ROOT / "docs"
OF_THEIR_TIME = DOCS / "decisions"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if OF_THEIR_TIME not in page.parents]
QUOTED = re.compile(r"`([a-z]+(?:_[a-z0-9]+)*_(?:seconds|bytes|tokens|requests|blocks|minute))`")
ELSEWHERE = re.compile(r"^(?:fairlead|llm_d|gen_ai|vllm|test)_")
"""Metrics, which `reference/metrics.md` lists, and tests."""
LISTED = DOCS / "reference" / "metrics.md"


@pytest.fixture(scope="session")
def words() -> frozenset[str]:
    """Every word of the programs' sources in lower case, and of the list of metrics."""
    names: set[str] = set(re.findall(r"\w+", LISTED.read_text(encoding="utf-8")))
    for program in PROGRAMS:
        for source in (ROOT / program).rglob("*.py"):
            names.update(re.findall(r"\w+", source.read_text(encoding="utf-8").lower()))
    return frozenset(names)


def test_quoted_limits_and_fields_exist(words: frozenset[str]) -> None:
    unknown = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in QUOTED.findall(page.read_text(encoding="utf-8"))
        if name not in words and not ELSEWHERE.match(name)
    }
    assert sorted(unknown) == []


@pytest.mark.parametrize("basis", ["mix of shapes (milp)", "mean request"])
def test_quoted_reason_of_an_allocation_is_the_programs(basis: str) -> None:
    policy = ROOT / "autoscaler" / "fairlead_autoscaler" / "core" / "sizing" / "allocation_policy.py"
    assert f"allocated by the {basis.partition(' (')[0]}" in policy.read_text(encoding="utf-8")
    assert f"`allocated by the {basis}`" in (DOCS / "concepts" / "autoscaling.md").read_text(encoding="utf-8")
