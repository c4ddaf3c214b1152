"""Causes as kubelet, scheduler, controllers and the API server word them."""

import itertools
import random
from typing import Any

import pytest

from fairlead.api.conditions import Reason
from fairlead.kube.errors import Conflict, Forbidden, Invalid
from fairlead_operator.status.diagnosis import (
    diagnose,
    diagnose_pod,
    diagnose_workload,
    diagnose_write,
    pending_capacity,
)
from fairlead_operator.status.pod_requirements import requirements_by_pool


def pod(
    name: str = "p", container: dict[str, Any] | None = None, *, init: bool = False, **status: Any
) -> dict[str, Any]:
    kind = "initContainerStatuses" if init else "containerStatuses"
    statuses = {kind: [{"name": "download" if init else "engine", "image": "img:1", **container}]} if container else {}
    return {"metadata": {"name": name}, "status": {**statuses, **status}}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}, **more}


def unschedulable(message: str, **more: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, **more}
    return pod(conditions=[condition])


UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
OOM = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
ENDED = {"lastState": {"terminated": {"reason": "Error", "exitCode": 2, "message": "no such flag"}}, "restartCount": 4}
CASES = [
    (pod(container=waiting("ImagePullBackOff", 'Back-off pulling image "img:1"')), Reason.IMAGE_PULL_FAILED, "img:1"),
    (pod(container=waiting("ErrImageNeverPull")), Reason.IMAGE_PULL_FAILED, "ErrImageNeverPull"),
    (pod(container=waiting("CreateContainerConfigError", 'secret "hf" not found')), Reason.MISSING_SECRET, "hf"),
    (
        pod(container=waiting("CreateContainerConfigError", "couldn't find key token in Secret chat/hf")),
        Reason.MISSING_SECRET,
        "token",
    ),
    (pod(container=waiting("CreateContainerConfigError", 'configmap "c" not found')), Reason.MISSING_CONFIG_MAP, "c"),
    (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), Reason.INSUFFICIENT_CAPACITY, "nvidia"),
    (
        unschedulable('0/1 nodes are available: persistentvolumeclaim "weights" not found.'),
        Reason.MISSING_CLAIM,
        "there is no PersistentVolumeClaim weights",
    ),
    (
        unschedulable('persistentvolumeclaim "weights" bound to non-existent persistentvolume "v"'),
        Reason.UNBOUND_CLAIM,
        "kubectl describe pvc weights says why",
    ),
    (unschedulable(UNBOUND), Reason.UNBOUND_CLAIM, "unbound immediate"),
    (pod(container=waiting("CrashLoopBackOff", **OOM)), Reason.OUT_OF_MEMORY, "memory"),
    (pod(container=waiting("CrashLoopBackOff", **ENDED)), Reason.ENGINE_CRASHING, "code 2, 4 times: no such flag"),
    (pod(container=waiting("CrashLoopBackOff", **ENDED), init=True), Reason.DOWNLOAD_FAILED, "download"),
]


@pytest.mark.parametrize(("manifest", "reason", "words"), CASES)
def test_cause_of_a_pod_is_named(manifest: dict[str, Any], reason: Reason, words: str) -> None:
    diagnosis = diagnose_pod(manifest)
    assert diagnosis is not None
    assert diagnosis.reason is reason
    assert words in diagnosis.message
    assert "pod p" in diagnosis.message


@pytest.mark.parametrize(
    "manifest",
    [
        pod(container=waiting("ContainerCreating")),
        pod(container=waiting("SomethingNew", "of a later release")),
        pod(container=waiting("CreateContainerConfigError", "something else")),
        pod(conditions=[{"type": "Ready", "status": "True"}], container=waiting("CrashLoopBackOff")),
        {
            "metadata": {"name": "p", "deletionTimestamp": "x"},
            "status": {"containerStatuses": [waiting("ErrImagePull")]},
        },
        {"metadata": {"name": "p"}},
    ],
)
def test_ready_deleted_or_starting_pods_have_no_cause(manifest: dict[str, Any]) -> None:
    assert diagnose_pod(manifest) is None


