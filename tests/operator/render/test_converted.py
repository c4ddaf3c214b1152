"""Converted manifests render the pods of the earlier ones, so that no engine restarts."""

from pathlib import Path

import pytest
import yaml

from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.manifests.convert import convert_document, convert_spec
from fairlead_operator.controller.revisions import revision_hash, with_current_numbers
from fairlead_operator.object_metadata import json_digest
from fairlead_operator.render import CURRENT_VERSION, render_model
from fairlead_testing.kube.render_cases import default_context, golden_text

FOLDER = Path(__file__).parent
EARLIER = sorted(path.name for path in (FOLDER / "earlier").glob("*.yaml"))


@pytest.mark.parametrize("case", EARLIER)
def test_a_converted_model_renders_the_same_bytes(case: str) -> None:
    found = [convert_document(one).document for one in yaml.safe_load_all((FOLDER / "earlier" / case).read_text())]
    classes = [AcceleratorClass.model_validate(one) for one in found if one["kind"] == "AcceleratorClass"]
    (model,) = (ModelDeployment.model_validate(one) for one in found if one["kind"] == "ModelDeployment")
    rendered = render_model(model, {one.metadata.name: one for one in classes}, default_context())
    golden = (FOLDER / "golden" / f"v{CURRENT_VERSION}" / case).read_text(encoding="utf-8")
    assert golden_text(rendered.manifests) == golden


def earlier_hash(spec: dict[str, object]) -> str:
    """The hash as release 0.1 computed it."""
    unseen = ("replicas", "autoscaling", "rollout", "objectives", "routing")
    rest = {name: value for name, value in spec.items() if name not in unseen}
    pools = [{name: value for name, value in pool.items() if name != "replicas"} for pool in spec.get("pools") or []]  # type: ignore[attr-defined]
    drain = (spec.get("rollout") or {}).get("drain")  # type: ignore[attr-defined]
    usual = {} if drain in (None, "5m") else {"drain": drain}
    return json_digest({**rest, **usual, "pools": pools})


@pytest.mark.parametrize("case", EARLIER)
def test_a_converted_spec_is_the_same_revision(case: str) -> None:
    for one in yaml.safe_load_all((FOLDER / "earlier" / case).read_text()):
        if one["kind"] == "ModelDeployment":
            assert revision_hash(convert_spec(one["spec"])) == earlier_hash(one["spec"])


def test_an_undo_to_a_revision_in_earlier_words_runs_it_in_the_words_of_today() -> None:
    old = {
        "model": {"source": "hf://a/b"},
        "pools": [{"accelerator": "cpu", "replicas": {"min": 1, "max": 2}}],
        "rollout": {"drain": "1m"},
    }
    present = {
        "model": {"uri": "hf://a/c"},
        "pools": [{"acceleratorClassName": "cpu", "minReplicas": 3}],
        "slo": {"ttft": "1s"},
        "rollout": {"drainTimeout": "2m", "paused": True},
    }
    assert with_current_numbers(old, present) == {
        "model": {"uri": "hf://a/b"},
        "pools": [{"acceleratorClassName": "cpu", "minReplicas": 3}],
        "slo": {"ttft": "1s"},
        "rollout": {"drainTimeout": "1m", "paused": True},
    }
