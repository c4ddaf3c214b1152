"""A model's report: pods in their pools, signals at their pods, and no number for an unknown."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from rich.console import Console

from fairlead.api.conditions import ConditionType, Reason, reasons
from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import PodReport, Readiness, parse_metrics
from fairlead_cli.cluster.status.advice import advise
from fairlead_cli.cluster.status.command import render_table, render_tree, to_plain
from fairlead_cli.cluster.status.model_report import ModelFacts, build_report, signals_by_instance
from fairlead_cli.console import stdout_console
from fairlead_cli.output import format_document
from fairlead_operator.status.diagnosis import Failure, advice_for

NOW = 1_800_000_000.0
Build = Mapping[str, Callable[..., Any]]
ONE = '{model="chat/tiny",instance="u1/8000/0",pool="main"}'
PAGE = f"""# HELP fairlead_gateway_engine_running Requests in the batch.
fairlead_gateway_engine_running{ONE} 9
fairlead_gateway_engine_waiting{ONE} 1
fairlead_gateway_engine_kv_usage{ONE} 0.71
fairlead_gateway_engine_prefix_queries_total{ONE} 1000
fairlead_gateway_engine_prefix_hits_total{ONE} 880
fairlead_gateway_engine_signals_age_seconds{ONE} 1.5
fairlead_gateway_instance_in_flight{{model="chat/tiny",instance="u1/8000/0"}} 4
fairlead_gateway_instances{{model="chat/tiny",state="Ready"}} 1
fairlead_gateway_ttft_seconds_bucket{{model="chat/tiny",le="0.1"}} 3
"""


def pod(name: str, uid: str, *, ready: bool = True, since: str = "2027-01-15T07:00:00Z", **more: Any) -> Manifest:
    labels = {"fairlead.io/model": "tiny", "fairlead.io/pool": "main", "fairlead.io/endpoint": "true"}
    conditions = [{"type": "Ready", "status": str(ready), "message": ""}]
    metadata = {
        "name": name,
        "namespace": "chat",
        "uid": uid,
        "labels": labels,
        "creationTimestamp": since,
    }
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running", "conditions": conditions, **more}}


def shown(facts: ModelFacts) -> str:
    console = Console(width=400, highlight=False)
    with console.capture() as captured:
        console.print(render_tree(build_report(facts), advise(build_report(facts))), soft_wrap=True)
    return captured.get()


def pod_report(page: str, name: str = "g") -> PodReport:
    return PodReport(name, "fairlead", Readiness(True, []), parse_metrics(page))


def warning(
    reason: str,
    note: str,
    uid: str = "u1",
    at: str = "2027-01-15T07:59:00Z",
    name: str = "tiny-main-a",
    kind: str = "Pod",
) -> Manifest:
    regarding = {"kind": kind, "name": name, "uid": uid}
    return {"type": "Warning", "reason": reason, "note": note, "regarding": regarding, "eventTime": at}


def test_tree_has_pools_pods_signals_conditions_events_and_advice(builders: Build) -> None:
    broken = {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "x/y:z not found"}}}
    event = warning("ImagePullFailed", "Pod b waits", "uid-tiny", "2027-01-15T07:59:19Z", "tiny", "ModelDeployment")
    event["series"] = {"count": 3, "lastObservedTime": event["eventTime"]}
    stalled = ("True", "ImagePullFailed", "pod b: x/y:z not found")
    model = builders["model"](ready=False, Ready=("False", "ImagePullFailed", "pod b"), Stalled=stalled)
    pods = [pod("a", "u1"), pod("b", "u2", ready=False, containerStatuses=[broken])]
    text = shown(ModelFacts(model, pods, [event], [pod_report(PAGE)], NOW))
    assert text.splitlines()[0] == "× chat/tiny  0/1 ready  VLLM  hf://a/b  60m"
    assert "Stalled True  ImagePullFailed" in text
    assert "pool main  Serve  nvidia-l4  0/1 ready" in text
    assert "√ a  Ready  9 running, 1 waiting  KV 71 %  prefix hits 88 %" in text
    assert "× b  Starting  ImagePullBackOff: x/y:z not found" in text
    assert "what engines say: from 1 gateway, which routes to 1 instance" in text
    assert "41s  ImagePullFailed  Pod b waits  (3 times)" in text
    assert text.splitlines()[-1].startswith("next: check engine.image")


def test_failed_startup_probes_are_shown_until_the_pod_is_ready(builders: Build) -> None:
    event = warning("Unhealthy", "Startup probe failed: dial tcp: connection refused", name="a")
    for ready, count in ((True, 0), (False, 1)):
        facts = ModelFacts(builders["model"](), [pod("a", "u1", ready=ready)], [event], [pod_report(PAGE)], NOW)
        assert shown(facts).count("Startup probe failed") == count


def test_unknown_values_are_dashes_or_reasons_never_zeros(builders: Build) -> None:
    model = builders["model"]()
    silent = 'fairlead_gateway_engine_signals_age_seconds{model="chat/tiny",instance="u1/8000/0",pool="main"} 95\n'
    text = shown(ModelFacts(model, [pod("a", "u1")], MissingValue("no"), [pod_report(silent)], NOW))
    assert "a  Ready  – running, – waiting  KV –  prefix hits –  (1m35s old)" in text
    text = shown(ModelFacts(model, MissingValue("you may not list pods"), [], MissingValue("refused"), NOW))
    assert "pods: not to be had: you may not list pods" in text
    assert "what engines say: not to be had: refused" in text
    plain = to_plain(
        build_report(ModelFacts({**model, "status": {}}, [], [], [], NOW)),
        advise(build_report(ModelFacts(model, [], [], [], NOW))),
    )
    pool = json.loads(format_document(plain, "json"))["pools"][0]
    assert (pool["ready"], pool["desired"], pool["instances"]) == (None, None, [])


def test_sign_shows_serving_and_problems(builders: Build) -> None:
    starting = builders["model"](ready=False, Ready=("False", "Starting", ""))
    for model, sign in ((builders["model"](), "√"), (starting, "‼"), (builders["model"](ready=False), "×")):
        assert shown(ModelFacts(model, [], [], [pod_report(PAGE)], NOW)).startswith(f"{sign} chat/tiny")


def test_freshest_engine_signals_count_and_in_flight_adds_up() -> None:
    older = PAGE.replace("} 1.5\n", "} 30\n").replace("} 9\n", "} 1\n")
    (signals,) = signals_by_instance([parse_metrics(older), parse_metrics(PAGE)], "chat/tiny").values()
    assert (signals.running, signals.age_seconds, signals.in_flight) == (9.0, 1.5, 8.0)
    assert signals_by_instance([parse_metrics(PAGE)], "chat/other") == {}


def test_adopted_engines_are_listed_in_their_pool(builders: Build) -> None:
    model = builders["model"]()
    model["spec"]["pools"] = [{"name": "main", "endpoints": [{"url": "http://10.0.0.1:8000"}]}]
    page = PAGE.replace("u1/8000/0", "10.0.0.1/8000/0")
    (pool,) = build_report(ModelFacts(model, [], [], [pod_report(page)], NOW)).pools
    assert [(instance.name, instance.state) for instance in pool.instances] == [("10.0.0.1/8000/0", "Routed")]


def test_model_table_has_kubectl_columns(builders: Build) -> None:
    lines = render_table([builders["model"](), builders["model"]("a-longer-name", ready=False)], NOW).splitlines()
    assert lines[0].split() == ["NAMESPACE", "NAME", "CLIENT-NAME", "ENGINE", "READY", "SLO-MET", "REASON", "AGE"]
    assert lines[2].split() == ["chat", "a-longer-name", "a-longer-name", "VLLM", "0/1", "NoInstance", "60m"]


def test_text_of_a_cluster_controls_no_terminal(builders: Build, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;title\x07\x1b[2J\x9b31m"
    broken = {"name": "engine", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": f"crash{escape}"}}}
    pods = (pod("p", "u1", ready=False, containerStatuses=[broken]),)
    condition = {"type": "Ready", "status": "False", "reason": "EngineCrashing", "message": f"why{escape}"}
    model = builders["model"]()
    model["status"] = {"conditions": [condition]}
    report = build_report(ModelFacts(model, pods, (), MissingValue(f"no{escape}"), NOW))
    stdout_console().print(render_tree(report, advise(report)))
    seen = capsys.readouterr().out
    assert "why\N{REPLACEMENT CHARACTER}]0;title" in seen
    assert "crash\N{REPLACEMENT CHARACTER}]0;title" in seen
    assert not set(seen) & {"\x1b", "\x07", "\x9b"}


WELL = 'fairlead_gateway_instances{model="chat/tiny",state="Ready"} 1\n'


def tiny_pod(state: str = "Ready", restarts: int = 0, since: str = "2027-01-15T07:50:00Z") -> Manifest:
    statuses = [{"name": "engine", "restartCount": restarts}]
    manifest = pod("tiny-main-a", "u1", ready=state == "Ready", since=since, containerStatuses=statuses)
    return {**manifest, "spec": {"nodeName": "n1"}}


def facts(model: Manifest, *pods: Manifest, page: str = WELL, gateways: Any = None) -> ModelFacts:
    reports = [PodReport("g", "fairlead", Readiness(True, []), parse_metrics(page))] if gateways is None else gateways
    return ModelFacts(model, list(pods), [], reports, NOW)


def test_pod_on_a_lost_node_is_not_starting(builders: Build) -> None:
    """As the node controller leaves it: `Ready` is False, and what the kubelet said last stays."""
    lost = tiny_pod("Starting")
    lost["status"]["conditions"].append({"type": "ContainersReady", "status": "True"})
    (instance,) = build_report(facts(builders["model"](), lost)).instances()
    assert (instance.state, instance.why) == ("NodeNotReady", "its node n1 is not ready")
    gated = {**lost, "spec": {"nodeName": "n1", "readinessGates": [{"conditionType": "example.com/warm"}]}}
    (instance,) = build_report(facts(builders["model"](), gated)).instances()
    assert instance.state == "Starting"


def without_node(**condition: str) -> Manifest:
    manifest = tiny_pod("Starting")
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", **condition}
    return {**manifest, "spec": {}, "status": {"phase": "Pending", "conditions": [unscheduled]}}


def says(known: ModelFacts) -> tuple[bool, str]:
    advice = advise(build_report(known))
    return advice.is_problem, advice.text


def test_nothing_to_do(builders: Build) -> None:
    assert says(facts(builders["model"](), tiny_pod())) == (False, "nothing to do")


def test_every_reason_that_stalls_has_advice(builders: Build) -> None:
    for reason in (reason.reason for reason in reasons() if reason.type is ConditionType.STALLED):
        model = builders["model"](ready=False, Ready=("False", reason, "m"), Stalled=("True", reason, "of the case"))
        problem, text = says(facts(model))
        assert problem
        assert text.endswith("(of the case)")
        assert len(text) > len("(of the case)") + 5, reason


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool, str]] = {
    "starting": (
        {"Ready": ("False", "Starting", "")},
        {"state": "Starting"},
        False,
        "wait: tiny-main-a has been starting for 10m",
    ),
    "starting for too long": (
        {"Ready": ("False", "Starting", "")},
        {"state": "Starting", "since": "2027-01-15T06:00:00Z"},
        True,
        "tiny-main-a has been starting for 2h: kubectl logs -n chat tiny-main-a",
    ),
    "degraded": (
        {"Ready": ("False", "Degraded", "pool main has 1 of 2 ready")},
        {},
        True,
        "(pool main has 1 of 2 ready)",
    ),
    "zero": ({"Ready": ("True", "ScaledToZero", "")}, {}, False, "kubectl scale mdep tiny -n chat --replicas=1"),
    "asleep": (
        {"Ready": ("True", "ScaledToZero", ""), "Autoscaling": ("True", "Deciding", "")},
        {},
        False,
        "the first request starts an engine",
    ),
    "rolling out": ({"Reconciling": ("True", "RollingOut", "1 of 2 replaced")}, {}, False, "wait (1 of 2 replaced)"),
    "paused": ({"Reconciling": ("True", "Paused", "")}, {}, False, "set rollout.paused: false"),
    "name": ({"NameTaken": ("True", "BareNameTaken", "")}, {}, False, "let clients say chat/tiny"),
    "restarts": ({}, {"restarts": 4}, True, "tiny-main-a was restarted 4 times"),
    "objectives": (
        {"SLOMet": ("False", "Missed", "81 % of 95 %")},
        {},
        True,
        "miss the SLO (81 % of 95 %)",
    ),
    "objectives, at the most": (
        {"SLOMet": ("False", "BelowTarget", "81 %"), "Autoscaling": ("True", "AtMaximum", "")},
        {},
        True,
        "miss the SLO (81 %): raise maxReplicas",
    ),
    "objectives, more are coming": (
        {"SLOMet": ("False", "BelowTarget", "81 %"), "Autoscaling": ("True", "Deciding", "")},
        {},
        True,
        "miss the SLO (81 %): wait for the instances that the autoscaler starts",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_advice_follows_conditions_and_pods(builders: Build, name: str) -> None:
    conditions, of_pod, problem, words = CASES[name]
    ready = conditions.get("Ready", ("True",))[0] == "True"
    advice = says(facts(builders["model"](ready=ready, **conditions), tiny_pod(**of_pod)))
    assert advice[0] is problem
    assert words in advice[1]


MULTI_ATTACH = (
    'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and '
    "can't be attached to another"
)
STUCK = {
    "a volume on another node": ("FailedAttachVolume", MULTI_ATTACH, "ReadWriteMany"),
    "a volume that another pod has": (
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-1" Volume is already used by tiny_pod(s) tiny-main-b',
        "ReadWriteMany",
    ),
    "a missing Secret": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "certs" : secret "engine-certs" not found',
        "create the Secret engine-certs in chat",
    ),
    "a missing ConfigMap": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "t" : configmap "templates" not found',
        "create the ConfigMap templates in chat",
    ),
    "a missing entry": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "certs" : references non-existent secret key: ca.crt',
        "add the entry ca.crt",
    ),
    "storage that does not answer": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "nfs" : mount failed: mount.nfs: Connection timed out',
        "kubectl describe pvc",
    ),
    "no driver": (
        "FailedMount",
        "MountVolume.MountDevice failed : driver name efs.csi.aws.com not found in the list of registered CSI drivers",
        "install the CSI driver efs.csi.aws.com",
    ),
    "no runtime": (
        "FailedCreatePodSandBox",
        'Failed to create pod sandbox: failed to get sandbox runtime: no runtime for "nvidia" is configured',
        "install the container runtime nvidia",
    ),
    "no network": ("FailedCreatePodSandBox", "plugin type=calico failed (add)", "network plugin"),
}


def creating(state: str = "ContainerCreating", **conditions: str) -> Manifest:
    """A pod with a node, whose containers were not started."""
    manifest = tiny_pod("Starting")
    listed = [{"type": "Ready", "status": "False"}, *({"type": k, "status": v} for k, v in conditions.items())]
    waiting = [{"name": "engine", "state": {"waiting": {"reason": state}}}]
    return {**manifest, "status": {"phase": "Pending", "conditions": listed, "containerStatuses": waiting}}


def stuck(builders: Build, manifest: Manifest, *events: Manifest) -> tuple[bool, str]:
    model = builders["model"](ready=False, Ready=("False", "Starting", ""))
    return says(ModelFacts(model, [manifest], list(events), [], NOW))


@pytest.mark.parametrize("name", STUCK)
def test_node_that_cannot_start_a_pod_is_explained(builders: Build, name: str) -> None:
    """Such a pod has no logs, and its status has no reason."""
    reason, note, words = STUCK[name]
    problem, text = stuck(builders, creating(), warning(reason, note))
    assert problem
    assert "tiny-main-a cannot start: " in text
    assert words in text
    assert note[:40] in text


def test_last_warning_about_the_pod_itself_explains_its_start(builders: Build) -> None:
    newer = warning("FailedMount", 'secret "engine-certs" not found')
    older = warning("FailedAttachVolume", MULTI_ATTACH, at="2027-01-15T07:40:00Z")
    assert "engine-certs" in stuck(builders, creating(), newer, older)[1]
    assert "cannot start" not in stuck(builders, creating(), warning("FailedMount", "x", uid="u2"))[1]
    assert "cannot start" not in stuck(builders, creating(), warning("Unhealthy", "x"))[1]


def test_blocked_pod_is_named_whatever_the_condition_says(builders: Build) -> None:
    """A second pod that waits for the first one's volume degrades a model, or holds its rollout."""
    for conditions in (
        {"Ready": ("False", "Degraded", "pool main has 1 of 2 ready")},
        {"Ready": ("True", "AllReady", ""), "Reconciling": ("True", "RollingOut", "0 of 1 replaced")},
        {"Ready": ("False", "StartTimeout", ""), "Stalled": ("True", "StartTimeout", "")},
    ):
        model = builders["model"](**conditions)
        blocked = ModelFacts(model, [creating()], [warning("FailedAttachVolume", MULTI_ATTACH)], [], NOW)
        assert "ReadWriteMany" in says(blocked)[1]