def test_controller_that_cannot_create_pods_is_reported() -> None:
    quota = {"type": "ReplicaFailure", "status": "True", "message": 'pods "x" is forbidden: exceeded quota: gpus'}
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out"}
    for condition, reason in ((quota, Reason.QUOTA_EXCEEDED), (late, Reason.START_TIMEOUT)):
        diagnosis = diagnose_workload({"metadata": {"name": "d"}, "status": {"conditions": [condition]}})
        assert diagnosis is not None
        assert (diagnosis.reason, diagnosis.message[:3]) == (reason, "d: ")


def test_causes_come_before_effects_and_are_counted() -> None:
    pods = [unschedulable("no room"), *(pod(f"p{n}", waiting("ErrImagePull", "no")) for n in range(3))]
    diagnosis = diagnose(pods, [])
    assert diagnosis is not None
    assert (diagnosis.reason, diagnosis.pods) == (Reason.IMAGE_PULL_FAILED, 3)
    assert "and 2 more like it" in diagnosis.message
    assert diagnosis.message_with_advice.startswith(f"{diagnosis.message}. Check engine.image")
    assert diagnose([], []) is None


def test_unschedulable_pod_counts_after_the_grace_period() -> None:
    since = {"lastTransitionTime": "2027-01-15T08:00:00Z"}
    at = 1_800_000_000.0  # the same moment
    late, broken = unschedulable("no room", **since), pod("q", waiting("ErrImagePull"))
    hoped = pending_capacity([late, broken, late], at + 500.0, 600.0)
    assert hoped is not None
    assert hoped.seconds == 100.0
    assert hoped.message.endswith("no room (and 1 more like it); the model is Stalled if that lasts 10m")
    assert pending_capacity([late], at + 600.0, 600.0) is None
    assert pending_capacity([late], at, 0.0) is None
    assert pending_capacity([unschedulable('persistentvolumeclaim "w" not found', **since)], at, 600.0) is None
    assert diagnose([late], [], wall=at + 500.0, grace_seconds=600.0) is None
    diagnosis = diagnose([late], [], wall=at + 600.0, grace_seconds=600.0)
    assert diagnosis is not None
    assert diagnosis.reason is Reason.INSUFFICIENT_CAPACITY
    diagnosis = diagnose([late, broken], [], wall=at, grace_seconds=600.0)
    assert diagnosis is not None
    assert diagnosis.reason is Reason.IMAGE_PULL_FAILED


def of_revision(manifest: dict[str, Any], revision: str) -> dict[str, Any]:
    labels = {"fairlead.io/pool": "main", "fairlead.io/revision": revision}
    return {**manifest, "metadata": {**manifest["metadata"], "labels": labels}}


@pytest.mark.parametrize(("failed", "reason"), [(manifest, reason) for manifest, reason, _ in CASES])
def test_outdated_pods_count_only_if_all_others_are_ready(failed: dict[str, Any], reason: Reason) -> None:
    labels, notes = {"fairlead.io/pool": "main"}, {"fairlead.io/revision": "new"}
    workload = {"metadata": {"name": "d", "labels": labels, "annotations": notes}}
    old, is_pending = of_revision(failed, "old"), unschedulable("no room", lastTransitionTime="2027-01-15T08:00:00Z")
    for starting in (pod(), is_pending):
        assert (
            diagnose([old, of_revision(starting, "new")], [workload], wall=1_800_000_000.0, grace_seconds=9.0) is None
        )
    for others in ([], [of_revision(pod(conditions=[{"type": "Ready", "status": "True"}]), "new")]):
        diagnosis = diagnose([old, *others], [workload])
        assert diagnosis is not None
        assert diagnosis.reason is reason
    diagnosis = diagnose([old, of_revision(pod("q", waiting("ErrImagePull")), "new")], [workload])
    assert diagnosis is not None
    assert (diagnosis.reason, diagnosis.message[:6], diagnosis.pods) == (Reason.IMAGE_PULL_FAILED, "pod q:", 1)


