"""The search of the site: the first result of what readers type, and the table that orders it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.docs_search import on_post_build, search_metadata, table

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
FIRST = {
    "quickstart": "getting-started/laptop",
    "tutorial": "getting-started/laptop",
    "GPU": "getting-started/kubernetes-gpu",
    "install": "how-to/install-production",
    "helm install": "how-to/install-production",
    "air gap": "how-to/air-gap",
    "argo cd": "how-to/gitops",
    "upgrade": "how-to/upgrade",
    "rollback": "how-to/upgrade",
    "vllm flags": "how-to/vllm",
    "multi node": "how-to/multi-node",
    "lora": "how-to/adapters",
    "ollama": "how-to/external-engines",
    "rename model": "how-to/routes",
    "alias": "how-to/routes",
    "canary": "how-to/canary",
    "fallback": "how-to/fallbacks",
    "openai sdk": "how-to/call-models",
    "langchain": "how-to/call-models",
    "streaming": "how-to/call-models",
    "structured output": "how-to/call-models",
    "embeddings": "how-to/call-models",
    "timeout": "how-to/call-models",
    "claude code": "how-to/coding-agents",
    "api key": "how-to/api-keys",
    "virtual key": "how-to/api-keys",
    "oidc": "how-to/bearer-tokens",
    "rate limit": "how-to/limits-and-budgets",
    "budget": "how-to/limits-and-budgets",
    "https": "how-to/tls-and-ingress",
    "audit log": "how-to/audit",
    "HPA": "how-to/slos-and-autoscaling",
    "scale to zero": "how-to/scale-to-zero",
    "cost": "how-to/usage-and-cost",
    "grafana": "how-to/monitor",
    "prometheus": "how-to/monitor",
    "promql": "how-to/prometheus-queries",
    "opentelemetry": "how-to/trace-and-log",
    "slow": "how-to/explain-a-request",
    "429": "troubleshooting/requests-are-refused",
    "oom": "troubleshooting/model-not-ready",
    "helm values": "reference/helm-values",
    "metrics": "reference/metrics",
    "autoscaling": "concepts/autoscaling",
    "kserve": "migrate/kserve",
    "litellm": "migrate/litellm",
}
"""Queries, and the page that must come first."""


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("node") is None, reason="no node: the search of the site is JavaScript")
def test_the_page_that_answers_is_the_first_result(site: Path) -> None:
    (worker,) = (site / "9.8/assets/javascripts/workers").glob("search.*.js")
    found = subprocess.run(
        ["node", HERE / "site_search.mjs", worker, site / "9.8/search/search_index.json"],
        input=json.dumps(list(FIRST)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert {query: pages[:1] for query, pages in results.items()} == {q: [f"{page}.html"] for q, page in FIRST.items()}
    assert not any(page.startswith("source/") for pages in results.values() for page in pages)


def test_pages_and_folders_of_the_table_exist() -> None:
    boosts, words = table()["boosts"], table()["words"]
    assert [folder for folder in boosts if not (DOCS / folder).is_dir()] == ["source/"]
    assert [page for page in words if not (DOCS / page).with_suffix(".md").is_file()] == []


def test_folders_are_boosted_or_left_out() -> None:
    assert search_metadata("how-to/vllm.html") == {"boost": 2}
    assert search_metadata("decisions/index.html") == {"boost": 0.3}
    assert search_metadata("concepts/routing.html") == {}
    assert search_metadata("source/README.html") == {"exclude": True}


def test_words_belong_to_the_entry_of_the_page_itself(tmp_path: Path) -> None:
    index = tmp_path / "search" / "search_index.json"
    index.parent.mkdir()
    entries = [{"location": page + anchor} for page in table()["words"] for anchor in ("", "#next")]
    index.write_text(json.dumps({"docs": entries}))
    on_post_build({"site_dir": tmp_path})
    tagged = {entry["location"]: entry.get("tags") for entry in json.loads(index.read_text())["docs"]}
    assert tagged["how-to/routes.html"] == ["alias", "rename"]
    assert tagged["how-to/routes.html#next"] is None
    index.write_text(json.dumps({"docs": entries[2:]}))
    with pytest.raises(ValueError, match="laptop"):
        on_post_build({"site_dir": tmp_path})
