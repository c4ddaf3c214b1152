"""The loop with the real rendering: what an upgrade of the operator, a pause and an undo do to engines' pods."""

from typing import Any

import pytest

from fairlead.api import EngineKind
from fairlead_operator.object_metadata import UNDO_ANNOTATION
from fairlead_operator.render import InstallationDefaults
from fairlead_operator.rendering import renderer


def install(lab: Any, image: str) -> None:
    """The operator of a release whose chart names this image; a new process."""
    lab.render = renderer(InstallationDefaults({EngineKind.SIM: image}), None)
    lab.restart()


def pods(lab: Any) -> dict[str, Any]:
    return {one["metadata"]["name"]: one["spec"]["template"] for one in lab.kube.objects_of("Deployment")}


def image(lab: Any) -> str:
    (template,) = pods(lab).values()
    return str(template["spec"]["containers"][0]["image"])


def args(lab: Any) -> str:
    (template,) = pods(lab).values()
    return str(template["spec"]["containers"][0])


@pytest.fixture
def running(lab: Any, a_model: Any) -> Any:
    install(lab, "sim:1")
    lab.kube.put(a_model())
    lab.run_until_idle()
    assert lab.conditions() == {"Ready": ("True", "AllReady")}
    return lab


def test_an_upgrade_writes_nothing_and_restarts_no_engine(running: Any) -> None:
    before = pods(running)
    running.kube.writes.clear()
    install(running, "sim:2")
    running.run_until_idle()
    assert (pods(running), running.kube.writes) == (before, [])
    running.edit(pools=[{"name": "main", "accelerator": "cpu", "replicas": {"min": 5}}])
    running.run_until_idle()
    assert pods(running) == before
    running.edit(engine={"kind": "sim", "args": ["--max-num-seqs=3"]})
    running.run_until_idle()
    assert image(running) == "sim:2"


def test_a_pause_holds_pods_and_lets_numbers_through_until_it_ends(running: Any) -> None:
    before = pods(running)
    change = {"engine": {"kind": "sim", "args": ["--max-num-seqs=3"]}}
    five = [{"name": "main", "accelerator": "cpu", "replicas": {"min": 5}}]
    running.edit(**change, pools=five, rollout={"paused": True})
    running.run_until_idle()
    assert pods(running) == before
    assert running.status()["ready"] == "5/5"
    assert running.conditions() == {"Ready": ("True", "AllReady"), "Reconciling": ("True", "Paused")}
    running.edit(**change, pools=five, rollout={"paused": False})
    running.run_until_idle()
    assert "--max-num-seqs=3" in args(running)
    assert running.conditions() == {"Ready": ("True", "AllReady")}
    assert [one.reason for one in running.told if one.reason in ("Paused", "RolloutStarted")] == [
        "Paused",
        "RolloutStarted",
    ]


def test_undo_goes_back_without_touching_the_spec_and_ends_with_its_annotation(running: Any, a_model: Any) -> None:
    running.edit(engine={"kind": "sim", "args": ["--max-num-seqs=3"]})
    running.run_until_idle()
    asked = a_model(engine={"kind": "sim", "args": ["--max-num-seqs=3"]})
    asked["metadata"]["annotations"] = {UNDO_ANNOTATION: "1/2"}
    generation = running.kube.put(asked, "kubectl")["metadata"]["generation"]
    running.run_until_idle()
    assert "--max-num-seqs=3" not in args(running)
    assert "asks for revision 1" in running.message("Ready")
    assert running.conditions() == {"Ready": ("True", "AllReady")}
    assert running.kube.objects_of("ModelDeployment")[0]["metadata"]["generation"] == generation
    running.edit(engine={"kind": "sim", "args": ["--max-num-seqs=4"]})  # a new spec: the undo is over
    running.run_until_idle()
    assert "--max-num-seqs=4" in args(running)
    assert sorted(one["revision"] for one in running.kube.objects_of("ControllerRevision")) == [1, 2, 3]


def test_every_child_has_one_owner_our_labels_and_names_the_revision_on_workloads(running: Any) -> None:
    uid = running.kube.objects_of("ModelDeployment")[0]["metadata"]["uid"]
    for kind in ("Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "ControllerRevision"):
        (one,) = running.kube.objects_of(kind)
        assert [owner["uid"] for owner in one["metadata"]["ownerReferences"]] == [uid]
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "fairlead"
        assert one["metadata"]["labels"]["fairlead.io/model"] == "qwen"