@pytest.mark.parametrize(("old", "new", "in_rollout"), [(1, 1, True), (3, 2, True), (0, 2, False), (2, 0, False)])
def test_new_pods_without_nodes_tell_how_to_make_room_in_a_rollout(old: int, new: int, in_rollout: bool) -> None:
    workload = {"metadata": {"labels": {"fairlead.io/pool": "main"}, "annotations": {"fairlead.io/revision": "new"}}}
    ready = pod(conditions=[{"type": "Ready", "status": "True"}])
    pods = [of_revision(ready, "old")] * old + [of_revision(unschedulable("no room"), "new")] * new
    diagnosis = diagnose(pods, [workload])
    assert (diagnosis is not None) is (new > 0)
    if diagnosis is not None:
        assert diagnosis.advice.startswith("Add nodes, or lower minReplicas by rollout.maxSurge") is in_rollout


def of_group(workload: str, index: int, member: int, schedules: str) -> dict[str, Any]:
    """Returns a pod of a group. schedules: `placed`, `waiting`, or empty for neither yet."""
    names = {"name": workload, "group-index": str(index)}
    labels = {f"leaderworkerset.sigs.k8s.io/{key}": value for key, value in names.items()}
    condition = {"type": "PodScheduled", "status": "True"} if schedules == "placed" else None
    manifest = unschedulable("no room") if schedules == "waiting" else pod(conditions=[condition] if condition else [])
    return {**manifest, "metadata": {"name": f"{workload}-{index}-{member}", "labels": labels}}


@pytest.mark.parametrize("seed", range(20))
def test_groups_that_hold_nodes_which_others_wait_for_are_named(seed: int) -> None:
    chance = random.Random(seed)
    pods, partial = [unschedulable("no room")], []
    for workload, index in itertools.product(("m-decode", "m-prefill"), range(3)):
        states = [chance.choice(["placed", "waiting", "placed", ""]) for _ in range(chance.randint(2, 4))]
        pods += [of_group(workload, index, member, state) for member, state in enumerate(states)]
        if {"placed", "waiting"} <= set(states):
            partial.append(f"{workload}-{index}")
    diagnosis = diagnose(pods, [])
    assert diagnosis is not None
    says = f"Groups {' and '.join(partial)} hold nodes that the others wait for: add nodes, or lower minReplicas."
    assert diagnosis.advice.startswith(says if len(partial) > 1 else "Add nodes")


def of_pool(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "metadata": {"name": "p", "namespace": "chat", "labels": {"fairlead.io/pool": "main"}}}


def workload(kind: str = "Deployment", **pod_spec: Any) -> dict[str, Any]:
    template = {"spec": pod_spec}
    spec = {"template": template} if kind == "Deployment" else {"leaderWorkerTemplate": {"workerTemplate": template}}
    return {"kind": kind, "metadata": {"name": "d", "labels": {"fairlead.io/pool": "main"}}, "spec": spec}


def volume(name: str, claim: str) -> dict[str, Any]:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


@pytest.mark.parametrize(
    ("volumes", "words"),
    [
        (
            [volume("a", "weights")],
            "claim weights is Pending (kubectl describe pvc -n chat weights says why). Read the claim's events",
        ),
        ([volume("a", "weights"), volume("b", "logs")], "one of the claims weights, logs is Pending"),
        (
            [{"name": "cache", "ephemeral": {"volumeClaimTemplate": {}}}, {"name": "shm", "emptyDir": {}}],
            "claim p-cache is Pending",
        ),
    ],
)
def test_unbound_claim_is_named_and_not_called_missing(volumes: list[dict[str, Any]], words: str) -> None:
    requirements = requirements_by_pool([workload(volumes=volumes)], {})
    diagnosis = diagnose([of_pool(unschedulable(UNBOUND))], [], requirements=requirements)
    assert diagnosis is not None
    assert diagnosis.reason is Reason.UNBOUND_CLAIM
    assert words in diagnosis.message_with_advice
    assert "not found" not in diagnosis.message_with_advice
    assert "Create it" not in diagnosis.message_with_advice