QUOTA = (
    'create Pod tiny-main-0 in StatefulSet tiny-main failed error: pods "tiny-main-0" is forbidden: exceeded quota: '
    "gpus, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=16, limited: requests.nvidia.com/gpu=16"
)


def group_event(reason: str, note: str, name: str = "tiny-main", at: str = "2027-01-15T07:59:00Z") -> Manifest:
    kind = "Warning" if reason == "FailedCreate" else "Normal"
    regarding = {"kind": "StatefulSet", "name": name, "uid": "s1"}
    return {"type": kind, "reason": reason, "note": note, "regarding": regarding, "eventTime": at}


def of_groups(builders: Build, *events: Manifest, nodes: int = 2) -> str:
    model = builders["model"](ready=False, Ready=("False", "Starting", ""))
    model["spec"]["pools"][0]["parallelism"] = {"nodes": nodes}
    report = build_report(ModelFacts(model, [], list(events), [], NOW))
    assert len(report.events) == sum(event["type"] == "Warning" for event in events)
    return advise(report).text


def test_refused_pods_of_a_group_are_explained(builders: Build) -> None:
    """A Deployment has a condition for it, and a LeaderWorkerSet has none."""
    for name in ("tiny-main", "tiny-main-0"):
        text = of_groups(builders, group_event("FailedCreate", QUOTA, name))
        assert text.startswith("pods are refused: ")
        assert "exceeded quota: gpus" in text
    policy = 'pods "tiny-main-0" is forbidden: violates PodSecurity "restricted:latest"'
    assert "violates PodSecurity" in of_groups(builders, group_event("FailedCreate", policy))


