"""A change with `rollout.canary`: it is tried, then promoted or taken back."""

import pytest

from fairlead.kube.resources import Manifest, annotations_of, labels_of
from fairlead_operator.canary.judge import Judgement, Measure, Verdict
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, UNDO_ANNOTATION
from fairlead_operator.render import InstallationDefaults, render_model
from fairlead_testing.kube.operator_harness import NAMESPACE, OperatorHarness, model_manifest

CANARY = {"canary": {"steps": [10, 50], "observe": "10m", "onMiss": "Rollback"}}
PROMOTE = Judgement(Verdict.PROMOTE, "no difference found in 40 requests", None, 40)
MISSED = Judgement(Verdict.ROLLBACK, "TPOT 26 ms instead of 20 ms on average (+30%)", Measure.TPOT, 400)


def started(rollout: dict[str, object] | None = None, replicas: int = 4) -> OperatorHarness:
    """Returns a model that runs, and whose image has just changed."""
    here = OperatorHarness()
    pools = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": replicas}]
    for image in ("engine:1", "engine:2"):
        here.edit(engine={"type": "Sim", "image": image}, pools=pools, rollout=rollout or CANARY)
        here.run_until_idle()
    return here


def workloads(here: OperatorHarness) -> dict[str, Manifest]:
    return {labels_of(workload)["fairlead.io/pool"]: workload for workload in here.kube.objects_of("Deployment")}


def images(here: OperatorHarness) -> dict[str, tuple[str, int]]:
    """Returns image and replicas of each pool."""
    return {
        pool: (workload["spec"]["template"]["spec"]["containers"][0]["image"], workload["spec"]["replicas"])
        for pool, workload in workloads(here).items()
    }


def decide(here: OperatorHarness, judgement: Judgement) -> None:
    """Runs one pass with a judgement, and all that follow without one."""
    here.canary_judgement = judgement
    here.reconcile()
    here.canary_judgement = None
    here.run_until_idle()


def canary(here: OperatorHarness) -> tuple[str, int]:
    state = here.status()["canary"]
    return state["phase"], state["weight"]


def test_a_change_runs_on_one_instance_of_its_own_first() -> None:
    here = started()
    assert images(here) == {"main": ("engine:1", 4), "main.canary": ("engine:2", 1)}
    assert canary(here) == ("Observing", 10)
    assert here.conditions()["CanaryHealthy"] == ("Unknown", "Observing")
    assert here.conditions()["Ready"][0] == "True"
    assert here.conditions()["Reconciling"] == ("True", "RollingOut")


def test_it_gets_no_conversation_before_it_is_ready() -> None:
    here = OperatorHarness()
    for image in ("engine:1", "engine:2"):
        here.edit(engine={"type": "Sim", "image": image}, rollout=CANARY)
        here.run_until_idle(with_controllers=image == "engine:1")
    assert "main.canary" in images(here)
    assert canary(here) == ("Starting", 0)


def test_corrected_canary_replaces_instances_that_never_started() -> None:
    here = OperatorHarness(render=render_model, installation=InstallationDefaults({}))
    for image in ("engine:1", "engine:wrong", "engine:2"):
        here.edit(engine={"type": "Sim", "image": image}, rollout=CANARY)
        here.run_until_idle()
        if image == "engine:wrong":
            workload = workloads(here)["main.canary"]
            marks = {"fairlead.io/revision": annotations_of(workload)["fairlead.io/revision"]}
            pod = {"name": "failed", "namespace": NAMESPACE, "labels": {**labels_of(workload), **marks}}
            here.kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "status": {}}, "kubelet")
    rolling = {pool: one["spec"]["strategy"]["rollingUpdate"] for pool, one in workloads(here).items()}
    assert {pool: one["maxUnavailable"] for pool, one in rolling.items()} == {"main": 0, "main.canary": 1}


def test_a_healthy_one_is_promoted_step_by_step() -> None:
    here = started()
    decide(here, PROMOTE)
    assert canary(here) == ("Observing", 50)
    assert images(here) == {"main": ("engine:1", 4), "main.canary": ("engine:2", 2)}
    decide(here, PROMOTE)
    assert canary(here) == ("Promoted", 50)
    assert images(here) == {"main": ("engine:2", 4)}
    assert here.conditions()["CanaryHealthy"] == ("True", "Promoted")
    assert "Reconciling" not in here.conditions()
    assert [event.reason for event in here.events if event.reason.startswith("Canary")] == [
        "CanaryStarting",
        "CanaryObserving",
        "CanaryObserving",
        "CanaryPromoted",
    ]


