"""Tests of the control loop with the real rendering: upgrade of the operator, pause and undo."""

from typing import Any

import pytest

from fairlead.api.spec.engine import EngineType
from fairlead_operator.object_metadata import UNDO_ANNOTATION
from fairlead_operator.render import InstallationDefaults, render_model
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest


def install(harness: OperatorHarness, image: str) -> None:
    """Starts the operator of a release whose chart has this image."""
    harness.render, harness.installation = render_model, InstallationDefaults({EngineType.SIM: image})
    harness.restart()


def pods(harness: OperatorHarness) -> dict[str, Any]:
    return {
        deployment["metadata"]["name"]: deployment["spec"]["template"]
        for deployment in harness.kube.objects_of("Deployment")
    }


def image(harness: OperatorHarness) -> str:
    (template,) = pods(harness).values()
    return str(template["spec"]["containers"][0]["image"])


def args(harness: OperatorHarness) -> str:
    (template,) = pods(harness).values()
    return str(template["spec"]["containers"][0])


@pytest.fixture
def running(harness: OperatorHarness) -> OperatorHarness:
    install(harness, "sim:1")
    harness.kube.put(model_manifest())
    harness.run_until_idle()
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    return harness


def test_upgrade_writes_nothing_and_restarts_no_engine(running: OperatorHarness) -> None:
    before = pods(running)
    running.kube.writes.clear()
    install(running, "sim:2")
    running.run_until_idle()
    assert (pods(running), running.kube.writes) == (before, [])
    running.edit(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 5}])
    running.run_until_idle()
    assert pods(running) == before
    running.edit(engine={"type": "Sim", "args": ["--max-num-seqs=3"]})
    running.run_until_idle()
    assert image(running) == "sim:2"


def test_pause_holds_pods_and_passes_replica_counts(running: OperatorHarness) -> None:
    before = pods(running)
    change = {"engine": {"type": "Sim", "args": ["--max-num-seqs=3"]}}
    five = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 5}]
    running.edit(**change, pools=five, rollout={"paused": True})
    running.run_until_idle()
    assert pods(running) == before
    assert running.status()["ready"] == "5/5"
    assert running.conditions() == {"Ready": ("True", "AllReady"), "Reconciling": ("True", "Paused")}
    running.edit(**change, pools=five, rollout={"paused": False})
    running.run_until_idle()
    assert "--max-num-seqs=3" in args(running)
    assert running.conditions() == {"Ready": ("True", "AllReady")}
    assert [event.reason for event in running.events if event.reason in ("Paused", "RolloutStarted")] == [
        "Paused",
        "RolloutStarted",
    ]


def test_undo_reverts_without_editing_the_spec_until_removed(running: OperatorHarness) -> None:
    running.edit(engine={"type": "Sim", "args": ["--max-num-seqs=3"]})
    running.run_until_idle()
    requested = model_manifest(engine={"type": "Sim", "args": ["--max-num-seqs=3"]})
    requested["metadata"]["annotations"] = {UNDO_ANNOTATION: "1/2"}
    generation = running.kube.put(requested, "kubectl")["metadata"]["generation"]
    running.run_until_idle()
    assert "--max-num-seqs=3" not in args(running)
    assert "asks for revision 1" in running.message("Ready")
    assert running.conditions() == {"Ready": ("True", "AllReady")}
    assert running.workload("ModelDeployment")["metadata"]["generation"] == generation
    running.edit(engine={"type": "Sim", "args": ["--max-num-seqs=4"]})  # a new spec ends the undo
    running.run_until_idle()
    assert "--max-num-seqs=4" in args(running)
    assert sorted(record["revision"] for record in running.kube.objects_of("ControllerRevision")) == [1, 2, 3]


def test_every_child_has_owner_labels_and_workload_revision(running: OperatorHarness) -> None:
    uid = running.workload("ModelDeployment")["metadata"]["uid"]
    for kind in ("Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "ControllerRevision"):
        child = running.workload(kind)
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [uid]
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "fairlead"
        assert child["metadata"]["labels"]["fairlead.io/model"] == "qwen"