def test_group_whose_pods_were_made_since_is_not_refused(builders: Build) -> None:
    created = group_event("SuccessfulCreate", "create Pod tiny-main-0 in StatefulSet tiny-main successful")
    earlier = group_event("FailedCreate", QUOTA, at="2027-01-15T07:30:00Z")
    assert "refused" not in of_groups(builders, created, earlier)
    assert "refused" not in of_groups(builders, group_event("FailedCreate", QUOTA, "tiny-mainframe"))
    assert "refused" not in of_groups(builders, group_event("FailedCreate", QUOTA), nodes=1)


def test_pod_whose_image_is_being_pulled_waits_for_no_volume(builders: Build) -> None:
    event = warning("FailedAttachVolume", MULTI_ATTACH)
    for manifest in (creating(PodReadyToStartContainers="True"), creating("ImagePullBackOff")):
        assert "cannot start" not in stuck(builders, manifest, event)[1]


def test_unobserved_change_comes_before_other_advice(builders: Build) -> None:
    model = builders["model"](ready=False, Stalled=("True", "ImagePullFailed", "x"))
    model["metadata"]["generation"] = 3
    assert says(facts(model)) == (
        True,
        "no operator has seen the last change (generation 3, it is at 2): fairlead check says why",
    )
    model["metadata"]["managedFields"] = [{"time": "2027-01-15T07:59:59Z"}]
    assert says(facts(model)) == (False, "wait: the operator has not seen the last change yet")
    assert says(facts({**model, "status": {}}))[1].startswith("wait")
    model["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    assert says(facts(model))[1].startswith("it is being deleted")


def test_unrouted_ready_pods_have_advice(builders: Build) -> None:
    page = 'fairlead_gateway_instances{model="chat/tiny",state="Ready"} 0\n'
    assert says(facts(builders["model"](), tiny_pod(), page=page))[0]
    assert "no gateway routes to them" in says(facts(builders["model"](), tiny_pod(), page=page))[1]


def test_full_engines_have_advice(builders: Build) -> None:
    def engine(usage: float, waiting: int) -> str:
        labels = '{model="chat/tiny",instance="u1/8000/0",pool="main"}'
        return WELL + "".join(
            f"fairlead_gateway_engine_{name}{labels} {value}\n"
            for name, value in (("signals_age_seconds", 1), ("kv_usage", usage), ("waiting", waiting))
        )

    assert "KV caches of all engines are full" in says(facts(builders["model"](), tiny_pod(), page=engine(0.99, 3)))[1]
    assert says(facts(builders["model"](), tiny_pod(), page=engine(0.99, 0))) == (False, "nothing to do")
    assert says(facts(builders["model"](), tiny_pod(), page=engine(0.5, 3))) == (False, "nothing to do")


def test_missing_signals_come_last_and_are_no_problem(builders: Build) -> None:
    away = MissingValue("a NetworkPolicy may keep the API server out")
    assert says(facts(builders["model"](), tiny_pod(), gateways=away)) == (
        False,
        "nothing to do, but the engines' signals could not be read: a NetworkPolicy may keep the API server out",
    )
    assert "no gateway was found" in says(facts(builders["model"](), tiny_pod(), gateways=[]))[1]


def test_pod_without_node_is_explained_without_logs(builders: Build) -> None:
    room = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    pending = "pod a waits for a node; the model is Stalled if that lasts 10m"
    model = builders["model"](ready=False, Ready=("False", "Starting", ""), Reconciling=("True", "Creating", pending))
    problem, text = says(facts(model, without_node(message=room)))
    assert not problem
    assert text == f"wait: no node has room for tiny-main-a yet ({room}); the model is Stalled after 10m"


def test_old_pod_without_node_is_not_looked_up_in_logs(builders: Build) -> None:
    model = builders["model"](ready=False, Ready=("False", "Starting", ""))
    late = without_node(message="no room")
    late["metadata"]["creationTimestamp"] = "2027-01-15T06:00:00Z"
    assert "kubectl logs" not in says(facts(model, late))[1]


@pytest.mark.parametrize(
    "own", ["Add a pool of another name.", "Use a claim that several nodes can mount, or more.", ""]
)
@pytest.mark.parametrize("reason", ["PolicyRefused", "InsufficientCapacity", "ImagePullFailed", "InvalidTemplate"])
def test_advice_of_a_cause_comes_before_that_of_its_reason(builders: Build, reason: str, own: str) -> None:
    failure = Failure(
        Reason(reason), "LeaderWorkerSet m: denied: a. field is immutable", advice=own or advice_for(Reason(reason))
    )
    stalled = ("True", reason, failure.message_with_advice)
    _, text = says(facts(builders["model"](ready=False, Ready=("False", reason, "m"), Stalled=stalled)))
    first = (own or advice_for(Reason(reason))).partition(". ")[0].rstrip(".")
    assert text == f"{first[0].lower()}{first[1:]} ({failure.message})"


def test_advice_on_capacity_keeps_what_the_pool_asks_for(builders: Build) -> None:
    cause = f"pod {'p' * 60} waits for a node: no node fits 1 nvidia.com/gpu with gpu=L40S (class l40s); {'x' * 150}."
    stalled = ("True", "InsufficientCapacity", cause)
    model = builders["model"](ready=False, Ready=("False", "InsufficientCapacity", "m"), Stalled=stalled)
    _, text = says(facts(model))
    assert text.startswith("add nodes, lower replicas or parallelism, or check resource, nodeSelector and tolerations")
    assert "(class l40s)" in text
    assert text.endswith("x.)")
