"""The memory that objects of one namespace take in the operator, and what it keeps of them."""

import json
import tracemalloc
from typing import Any

import pytest
from pydantic import ValidationError

from fairlead.api.spec.pools import MAX_TEMPLATES_VALUES
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.fleet.labels import FIELD_MANAGER
from fairlead_operator.controller.apply_plan import PruneGuard, make_plan
from fairlead_operator.controller.revisions import stored_revisions
from fairlead_operator.kube.object_trimming import trim_child, trim_model, trim_pod
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, child_key, with_ownership

MODEL = {"kind": "ModelDeployment", "metadata": {"name": "qwen", "namespace": "chat", "uid": "u1"}}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "qwen-main",
        "labels": {"fairlead.io/pool": "main"},
        "annotations": {"fairlead.io/render": "x"},
    },
    "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "engine", "env": []}]}}},
}


def kept_bytes(manifest: dict[str, Any], trim: Any) -> int:
    """Returns the memory that a trimmed object takes after it was decoded."""
    text = json.dumps(manifest)
    tracemalloc.start()
    try:
        kept = trim(json.loads(text))
        assert kept
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def owned(manifest: dict[str, Any], version: int = 7) -> dict[str, Any]:
    whole = with_ownership(manifest, MODEL)
    return {**whole, "metadata": {**whole["metadata"], "uid": "d1", "resourceVersion": str(version)}}


def large(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the Deployment after an editor has added 60,000 variables to it."""
    whole = json.loads(json.dumps(owned(manifest)))
    whole["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": f"A{number}"} for number in range(60_000)]
    whole["metadata"]["managedFields"] = [
        {"manager": "kubectl", "operation": "Update", "fieldsV1": {f"f:{number}": {} for number in range(9_000)}},
        {"manager": "fairlead-autoscaler", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
    ]
    return whole


def test_large_labelled_objects_of_a_namespace_take_little_memory() -> None:
    assert kept_bytes(large(DEPLOYMENT), trim_child) < 20_000
    service = {"kind": "Service", "metadata": {"name": "s", "labels": {f"l{number}": "" for number in range(30_000)}}}
    assert kept_bytes(service, trim_child) < 20_000


def test_revisions_of_large_models_take_no_more_memory_than_their_bytes() -> None:
    pools = [{"name": f"p{number}", "template": {"spec": {"x": [{}] * 3_000}}} for number in range(15)]
    revision = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": "r", "annotations": {MODEL_REVISION_ANNOTATION: "h"}},
        "revision": 3,
        "data": {"spec": {"pools": pools}},
    }
    assert kept_bytes(revision, trim_child) < 250_000  # decoded it takes three megabytes
    (stored,) = stored_revisions([trim_child(trim_child(revision))])
    assert (stored.number, stored.hash, stored.spec) == (3, "h", {"pools": pools})


def test_templates_of_many_pools_of_a_model_have_a_bound_together() -> None:
    pools: list[dict[str, Any]] = [
        {"name": f"p{number}", "template": {"spec": {"x": [{}] * 3_000}}} for number in range(15)
    ]
    for pool in pools:
        pool["acceleratorClassName"] = "l4"
    model = {"kind": "ModelDeployment", "metadata": {"name": "qwen"}, "spec": {"pools": [*pools, {"name": "last"}]}}
    assert kept_bytes(model, trim_model) < 100_000
    trimmed = trim_model(model)
    assert trimmed["spec"]["pools"][-1] == {"name": "last"}
    assert trim_model(trimmed) == trimmed
    with pytest.raises(ValidationError, match="4096 values"):
        ModelDeploymentSpec.model_validate(
            {"model": {"uri": "hf://a/b"}, "engine": {"type": "VLLM"}, **trimmed["spec"]}
        )
    with pytest.raises(ValidationError, match=f"more than {MAX_TEMPLATES_VALUES} values"):
        ModelDeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}, "engine": {"type": "VLLM"}, "pools": pools})
    few = {**model, "spec": {"pools": pools[:2]}}
    assert trim_model(few)["spec"]["pools"] == pools[:2]


def test_a_model_keeps_its_last_author_by_its_field_managers() -> None:
    claimed = {"fairlead.io/changed-by": "ann@laptop", "other": "x"}
    metadata = {"name": "qwen", "annotations": claimed}
    entries = [("kubectl", "2027-01-15T08:00:00Z"), ("fairlead-cli", "2027-01-15T08:01:00Z")]
    for count, author in ((1, "kubectl"), (2, "ann@laptop (fairlead-cli)")):
        fields = [{"manager": name, "time": time} for name, time in entries[:count]]
        trimmed = trim_model({"metadata": {**metadata, "managedFields": fields}})
        assert trimmed["metadata"]["annotations"] == {"fairlead.io/changed-by": author}
        assert trim_model(trimmed) == trimmed


def test_pod_with_thousands_of_labels_takes_little_memory() -> None:
    labels = {f"l{number}": "" for number in range(30_000)}
    metadata = {
        "name": "p",
        "labels": {**labels, "fairlead.io/model": "qwen"},
        "finalizers": [f"a/{n}" for n in range(9_000)],
    }
    pod = {"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}}
    assert kept_bytes(pod, trim_pod) < 20_000
    assert trim_pod(pod)["metadata"] == {"name": "p", "labels": {"fairlead.io/model": "qwen"}, "annotations": {}}


def test_workload_that_others_made_too_large_is_not_written_in_each_pass() -> None:
    live = trim_child(large(DEPLOYMENT))
    assert live["spec"] == {"replicas": 2}
    children = {child_key(live): live}
    wanted = {**DEPLOYMENT, "spec": {"template": DEPLOYMENT["spec"]["template"]}}  # type: ignore[index]
    kept = trim_child(large(wanted))
    assert make_plan(MODEL, [wanted], {child_key(kept): kept}, PruneGuard()).is_empty
    plan = make_plan(MODEL, [{**wanted, "spec": {"template": {}}}], children, PruneGuard())
    assert [step.reason for step in plan.steps] == ["it is different"]
    assert "replicas" not in plan.steps[0].manifest["spec"], "the autoscaler owns the number"


def test_child_as_the_operator_makes_it_is_kept_whole() -> None:
    child = owned(DEPLOYMENT)
    child["metadata"]["managedFields"] = [{"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {}}]
    kept = trim_child(child)
    assert kept["spec"] == DEPLOYMENT["spec"]
    assert "managedFields" not in kept["metadata"]