@pytest.mark.parametrize("claims", [(), ("models",), ("models", "adapters")])
@pytest.mark.parametrize(
    "words", ["didn't match PersistentVolume's node affinity", "had volume node affinity conflict"]
)
@pytest.mark.parametrize("others", ["", ", 2 node(s) didn't match Pod's node affinity/selector"])
def test_claim_that_is_bound_to_another_node_is_named(claims: tuple[str, ...], words: str, others: str) -> None:
    message = f"0/3 nodes are available: 1 node(s) {words}{others}. preemption: 0/3 nodes are available."
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    requirements = requirements_by_pool([workload(volumes=volumes)], {})
    pods = [of_pool(unschedulable(message))] * 2
    diagnosis = diagnose(pods, [], requirements=requirements)
    assert diagnosis is not None
    assert diagnosis.reason is Reason.INSUFFICIENT_CAPACITY
    text = diagnosis.message_with_advice
    assert f"{claims[-1] if claims else 'its claim'} is bound to another node; the scheduler says:" in text
    assert text.endswith("(and 1 more like it). Use a claim that several nodes can mount, or model.cache.size.")
    assert "no node fits" not in text
    assert "Add nodes" not in text


@pytest.mark.parametrize("kind", ["Deployment", "LeaderWorkerSet"])
def test_lack_of_capacity_names_what_the_pool_asks_for(kind: str) -> None:
    resources = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1", "cpu": "4"}}
    pods = [
        of_pool(unschedulable(f"0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 {'x' * 400}"))
    ]
    engine = {"name": "engine", "resources": resources}
    template = workload(kind, containers=[engine, {"name": "side"}], nodeSelector={"gpu": "L40S"})
    requirements = requirements_by_pool([template], {"main": "l40s"})
    diagnosis = diagnose(pods, [], requirements=requirements)
    assert diagnosis is not None
    assert diagnosis.message == (
        "pod p waits for a node: no node fits 1 nvidia.com/gpu with gpu=L40S (class l40s); "
        "the scheduler says: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    assert diagnosis.message_with_advice.endswith("tolerations of the AcceleratorClass.")


@pytest.mark.parametrize("amount", ["²", "9" * 5_000, {"a": 1}, None])
def test_an_amount_of_a_template_that_is_no_number_is_left_out(amount: object) -> None:
    template = workload()
    template["spec"]["template"]["spec"]["containers"] = [{"name": "e", "resources": {"limits": {"x/gpu": amount}}}]
    (requirements,) = requirements_by_pool([template], {}).values()
    assert requirements.resources == ()


def test_pool_without_devices_names_processors_and_memory() -> None:
    engine = {"name": "engine", "resources": {"requests": {"memory": "8Gi", "cpu": "4"}}}
    requirements = requirements_by_pool([workload(containers=[engine])], {})
    assert requirements["main"].describe() == "4 cpu, 8Gi memory"


def test_pod_without_transition_time_counts_from_now() -> None:
    hoped = pending_capacity([unschedulable("no room")], 7.0, 600.0)
    assert hoped is not None
    assert hoped.seconds == 600.0


REFUSALS = (
    (Forbidden, 'admission webhook "vleaderworkerset.kb.io" denied the request: {}', Reason.POLICY_REFUSED),
    (Invalid, 'admission webhook "queue.example.com" denied the request: {}', Reason.POLICY_REFUSED),
    (Invalid, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: {}", Reason.POLICY_REFUSED),
    (Invalid, 'Deployment.apps "d" is invalid: {}', Reason.INVALID_TEMPLATE),
)


@pytest.mark.parametrize(("error", "text", "reason"), REFUSALS)
@pytest.mark.parametrize("path", ["spec.selector", "spec.leaderWorkerTemplate.workerTemplate", "spec.startupPolicy"])
def test_field_that_may_not_change_is_changed_in_a_second_pool(
    error: type[Forbidden | Invalid], text: str, reason: Reason, path: str
) -> None:
    for says, advice in ((": field is immutable", "Add a pool of another name"), (": is not allowed", "C")):
        failure = diagnose_write(error(text.format(f"{path}: Invalid value{says}"), status=403), "LeaderWorkerSet", "m")
        assert failure is not None
        assert failure.reason is reason
        assert failure.advice.startswith(advice)


def test_rejected_writes_differ_from_conflicts() -> None:
    assert diagnose_write(Conflict("somebody was first", status=409), "Service", "s") is None
    cause = diagnose_write(Forbidden('pods violates PodSecurity "restricted:latest"', status=403), "Deployment", "d")
    assert cause is not None
    assert cause.reason is Reason.POLICY_REFUSED
    large = diagnose_write(Invalid("etcdserver: request is too large", status=400), "Deployment", "d")
    assert large is not None
    assert large.reason is Reason.TOO_LARGE
