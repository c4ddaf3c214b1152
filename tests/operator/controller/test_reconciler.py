"""Tests of the control loop on a cluster in memory: its writes, status and events."""

import asyncio
import copy
from typing import Any

import pytest

from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.kube.errors import ErrorCause, Forbidden, Invalid, Unreachable
from fairlead.kube.json_decoding import ObjectList
from fairlead.kube.resources import MODEL_DEPLOYMENTS, PODS, SERVICES
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_operator.render.context import InstallationDefaults, RenderContext
from fairlead_operator.render.model import RenderedModel
from fairlead_testing.kube.manifests import manifest
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest, with_replicas


def serve_model(harness: OperatorHarness, **spec: Any) -> None:
    harness.kube.put(model_manifest(**spec))
    harness.run_until_idle()


def test_model_becomes_children_and_then_ready(harness: OperatorHarness) -> None:
    serve_model(harness)
    assert harness.names() == harness.names("Service") == ["qwen-main"]
    assert len(harness.names("ControllerRevision")) == 1
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    status = harness.status()
    assert (status["ready"], status["replicas"], status["clientName"]) == ("2/2", 2, "qwen")
    assert status["observedGeneration"] == 2  # the operator's own number in spec.replicas is a change
    assert status["selector"] == "fairlead.io/model=qwen,fairlead.io/pool=main"
    assert [event.reason for event in harness.events] == ["Created", "AllReady"]
    child = harness.workload()
    (owner,) = child["metadata"]["ownerReferences"]
    assert owner["controller"] is True
    assert owner["uid"] == harness.workload("ModelDeployment")["metadata"]["uid"]


def test_revision_and_supports_are_written_before_workloads(harness: OperatorHarness) -> None:
    serve_model(harness)
    kinds = [write.split()[1] for write in harness.kube.writes]
    assert kinds[:3] == ["ControllerRevision", "Service", "Deployment"]


