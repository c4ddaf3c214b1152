"""The PromQL of pages: metrics and labels exist, and Prometheus accepts each query."""

import re
from pathlib import Path

import pytest

from fairlead_testing.kube.api_server import NO_CLUSTER_PROGRAMS
from fairlead_testing.kube.helm import chart_tools
from fairlead_testing.prometheus import AlertRules, expression_names

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE = DOCS / "how-to/prometheus-queries.md"
BLOCK = re.compile(r"^```promql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| ", re.MULTILINE)
QUERIES = {
    f"{path.stem}-{number}": query
    for path in sorted(DOCS.rglob("*.md"))
    for number, query in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
}
TARGET = {"namespace", "pod"}
"""Labels that Prometheus adds for the scraped pod."""


def series() -> dict[str, set[str]]:
    """Returns the labels of each series, by the tables that other tests compare with scrapes."""
    found = {}
    for page in ("metrics", "autoscaler"):
        for name, kind, labels in ROW.findall((DOCS / f"reference/{page}.md").read_text(encoding="utf-8")):
            names = set(re.findall(r"`(\w+)`", labels))
            if kind in ("histogram", "summary"):
                found |= {f"{name}_sum": names, f"{name}_count": names, f"{name}_bucket": names | {"le"}}
            else:
                found[name] = names
    return found


def test_the_guide_answers_many_questions() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert len(BLOCK.findall(guide)) >= 15
    assert len(re.findall(r"^\*\*.+\?\*\*", guide, re.MULTILINE)) >= 15


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_names_series_and_labels_that_exist(name: str) -> None:
    known, names = series(), expression_names(QUERIES[name])
    assert names.metrics
    for metric, selected in names.metrics:
        assert metric in known
        assert selected <= known[metric] | TARGET
    assert names.grouped <= TARGET.union(*(known[metric] for metric, _ in names.metrics))


def test_prometheus_accepts_each_query(tmp_path: Path) -> None:
    tools = chart_tools()
    if tools is None:
        pytest.skip(NO_CLUSTER_PROGRAMS)
    rules = [{"alert": name, "expr": query} for name, query in QUERIES.items()]
    assert "rules found" in AlertRules(tools.promtool, [{"name": "pages", "rules": rules}], tmp_path).check()
