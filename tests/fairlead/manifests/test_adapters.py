"""ModelAdapters in manifests: what lint notes about them."""

from pathlib import Path

import pytest

from fairlead.limits import Limits
from fairlead.manifests.loader import Manifests, combine_texts, load_manifests
from fairlead_cli.manifest_lint import LintReport, lint_paths

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "adapters" / "cluster.yaml"
MODEL = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://a/b", servedNames: [org/tiny]}
  adapters: {claimNames: [loras]}
  pools: [{acceleratorClassName: nvidia-l4}]
"""
ADAPTER = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelAdapter
metadata: {name: sql}
spec:
  base: tiny
  source: "pvc:loras/sql"
  servedNames: [acme/sql]
"""


def loaded(*texts: str) -> Manifests:
    combined, problems = combine_texts([("f", "---\n".join(texts))], limits=Limits())
    assert problems == []
    return combined


def test_example_has_adapters_of_one_model() -> None:
    manifests = load_manifests([EXAMPLE])
    assert [adapter.key for adapter in manifests.adapters] == ["chat/sql", "chat/legal", "chat/support"]
    assert lint_paths([str(EXAMPLE)]) == LintReport([], [], [f"{EXAMPLE}: ok, 1 ModelDeployment, 3 ModelAdapters"])


@pytest.mark.parametrize(
    ("old", "new", "field", "note", "fix"),
    [
        ("base: tiny", "base: tny", "spec.base", "no ModelDeployment here is called tny", "leave it if the base is in another file"),
        ("pvc:loras", "pvc:other", "spec.source",
         "the engines of tiny do not mount the claim other: add it to its spec.adapters.claimNames",
         "correct the adapter or its base"),
        ("acme/sql", "org/tiny", "spec.servedNames", "clients do not reach the adapter by org/tiny: default/tiny has it",
         "remove it, or rename one"),
    ],
)  # fmt: skip
def test_lint_notes_what_a_cluster_would_show(old: str, new: str, field: str, note: str, fix: str) -> None:
    (problem,) = loaded(MODEL, ADAPTER.replace(old, new)).notes
    assert (problem.field, problem.message, problem.fix) == (field, f"note: {note}", fix)