def test_unchanged_model_causes_no_writes_or_reads(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.writes.clear()
    before = harness.kube.reads
    harness.reconcile()
    harness.restart()
    harness.reconcile()
    assert (harness.kube.writes, harness.kube.reads) == ([], before)


def test_starting_degraded_and_empty_states_differ(harness: OperatorHarness) -> None:
    harness.kube.put(model_manifest())
    harness.run_until_idle(with_controllers=False)
    assert harness.conditions() == {"Ready": ("False", "Starting"), "Reconciling": ("True", "Creating")}
    deployment = harness.workload()
    for ready, reason in ((1, "Degraded"), (2, "AllReady"), (0, "NoInstance")):
        harness.run_deployment(deployment, ready=ready)
        harness.run_until_idle(with_controllers=False)
        assert harness.conditions()["Ready"][1] == reason
    assert harness.events[-1].reason == "NoInstance"


def test_growth_is_no_loss_and_a_loss_is_a_warning(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.put(with_replicas("qwen-main", 6), "scaler")
    harness.run_until_idle(with_controllers=False)
    assert harness.conditions()["Ready"] == ("False", "Degraded")
    assert "Degraded" not in [event.reason for event in harness.events]
    harness.run_until_idle()
    assert "6 instances ready" in [event.note for event in harness.events]
    deployment = harness.workload()
    harness.run_deployment(deployment, ready=5)
    harness.run_until_idle(with_controllers=False)
    assert (harness.events[-1].reason, harness.events[-1].note) == ("Degraded", "Pool main has 5 of 6 ready")


def test_kubectl_scale_of_a_child_is_respected(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.put(with_replicas("qwen-main", 6), "kubectl-scale")
    harness.run_until_idle()
    deployment = harness.workload()
    assert deployment["spec"]["replicas"] == 6
    assert harness.status()["ready"] == "6/6"
    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.run_until_idle()
    deployment = harness.workload()
    assert deployment["spec"]["replicas"] == 6
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"] == ["--more"]
    owners = {
        entry["manager"]
        for entry in deployment["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert owners == {"kubectl-scale"}


def test_unobserved_foreign_replica_write_is_kept(harness: OperatorHarness) -> None:
    serve_model(harness)

    def meanwhile(write: str) -> None:
        if write.startswith("apply Deployment"):
            harness.kube.before_write = lambda _: None
            harness.kube.put(with_replicas("qwen-main", 6), "hpa")

    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.drops_events = True
    harness.kube.before_write = meanwhile
    harness.run_until_idle(with_controllers=False)
    deployment = harness.workload()
    assert deployment["spec"]["replicas"] == 6
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"] == ["--more"]


def test_autoscaler_replicas_stay_until_the_spec_sets_a_number(harness: OperatorHarness) -> None:
    pools = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 2, "maxReplicas": 9}]
    serve_model(harness, pools=pools, autoscaling={"mode": "Auto"})
    deployment = harness.workload()
    assert deployment["spec"]["replicas"] == 2
    asyncio.run(harness.kube.apply_scale(deployment, 6, "fairlead-autoscaler"))
    for mode in ("Auto", "Advise", "Disabled"):
        harness.edit(pools=pools, autoscaling={"mode": mode})
        harness.run_until_idle()
        assert (harness.workload()["spec"]["replicas"], harness.status()["ready"]) == (6, "6/6")
    harness.edit(pools=pools, replicas=3)
    harness.run_until_idle()
    assert harness.workload()["spec"]["replicas"] == 3
    harness.kube.remove_field("ModelDeployment", "chat", "qwen", ("spec", "replicas"))
    harness.run_until_idle()
    assert harness.workload()["spec"]["replicas"] == 2


def test_foreign_change_is_corrected_and_reported(harness: OperatorHarness) -> None:
    serve_model(harness)
    names = {"name": "qwen-main", "namespace": "chat"}
    strange = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names}
    harness.kube.put({**strange, "spec": {"selector": {"matchLabels": {"fairlead.io/pool": "x"}}}}, "kubectl-edit")
    harness.run_until_idle()
    deployment = harness.workload()
    assert deployment["spec"]["selector"]["matchLabels"]["fairlead.io/pool"] == "main"
    assert "Corrected" in [event.reason for event in harness.events]


@pytest.mark.parametrize("change", ["spec", "annotation", "readiness"])
def test_news_in_the_response_of_a_write_is_not_missed(harness: OperatorHarness, change: str) -> None:
    serve_model(harness)

    def meanwhile(write: str) -> None:
        """Makes another change before our write, whose event comes later."""
        if write.split()[0] not in ("status", "apply") or not harness.drops_events:
            return
        harness.kube.before_write = lambda _: None
        if change == "readiness":
            deployment = harness.workload()
            harness.run_deployment(deployment, ready=1)
            return
        late = model_manifest(engine={"type": "Sim", "args": ["--late"]} if change == "spec" else {"type": "Sim"})
        late["metadata"]["annotations"] = {"fairlead.io/run-revision": "1"} if change == "annotation" else {}
        harness.kube.put(late, "kubectl")

    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.drops_events = True
    harness.kube.before_write = meanwhile
    # Replicas are written only to the known version: a readiness change is read in the same pass.
    assert (harness.reconcile() == 0.0) is (change != "readiness")
    harness.kube.before_write = lambda _: None
    harness.reconcile()
    if change == "readiness":
        assert harness.status()["ready"] == "1/2"
    else:
        args = harness.workload()["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args == (["--late"] if change == "spec" else [])


def test_deleted_child_is_created_again(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.remove("Service", "chat", "qwen-main")
    harness.run_until_idle()
    assert harness.names("Service") == ["qwen-main"]


def test_removed_pool_serves_until_its_successor_does(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.edit(pools=[{"name": "other", "acceleratorClassName": "cpu", "minReplicas": 1}])
    harness.run_until_idle(with_controllers=False)
    assert harness.names() == ["qwen-main", "qwen-other"]
    assert "serves until an instance of qwen-other is ready" in harness.message("Reconciling")
    harness.run_until_idle()
    assert harness.names() == harness.names("Service") == ["qwen-other"]
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    assert "Removed" in [event.reason for event in harness.events]


def test_removed_field_is_restored_and_reported(harness: OperatorHarness) -> None:
    serve_model(harness)
    before = harness.workload()
    harness.kube.remove_field("Deployment", "chat", "qwen-main", ("spec", "template", "spec", "containers"))
    harness.kube.remove_field("Deployment", "chat", "qwen-main", ("metadata", "ownerReferences"))
    harness.run_until_idle()
    after = harness.workload()
    assert after["spec"] == before["spec"]
    assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
    (corrected,) = (event.note for event in harness.events if event.reason == "Corrected")
    assert corrected.endswith("another writer removed metadata.ownerReferences, spec.template.spec.containers")


def test_field_dropped_by_the_api_server_is_applied_once(harness: OperatorHarness) -> None:
    serve_model(harness)
    path = ("spec", "selector")
    harness.kube.dropped_fields.add(path)
    harness.kube.remove_field("Deployment", "chat", "qwen-main", path)
    harness.kube.writes.clear()
    harness.run_until_idle()
    harness.reconcile()
    assert [write for write in harness.kube.writes if write.startswith("apply")] == ["apply Deployment qwen-main"]


def test_child_without_labels_is_found_by_owner_and_relabelled(harness: OperatorHarness) -> None:
    serve_model(harness)
    uid = harness.workload()["metadata"]["uid"]
    harness.kube.remove_field("Deployment", "chat", "qwen-main", ("metadata", "labels", "app.kubernetes.io/managed-by"))
    harness.restart()  # a watch by label reports it as deleted
    harness.run_until_idle()
    deployment = harness.workload()
    assert deployment["metadata"]["uid"] == uid
    assert deployment["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "fairlead"
    assert harness.conditions() == {"Ready": ("True", "AllReady")}


def test_field_removed_from_the_spec_leaves_the_child(harness: OperatorHarness) -> None:
    serve_model(harness, engine={"type": "Sim", "image": "sim:2", "args": ["--a"]})
    render = harness.render

    def render_less(model: ModelDeployment, accelerators: Any, context: RenderContext) -> RenderedModel:
        rendered = render(model, accelerators, context)
        for child in rendered.manifests:
            if child["kind"] == "Deployment":
                child["spec"]["template"]["spec"] = {"image": model.spec.engine.image}
        return rendered

    harness.render = render_less
    harness.edit(engine={"type": "Sim", "image": "sim:3"})
    harness.run_until_idle()
    deployment = harness.workload()
    assert deployment["spec"]["template"]["spec"] == {"image": "sim:3"}


def test_unschedulable_pods_stall_a_model_only_after_the_grace(harness: OperatorHarness) -> None:
    harness.capacity_grace_seconds = 600.0
    harness.restart()
    serve_model(harness)
    deployment = harness.workload()
    harness.run_deployment(deployment, ready=1)
    labels = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen", "fairlead.io/pool": "main"}
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient gpu"}
    status = {"conditions": [{**condition, "lastTransitionTime": "2027-01-15T08:00:00Z"}]}
    harness.kube.put(manifest(PODS, "p", "chat", {"labels": labels}, status=status))
    assert harness.reconcile() == 600.0
    assert harness.conditions() == {"Ready": ("False", "Degraded"), "Reconciling": ("True", "Scaling")}
    assert "Insufficient gpu; the model is Stalled if that lasts 10m" in harness.message("Reconciling")
    harness.clock.advance(600.0)
    assert harness.reconcile() is None
    assert harness.conditions()["Stalled"] == ("True", "InsufficientCapacity")
    assert "(class cpu); the scheduler says: Insufficient gpu. Add nodes" in harness.message("Stalled")


@pytest.mark.parametrize("cause", ["stale", "problem", "moved"])
def test_nothing_is_deleted_in_doubt(harness: OperatorHarness, cause: str) -> None:
    two = [{"name": name, "acceleratorClassName": "cpu"} for name in ("main", "other")]
    serve_model(harness, pools=two)
    if cause == "stale":
        harness.stale = "the watch of services is silent"
        harness.edit(pools=two[:1])
        assert harness.reconcile() == 5.0
    elif cause == "problem":
        harness.edit(pools=[two[0], {"name": "third", "acceleratorClassName": "unknown"}])
        harness.reconcile()
    else:
        harness.edit(pools=two[:1])
        harness.drops_events = True
        harness.edit(pools=two)  # and back again, unobserved
        assert harness.reconcile() == 0.0
    assert harness.names() == ["qwen-main", "qwen-other"]
    assert not [write for write in harness.kube.writes if write.startswith("delete")]


def test_deleted_model_gets_no_children(harness: OperatorHarness) -> None:
    harness.kube.put(model_manifest())
    harness.drops_events = True
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    assert harness.reconcile() == 0.0
    assert harness.reconcile() is None
    assert harness.kube.writes == []


def test_model_being_deleted_is_left_to_the_garbage_collector(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.writes.clear()
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    harness.run_until_idle()
    harness.kube.collect_garbage()
    assert (harness.kube.writes, harness.names()) == ([], [])


def test_new_model_waits_for_children_of_its_predecessor(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    harness.kube.put(model_manifest())
    assert harness.reconcile() == 2.0
    assert harness.conditions()["Ready"][0] == "False"
    harness.kube.collect_garbage()
    harness.run_until_idle()
    child = harness.workload()
    assert child["metadata"]["ownerReferences"][0]["uid"] == harness.workload("ModelDeployment")["metadata"]["uid"]
    assert harness.conditions() == {"Ready": ("True", "AllReady")}


def test_foreign_name_is_avoided_and_the_choice_kept(harness: OperatorHarness) -> None:
    names = {"name": "qwen-main", "namespace": "chat"}
    harness.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": names, "spec": {"theirs": True}})
    serve_model(harness)
    mine = [name for name in harness.names("Service") if name != "qwen-main"]
    assert len(mine) == 1
    assert harness.names() == mine
    assert harness.kube.objects_of("Service")[0]["spec"] == {"theirs": True}
    harness.kube.remove("Service", "chat", "qwen-main")  # the name is free; no engine restarts for it
    harness.kube.writes.clear()
    harness.restart()
    harness.run_until_idle()
    assert (harness.names(), harness.kube.writes) == (mine, [])


def test_stale_cache_creates_nothing_twice(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.restart()
    for kind in ("Deployment", "Service", "ControllerRevision"):
        harness.cache.apply(WatchEvent(WatchEventType.DELETED, harness.workload(kind)))
    harness.kube.writes.clear()
    harness.reconcile()
    assert harness.kube.writes == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Forbidden('pods "x" is forbidden: exceeded quota: gpus', status=403), "QuotaExceeded"),
        (Forbidden("cannot patch deployments", status=403), "Forbidden"),
        (Forbidden('admission webhook "p" denied the request', status=403), "PolicyRefused"),
        (Invalid("no", status=422, causes=(ErrorCause("spec.x", "Invalid", "may not"),)), "InvalidTemplate"),
        (Invalid("Request entity too large: limit is 3145728", status=413), "TooLarge"),
    ],
)
def test_rejected_child_stalls_with_its_cause_and_pods_stay(harness: OperatorHarness, error: Any, reason: str) -> None:
    serve_model(harness)
    harness.kube.rejections[("Deployment", "chat", "qwen-main")] = error
    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.run_until_idle()
    assert harness.conditions() == {"Ready": ("True", "AllReady"), "Stalled": ("True", reason)}
    assert "qwen-main" in harness.message("Stalled")
    assert harness.events[-1].reason == reason
    assert harness.reconcile() == 30.0, "no event tells that the write is allowed now"
    harness.kube.rejections.clear()
    harness.run_until_idle()
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    assert "Recovered" in [event.reason for event in harness.events]


def test_unreachable_api_server_is_no_failure(harness: OperatorHarness) -> None:
    harness.kube.put(model_manifest())
    harness.kube.rejections[("Deployment", "chat", "qwen-main")] = Unreachable("away")
    with pytest.raises(Unreachable):
        harness.reconcile()
    assert harness.status() == {}


def test_unsupported_spec_changes_no_running_pods(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.writes.clear()
    harness.edit(pools=[])
    harness.run_until_idle()
    assert harness.conditions()["Stalled"] == ("True", "InvalidSpec")
    assert "spec.pools" in harness.message("Stalled")
    assert harness.names() == ["qwen-main"]
    assert {write.split()[0] for write in harness.kube.writes} == {"status"}


def test_unknown_accelerator_is_named_and_other_pools_run(harness: OperatorHarness) -> None:
    pools = [{"name": "a", "acceleratorClassName": "unknown"}, {"name": "b", "acceleratorClassName": "cpu"}]
    serve_model(harness, pools=pools)
    assert harness.names() == ["qwen-b"]
    assert harness.conditions() == {"Ready": ("False", "UnknownAccelerator"), "Stalled": ("True", "UnknownAccelerator")}


@pytest.mark.parametrize("owner", ["", "keda"])
@pytest.mark.parametrize("restarts", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize(("numbers", "spec"), [((0, 3, 2), "minReplicas"), ((1, 0, 5), "replicas")])
def test_count_follows_while_a_pool_cannot_be_rendered(
    harness: OperatorHarness, numbers: tuple[int, ...], spec: str, owner: str, *, restarts: bool
) -> None:
    def edit(accelerator: str, number: int, **engine: Any) -> None:
        least = number if spec == "minReplicas" else 0
        pool = {"name": "main", "acceleratorClassName": accelerator, "minReplicas": least}
        model = {} if spec == "minReplicas" else {"replicas": number}
        harness.edit(pools=[pool], engine={"type": "Sim", **engine}, **model)
        harness.run_until_idle()

    edit("cpu", 2)
    if owner:
        harness.kube.put(with_replicas("qwen-main", 4), owner)
        harness.run_until_idle()
    before = harness.workload()
    for number in numbers:
        edit("unknown", number, args=["--more"])
        live = harness.workload()
        assert live["spec"]["replicas"] == (4 if owner else number)
        assert live["spec"]["template"] == before["spec"]["template"]
        assert harness.conditions()["Stalled"] == ("True", "UnknownAccelerator")
        if restarts:
            harness.restart()
    assert harness.events[-1].reason != "RolloutStarted"
    harness.kube.writes.clear()
    harness.run_until_idle()
    assert harness.kube.writes == [], "written once"
    edit("cpu", 2)
    assert harness.workload()["spec"]["replicas"] == (4 if owner else 2), "the number of the first apply, again"
    assert harness.conditions() == {"Ready": ("True", "AllReady")}


def test_count_of_another_writer_is_not_overwritten_while_a_pool_cannot_be_rendered(harness: OperatorHarness) -> None:
    serve_model(harness)

    def meanwhile(write: str) -> None:
        if write.startswith("patch Deployment"):
            harness.kube.before_write = lambda _: None
            harness.kube.put(with_replicas("qwen-main", 6), "hpa")

    harness.edit(pools=[{"name": "main", "acceleratorClassName": "unknown", "minReplicas": 1}])
    harness.drops_events = True
    harness.kube.before_write = meanwhile
    harness.run_until_idle(with_controllers=False)
    assert harness.workload()["spec"]["replicas"] == 6


def test_older_model_has_the_bare_name(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.put(model_manifest(namespace="later"))
    harness.run_until_idle()
    assert harness.status(namespace="later")["clientName"] == "later/qwen"
    assert harness.conditions(namespace="later")["NameTaken"] == ("True", "BareNameTaken")
    assert harness.status()["clientName"] == "qwen"


def test_waiting_model_does_not_inherit_the_name_of_a_deleted_one(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.put(model_manifest(namespace="later"))
    harness.run_until_idle()
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    harness.run_until_idle()
    assert harness.status(namespace="later")["clientName"] == "later/qwen"
    (taken,) = [
        condition for condition in harness.status(namespace="later")["conditions"] if condition["type"] == "NameTaken"
    ]
    assert taken["message"] == "qwen belongs to chat/qwen, which is deleted and has not released its names"
    harness.restart()
    harness.run_until_idle()
    assert harness.status(namespace="later")["clientName"] == "later/qwen"
    (taken,) = [
        condition for condition in harness.status(namespace="later")["conditions"] if condition["type"] == "NameTaken"
    ]
    assert taken["message"] == "qwen belonged to a model that is deleted and has not released its names"
    serve_model(harness)
    assert harness.status()["clientName"] == "qwen"
    assert harness.status(namespace="later")["clientName"] == "later/qwen"


def test_released_name_goes_to_the_model_that_waits_for_it(harness: OperatorHarness) -> None:
    serve_model(harness)
    harness.kube.put(model_manifest(namespace="later"))
    harness.run_until_idle()
    released = model_manifest()
    released["metadata"]["annotations"] = {"fairlead.io/release-names": "true"}
    harness.kube.put(released)
    harness.run_until_idle()
    assert harness.status(namespace="later")["clientName"] == "qwen"
    assert harness.status()["clientName"] == "chat/qwen"
    harness.kube.remove("ModelDeployment", "chat", "qwen")
    harness.run_until_idle()
    assert harness.status(namespace="later")["clientName"] == "qwen"
    assert "NameTaken" not in harness.conditions(namespace="later")


def test_endpoints_where_they_are_not_allowed_stall_the_model() -> None:
    installation = InstallationDefaults({}, endpoint_namespaces=frozenset({"other"}))
    harness = OperatorHarness(installation=installation)
    pools = [{"name": "theirs", "endpoints": [{"url": "http://10.0.0.5:8000"}]}]
    serve_model(harness, engine={"type": "External"}, pools=pools)
    assert harness.conditions()["Stalled"] == ("True", "InvalidSpec")
    assert "endpoints are not allowed in the namespace chat" in harness.message("Stalled")


def test_external_engine_is_adopted_without_children(harness: OperatorHarness) -> None:
    pools = [{"name": "theirs", "selector": {"matchLabels": {"app": "vllm"}}}]
    serve_model(harness, engine={"type": "External"}, pools=pools)
    assert harness.conditions()["Ready"] == ("False", "NoEndpoint")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "chat", "labels": {"app": "vllm"}}}
    harness.kube.put({**pod, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert harness.reconcile() == 15.0
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    assert harness.names() == []


def test_pods_of_one_namespace_are_listed_a_tenth_of_the_time(
    harness: OperatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = harness.kube.list

    async def slow(*arguments: Any) -> ObjectList:
        harness.clock.advance(2.0)
        return await listing(*arguments)

    monkeypatch.setattr(harness.kube, "list", slow)
    pools = [{"name": f"p{number}", "selector": {"matchLabels": {"app": f"p{number}"}}} for number in range(3)]
    serve_model(harness, engine={"type": "External"}, pools=pools)
    assert harness.conditions()["Ready"] == ("False", "NoEndpoint")
    reads = harness.kube.reads
    assert harness.reconcile() == 15.0
    assert harness.kube.reads == reads
    harness.clock.advance(54.0)
    assert harness.reconcile() == 15.0
    assert harness.kube.reads == reads + 3


def test_autoscaler_conditions_are_left_alone(harness: OperatorHarness) -> None:
    serve_model(harness)
    names = {"name": "qwen", "namespace": "chat"}
    body = {"apiVersion": MODEL_DEPLOYMENTS.api_version, "kind": "ModelDeployment", "metadata": names}
    theirs = {"type": "SLOMet", "status": "True", "reason": "Met", "message": "", "lastTransitionTime": "x"}
    harness.kube.put({**body, "status": {"conditions": [theirs]}}, "fairlead-autoscaler/status")
    harness.kube.writes.clear()
    harness.run_until_idle()
    assert harness.kube.writes == []
    harness.edit(pools=[{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 3}])
    harness.run_until_idle()
    assert set(harness.conditions()) == {"Ready", "SLOMet"}


# --- deletions that a policy refuses


def test_rejected_deletion_stalls_with_its_cause(harness: OperatorHarness) -> None:
    pools = [{"name": name, "acceleratorClassName": "cpu"} for name in ("main", "other")]
    serve_model(harness, pools=pools)

    def refuse(write: str) -> None:
        if write == "delete Deployment qwen-other":
            raise Forbidden('admission webhook "p" denied the request', status=403)

    harness.kube.before_write = refuse
    harness.edit(pools=pools[:1])
    harness.run_until_idle()
    assert harness.status()["observedGeneration"] == 2
    assert harness.conditions() == {"Ready": ("True", "AllReady"), "Stalled": ("True", "PolicyRefused")}
    assert harness.message("Stalled").startswith("Deployment qwen-other cannot be deleted: admission webhook")
    assert harness.reconcile() == 30.0
    harness.kube.before_write = lambda _: None
    harness.run_until_idle()
    assert (harness.names(), harness.conditions()) == (["qwen-main"], {"Ready": ("True", "AllReady")})


# --- a cluster that was restored from a backup while the operator runs


def test_model_that_is_older_than_what_was_seen_is_not_reconciled_without_pause(harness: OperatorHarness) -> None:
    harness.kube.put(model_manifest())
    harness.run_until_idle()
    backup = copy.deepcopy((harness.kube._objects, harness.kube._owners, harness.kube._version))
    harness.edit(engine={"type": "Sim", "args": ["--more"]})
    harness.run_until_idle()
    harness.kube._objects, harness.kube._owners, harness.kube._version = backup
    harness.keys += harness.cache.replace_models(harness.kube.objects_of(MODEL_DEPLOYMENTS.kind))
    (service,) = harness.kube.objects_of("Service")
    asyncio.run(harness.kube.delete(SERVICES, "chat", "qwen-main", service["metadata"]["uid"]))
    before = harness.kube.reads
    assert harness.reconcile() == 1.0
    assert (harness.names("Service"), harness.kube.reads - before) == ([], 1)


# --- changes that the operator meets in the answer to its own write, before their event


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_change_that_a_response_shows_first_reaches_the_other_models(harness: OperatorHarness, change: str) -> None:
    """The event of that change comes later, and is not new."""
    for name in ("qwen", "second"):
        serve_model(harness, name=name, model={"uri": "hf://a/b", "servedNames": ["chat"]})
    assert harness.conditions(name="second")["NameTaken"] == ("True", "ServedNameTaken")
    harness.drops_events = True
    if change == "edited":
        harness.kube.put(model_manifest(model={"uri": "hf://a/b", "servedNames": []}), "kubectl")
        harness.cache.apply(WatchEvent(WatchEventType.DELETED, harness.kube.objects_of("Service")[0]))
    else:
        named = model_manifest()
        named["metadata"]["annotations"] = {"fairlead.io/release-names": "true"}
        harness.cache.apply(WatchEvent(WatchEventType.MODIFIED, harness.kube.put(named, "kubectl")))
        harness.kube.remove("ModelDeployment", "chat", "qwen")
        harness.cache.apply(WatchEvent(WatchEventType.DELETED, harness.kube.objects_of("Service")[0]))
    harness.keys = []
    assert harness.reconcile() in (0.0, 1.0)
    assert harness.keys == ["chat/second"]
    harness.run_until_idle()
    assert "NameTaken" not in harness.conditions(name="second")


def test_annotation_that_the_operator_does_not_keep_is_no_news(harness: OperatorHarness) -> None:
    applied = model_manifest()
    applied["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    harness.kube.put(applied, "kubectl")
    harness.drops_events = True
    assert [harness.reconcile(), harness.reconcile()] == [0.0, None]  # the first writes spec.replicas