def test_its_instances_serve_until_the_earlier_ones_are_replaced() -> None:
    here = started({"canary": {"steps": [10]}})
    here.canary_judgement = PROMOTE
    here.reconcile()
    here.canary_judgement = None
    here.run_until_idle(with_controllers=False)
    assert images(here) == {"main": ("engine:2", 4), "main.canary": ("engine:2", 1)}
    here.run_controllers()
    here.run_until_idle()
    assert images(here) == {"main": ("engine:2", 4)}


def test_a_worse_one_is_rolled_back_and_not_tried_again() -> None:
    here = started()
    decide(here, MISSED)
    assert images(here) == {"main": ("engine:1", 4)}
    assert canary(here) == ("RolledBack", 0)
    assert here.conditions()["CanaryHealthy"] == ("False", "TPOTMissed")
    assert here.message("CanaryHealthy") == "revision 2 has TPOT 26 ms instead of 20 ms on average (+30%)"
    assert "revision 1 runs on; revision 2 has TPOT" in here.message("Ready")
    event = next(event for event in here.events if event.reason == "CanaryRolledBack")
    assert (str(event.type), event.note) == ("Warning", "Revision 2 has TPOT 26 ms instead of 20 ms on average (+30%)")
    here.restart()
    here.run_until_idle()
    assert images(here) == {"main": ("engine:1", 4)}


def test_another_change_is_tried_after_a_rollback() -> None:
    here = started(replicas=2)
    decide(here, MISSED)
    here.edit(engine={"type": "Sim", "image": "engine:3"}, rollout=CANARY)
    here.run_until_idle()
    assert images(here) == {"main": ("engine:1", 2), "main.canary": ("engine:3", 1)}
    assert canary(here) == ("Observing", 10)


def test_a_pause_on_a_miss_leaves_the_decision_to_people() -> None:
    here = started({"canary": {"steps": [10], "onMiss": "Pause"}})
    decide(here, MISSED)
    assert canary(here) == ("Paused", 10)
    assert here.conditions()["CanaryHealthy"] == ("False", "TPOTMissed")
    decide(here, PROMOTE)
    assert canary(here) == ("Paused", 10)


@pytest.mark.parametrize("judgement", [None, MISSED])
def test_promoted_by_hand(judgement: Judgement | None) -> None:
    here = started()
    if judgement is not None:
        decide(here, judgement)
    annotate(here, "2/2")
    assert images(here) == {"main": ("engine:2", 4)}
    assert canary(here)[0] == "Promoted"


def test_ended_by_hand() -> None:
    here = started()
    annotate(here, "1/2")
    assert images(here) == {"main": ("engine:1", 4)}
    assert canary(here) == ("RolledBack", 0)
    assert here.conditions()["CanaryHealthy"] == ("False", "EndedByHand")

    annotate(here, None)
    assert canary(here) == ("Observing", 10)


def test_a_paused_rollout_holds_the_canary_where_it_is() -> None:
    here = started()
    here.edit(
        engine={"type": "Sim", "image": "engine:2"},
        pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 4}],
        rollout={**CANARY, "paused": True},
    )
    decide(here, MISSED)
    assert canary(here) == ("Observing", 10)
    assert "main.canary" in images(here)


def test_a_first_revision_has_no_canary() -> None:
    here = OperatorHarness()
    here.edit(rollout=CANARY)
    here.run_until_idle()
    assert list(workloads(here)) == ["main"]
    assert "canary" not in here.status()


def test_only_the_canary_has_the_hash_of_the_new_revision() -> None:
    here = started()
    hashes = {pool: annotations_of(workload)[MODEL_REVISION_ANNOTATION] for pool, workload in workloads(here).items()}
    assert hashes["main"] != hashes["main.canary"] == here.status()["canary"]["hash"]


def annotate(here: OperatorHarness, value: str | None) -> None:
    """Names a revision as `fairlead rollout` does; None removes the annotation."""
    (model,) = here.kube.objects_of("ModelDeployment")
    written = model_manifest(**model["spec"])
    written["metadata"]["annotations"] = {} if value is None else {UNDO_ANNOTATION: value}
    here.kube.put(written, "kubectl")
    here.run_until_idle()
