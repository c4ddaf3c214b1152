"""The loop in a cluster in memory: what is written, what is not, what people read."""

import asyncio
from typing import Any

import pytest

from fairlead.kube.errors import ErrorCause, Forbidden, Invalid, Unreachable
from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead.kube.watch_events import WatchEvent, WatchEventType

KEY = "chat/qwen"


def serve_model(lab: Any, model: Any, **spec: Any) -> None:
    lab.kube.put(model(**spec))
    lab.run_until_idle()


def test_a_model_becomes_its_children_and_then_is_ready(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    assert lab.names() == lab.names("Service") == ["qwen-main"]
    assert len(lab.names("ControllerRevision")) == 1
    assert lab.conditions() == {"Ready": ("True", "AllReady")}
    status = lab.status()
    assert (status["ready"], status["replicas"], status["clientName"]) == ("2/2", 2, "qwen")
    assert status["observedGeneration"] == 1
    assert status["selector"] == "fairlead.io/model=qwen,fairlead.io/pool=main"
    assert [one.reason for one in lab.told] == ["Created", "AllReady"]
    (child,) = lab.kube.objects_of("Deployment")
    (owner,) = child["metadata"]["ownerReferences"]
    assert owner["controller"] is True
    assert owner["uid"] == lab.kube.objects_of("ModelDeployment")[0]["metadata"]["uid"]


def test_supports_are_written_before_pods_and_the_revision_first(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    kinds = [write.split()[1] for write in lab.kube.writes]
    assert kinds[:3] == ["ControllerRevision", "Service", "Deployment"]


def test_nothing_is_written_or_asked_where_nothing_changed_nor_by_the_next_process(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.writes.clear()
    before = lab.kube.reads
    lab.look()
    lab.restart()
    lab.look()
    assert (lab.kube.writes, lab.kube.reads) == ([], before)


def test_starting_degraded_and_without_instances_are_told_apart(lab: Any, a_model: Any) -> None:
    lab.kube.put(a_model())
    lab.run_until_idle(controller=False)
    assert lab.conditions() == {"Ready": ("False", "Starting"), "Reconciling": ("True", "Creating")}
    (one,) = lab.kube.objects_of("Deployment")
    for ready, said in ((1, "Degraded"), (2, "AllReady"), (0, "NoInstance")):
        lab.run_deployment(one, ready=ready)
        lab.run_until_idle(controller=False)
        assert lab.conditions()["Ready"][1] == said
    assert lab.told[-1].reason == "NoInstance"


def test_growing_is_no_loss_and_losing_one_is_warned_of(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    names = {"name": "qwen-main", "namespace": "chat"}
    lab.kube.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names, "spec": {"replicas": 6}}, "scaler")
    lab.run_until_idle(controller=False)
    assert lab.conditions()["Ready"] == ("False", "Degraded")
    assert "Degraded" not in [news.reason for news in lab.told]
    lab.run_until_idle()
    assert "6 instances ready" in [news.note for news in lab.told]
    (one,) = lab.kube.objects_of("Deployment")
    lab.run_deployment(one, ready=5)
    lab.run_until_idle(controller=False)
    assert (lab.told[-1].reason, lab.told[-1].note) == ("Degraded", "Pool main has 5 of 6 ready")


def test_kubectl_scale_of_a_child_is_never_fought(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    names = {"name": "qwen-main", "namespace": "chat"}
    lab.kube.put(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names, "spec": {"replicas": 6}}, "kubectl-scale"
    )
    lab.run_until_idle()
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["replicas"] == 6
    assert lab.status()["ready"] == "6/6"
    lab.edit(engine={"kind": "sim", "args": ["--more"]})
    lab.run_until_idle()
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["replicas"] == 6
    assert one["spec"]["template"]["spec"]["containers"][0]["args"] == ["--more"]
    owners = {
        entry["manager"]
        for entry in one["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert owners == {"kubectl-scale"}


def test_a_number_that_somebody_wrote_a_moment_ago_stands_though_no_watch_has_told_of_it(
    lab: Any, a_model: Any
) -> None:
    serve_model(lab, a_model)

    def meanwhile(write: str) -> None:
        if write.startswith("apply Deployment"):
            lab.kube.before_write = lambda _: None
            names = {"name": "qwen-main", "namespace": "chat"}
            lab.kube.put(
                {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names, "spec": {"replicas": 6}}, "hpa"
            )

    lab.edit(engine={"kind": "sim", "args": ["--more"]})
    lab.deaf = True
    lab.kube.before_write = meanwhile
    lab.run_until_idle(controller=False)
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["replicas"] == 6
    assert one["spec"]["template"]["spec"]["containers"][0]["args"] == ["--more"]


def test_what_the_autoscaler_wrote_stays_also_when_it_is_switched_off_until_the_spec_says_a_number(
    lab: Any, a_model: Any
) -> None:
    pools = [{"name": "main", "accelerator": "cpu", "replicas": {"min": 2, "max": 9}}]
    serve_model(lab, a_model, pools=pools, autoscaling={"mode": "Auto"})
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["replicas"] == 2
    asyncio.run(lab.kube.apply_scale(one, 6, "fairlead-autoscaler"))
    for mode in ("Auto", "Advise", "Off"):
        lab.edit(pools=pools, autoscaling={"mode": mode})
        lab.run_until_idle()
        assert (lab.kube.objects_of("Deployment")[0]["spec"]["replicas"], lab.status()["ready"]) == (6, "6/6")
    lab.edit(pools=pools, replicas=3)
    lab.run_until_idle()
    assert lab.kube.objects_of("Deployment")[0]["spec"]["replicas"] == 3
    lab.kube.strip("ModelDeployment", "chat", "qwen", ("spec", "replicas"))
    lab.run_until_idle()
    assert lab.kube.objects_of("Deployment")[0]["spec"]["replicas"] == 2


def test_what_somebody_else_changed_is_set_right_again_and_told(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    names = {"name": "qwen-main", "namespace": "chat"}
    strange = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names}
    lab.kube.put({**strange, "spec": {"selector": {"matchLabels": {"fairlead.io/pool": "x"}}}}, "kubectl-edit")
    lab.run_until_idle()
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["selector"]["matchLabels"]["fairlead.io/pool"] == "main"
    assert "Corrected" in [happening.reason for happening in lab.told]


@pytest.mark.parametrize("change", ["spec", "annotation", "readiness"])
def test_what_comes_with_the_answer_to_our_own_writing_is_not_missed(lab: Any, a_model: Any, change: str) -> None:
    serve_model(lab, a_model)

    def meanwhile(write: str) -> None:
        """Somebody is faster than we are, and the watch slower: when it comes, what it tells is known already."""
        if write.split()[0] not in ("status", "apply") or not lab.deaf:
            return
        lab.kube.before_write = lambda _: None
        if change == "readiness":
            (one,) = lab.kube.objects_of("Deployment")
            lab.run_deployment(one, ready=1)
            return
        late = a_model(engine={"kind": "sim", "args": ["--late"]} if change == "spec" else {"kind": "sim"})
        late["metadata"]["annotations"] = {"fairlead.io/run-revision": "1"} if change == "annotation" else {}
        lab.kube.put(late, "kubectl")

    lab.edit(engine={"kind": "sim", "args": ["--more"]})
    lab.deaf = True
    lab.kube.before_write = meanwhile
    # A number is written only to the object that was known: what became of it meanwhile is read in the same look.
    assert (lab.look() == 0.0) is (change != "readiness")
    lab.kube.before_write = lambda _: None
    lab.look()
    if change == "readiness":
        assert lab.status()["ready"] == "1/2"
    else:
        args = lab.kube.objects_of("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args == (["--late"] if change == "spec" else [])


def test_a_deleted_child_is_made_again(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.remove("Service", "chat", "qwen-main")
    lab.run_until_idle()
    assert lab.names("Service") == ["qwen-main"]


def test_a_pool_that_left_the_spec_serves_until_its_heir_does(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.edit(pools=[{"name": "other", "accelerator": "cpu", "replicas": {"min": 1}}])
    lab.run_until_idle(controller=False)
    assert lab.names() == ["qwen-main", "qwen-other"]
    assert "serves until an instance of qwen-other is ready" in lab.message("Reconciling")
    lab.run_until_idle()
    assert lab.names() == lab.names("Service") == ["qwen-other"]
    assert lab.conditions() == {"Ready": ("True", "AllReady")}
    assert "Removed" in [one.reason for one in lab.told]


def test_a_field_that_somebody_removed_is_put_back_and_told(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    (before,) = lab.kube.objects_of("Deployment")
    lab.kube.strip("Deployment", "chat", "qwen-main", ("spec", "template", "spec", "containers"))
    lab.kube.strip("Deployment", "chat", "qwen-main", ("metadata", "ownerReferences"))
    lab.run_until_idle()
    (after,) = lab.kube.objects_of("Deployment")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
    (corrected,) = (one.note for one in lab.told if one.reason == "Corrected")
    assert corrected.endswith("somebody removed metadata.ownerReferences, spec.template.spec.containers")


def test_what_the_api_server_does_not_keep_is_asked_for_once(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    path = ("spec", "selector")
    lab.kube.dropped_fields.add(path)
    lab.kube.strip("Deployment", "chat", "qwen-main", path)
    lab.kube.writes.clear()
    lab.run_until_idle()
    lab.look()
    assert [write for write in lab.kube.writes if write.startswith("apply")] == ["apply Deployment qwen-main"]


def test_a_child_that_lost_our_labels_is_known_by_its_owner_and_gets_them_back(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    uid = lab.kube.objects_of("Deployment")[0]["metadata"]["uid"]
    lab.kube.strip("Deployment", "chat", "qwen-main", ("metadata", "labels", "app.kubernetes.io/managed-by"))
    lab.restart()  # a watch by label says that it is gone
    lab.run_until_idle()
    (one,) = lab.kube.objects_of("Deployment")
    assert one["metadata"]["uid"] == uid
    assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "fairlead"
    assert lab.conditions() == {"Ready": ("True", "AllReady")}


def test_what_left_the_spec_leaves_a_child_that_was_created(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model, engine={"kind": "sim", "image": "sim:2", "args": ["--a"]})
    usual = lab.render

    def with_less(*given: Any) -> Any:
        drawn = usual(*given)
        for one in drawn.manifests:
            if one["kind"] == "Deployment":
                one["spec"]["template"]["spec"] = {"image": given[0].spec.engine.image}
        return drawn

    lab.render = with_less
    lab.edit(engine={"kind": "sim", "image": "sim:3"})
    lab.run_until_idle()
    (one,) = lab.kube.objects_of("Deployment")
    assert one["spec"]["template"]["spec"] == {"image": "sim:3"}


def test_pods_that_wait_for_a_node_stall_a_model_only_after_a_while(lab: Any, a_model: Any) -> None:
    lab.grace = 600.0
    lab.restart()
    serve_model(lab, a_model)
    (one,) = lab.kube.objects_of("Deployment")
    lab.run_deployment(one, ready=1)
    labels = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen"}
    metadata = {"name": "p", "namespace": "chat", "labels": labels}
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient gpu"}
    lab.kube.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "status": {"conditions": [{**said, "lastTransitionTime": "2027-01-15T08:00:00Z"}]},
        }
    )
    assert lab.look() == 600.0
    assert lab.conditions() == {"Ready": ("False", "Degraded"), "Reconciling": ("True", "Scaling")}
    assert "Insufficient gpu" in lab.message("Reconciling")
    lab.clock.advance(600.0)
    assert lab.look() is None
    assert lab.conditions()["Stalled"] == ("True", "InsufficientCapacity")


@pytest.mark.parametrize("doubt", ["stale", "problem", "moved"])
def test_nothing_is_deleted_on_doubt(lab: Any, a_model: Any, doubt: str) -> None:
    two = [{"name": name, "accelerator": "cpu"} for name in ("main", "other")]
    serve_model(lab, a_model, pools=two)
    if doubt == "stale":
        lab.stale = "nothing has been heard of services for a while"
        lab.edit(pools=two[:1])
        assert lab.look() == 5.0
    elif doubt == "problem":
        lab.edit(pools=[two[0], {"name": "third", "accelerator": "unknown"}])
        lab.look()
    else:
        lab.edit(pools=two[:1])
        lab.deaf = True
        lab.edit(pools=two)  # and back again, which has not been heard of yet
        assert lab.look() == 0.0
    assert lab.names() == ["qwen-main", "qwen-other"]
    assert not [write for write in lab.kube.writes if write.startswith("delete")]


def test_a_ghost_gets_no_children(lab: Any, a_model: Any) -> None:
    lab.kube.put(a_model())
    lab.deaf = True
    lab.kube.remove("ModelDeployment", "chat", "qwen")
    assert lab.look() == 0.0
    assert lab.look() is None
    assert lab.kube.writes == []


def test_a_model_that_goes_is_left_to_the_garbage_collector(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.writes.clear()
    lab.kube.remove("ModelDeployment", "chat", "qwen")
    lab.run_until_idle()
    lab.kube.collect_garbage()
    assert (lab.kube.writes, lab.names()) == ([], [])


def test_a_new_model_of_the_same_name_waits_for_the_children_of_the_old_one(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.remove("ModelDeployment", "chat", "qwen")
    lab.kube.put(a_model())
    assert lab.look() == 2.0
    assert lab.conditions()["Ready"][0] == "False"
    lab.kube.collect_garbage()
    lab.run_until_idle()
    (child,) = lab.kube.objects_of("Deployment")
    assert (
        child["metadata"]["ownerReferences"][0]["uid"] == lab.kube.objects_of("ModelDeployment")[0]["metadata"]["uid"]
    )
    assert lab.conditions() == {"Ready": ("True", "AllReady")}


def test_a_name_that_is_somebody_elses_is_avoided_and_kept_so(lab: Any, a_model: Any) -> None:
    names = {"name": "qwen-main", "namespace": "chat"}
    lab.kube.put({"apiVersion": "v1", "kind": "Service", "metadata": names, "spec": {"theirs": True}})
    serve_model(lab, a_model)
    mine = [name for name in lab.names("Service") if name != "qwen-main"]
    assert len(mine) == 1
    assert lab.names() == mine
    assert lab.kube.objects_of("Service")[0]["spec"] == {"theirs": True}
    lab.kube.remove("Service", "chat", "qwen-main")  # the name is free: nobody restarts an engine for it
    lab.kube.writes.clear()
    lab.restart()
    lab.run_until_idle()
    assert (lab.names(), lab.kube.writes) == (mine, [])


def test_a_cache_that_is_behind_makes_nothing_twice(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.restart()
    for kind in ("Deployment", "Service", "ControllerRevision"):
        (one,) = lab.kube.objects_of(kind)
        lab.shelf.apply(WatchEvent(WatchEventType.DELETED, one))
    lab.kube.writes.clear()
    lab.look()
    assert lab.kube.writes == []


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
def test_a_child_that_is_refused_stalls_with_the_cause_and_what_runs_stays(
    lab: Any, a_model: Any, error: Any, reason: str
) -> None:
    serve_model(lab, a_model)
    lab.kube.rejections[("Deployment", "chat", "qwen-main")] = error
    lab.edit(engine={"kind": "sim", "args": ["--more"]})
    lab.run_until_idle()
    assert lab.conditions() == {"Ready": ("True", "AllReady"), "Stalled": ("True", reason)}
    assert "qwen-main" in lab.message("Stalled")
    assert lab.told[-1].reason == reason
    assert lab.look() == 30.0, "nobody will tell that it may be written now"
    lab.kube.rejections.clear()
    lab.run_until_idle()
    assert lab.conditions() == {"Ready": ("True", "AllReady")}
    assert "Recovered" in [one.reason for one in lab.told]


def test_an_api_server_that_is_away_is_no_finding(lab: Any, a_model: Any) -> None:
    lab.kube.put(a_model())
    lab.kube.rejections[("Deployment", "chat", "qwen-main")] = Unreachable("away")
    with pytest.raises(Unreachable):
        lab.look()
    assert lab.status() == {}


def test_a_spec_that_this_release_cannot_carry_out_changes_nothing_that_runs(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.writes.clear()
    lab.edit(pools=[])
    lab.run_until_idle()
    assert lab.conditions()["Stalled"] == ("True", "InvalidSpec")
    assert "spec.pools" in lab.message("Stalled")
    assert lab.names() == ["qwen-main"]
    assert {write.split()[0] for write in lab.kube.writes} == {"status"}


def test_an_unknown_accelerator_names_itself_and_other_pools_are_made(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model, pools=[{"name": "a", "accelerator": "unknown"}, {"name": "b", "accelerator": "cpu"}])
    assert lab.names() == ["qwen-b"]
    assert lab.conditions() == {"Ready": ("False", "UnknownAccelerator"), "Stalled": ("True", "UnknownAccelerator")}


def test_the_older_model_has_the_bare_name(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    lab.kube.put(a_model(namespace="later"))
    lab.run_until_idle()
    assert lab.status(namespace="later")["clientName"] == "later/qwen"
    assert lab.conditions(namespace="later")["NameTaken"] == ("True", "BareNameTaken")
    assert lab.status()["clientName"] == "qwen"
    lab.kube.remove("ModelDeployment", "chat", "qwen")
    lab.run_until_idle()
    assert lab.status(namespace="later")["clientName"] == "qwen"
    assert "NameTaken" not in lab.conditions(namespace="later")


def test_an_external_engine_is_adopted_and_nothing_is_made(lab: Any, a_model: Any) -> None:
    pools = [{"name": "theirs", "selector": {"matchLabels": {"app": "vllm"}}}]
    serve_model(lab, a_model, engine={"kind": "external"}, pools=pools)
    assert lab.conditions()["Ready"] == ("False", "NoEndpoint")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "chat", "labels": {"app": "vllm"}}}
    lab.kube.put({**pod, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert lab.look() == 15.0
    assert lab.conditions() == {"Ready": ("True", "AllReady")}
    assert lab.names() == []


def test_the_autoscalers_conditions_are_left_alone(lab: Any, a_model: Any) -> None:
    serve_model(lab, a_model)
    names = {"name": "qwen", "namespace": "chat"}
    body = {"apiVersion": MODEL_DEPLOYMENTS.api_version, "kind": "ModelDeployment", "metadata": names}
    theirs = {"type": "ObjectivesMet", "status": "True", "reason": "Met", "message": "", "lastTransitionTime": "x"}
    lab.kube.put({**body, "status": {"conditions": [theirs]}}, "fairlead-autoscaler/status")
    lab.kube.writes.clear()
    lab.run_until_idle()
    assert lab.kube.writes == []
    lab.edit(pools=[{"name": "main", "accelerator": "cpu", "replicas": {"min": 3}}])
    lab.run_until_idle()
    assert set(lab.conditions()) == {"Ready", "ObjectivesMet"}
