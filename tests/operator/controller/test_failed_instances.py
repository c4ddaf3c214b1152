"""A Deployment replaces pods that never started on their own devices, and keeps ready ones.

`DeploymentModel` acts like Kubernetes 1.36: `reconcileNewReplicaSet`, `cleanupUnhealthyReplicas`
and `scaleDownOldReplicaSetsForRollingUpdate`.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.kube.resources import Manifest
from fairlead_operator.controller.failed_instances import replace_failed

LABELS = {"fairlead.io/pool": "main"}


def wanted(desired: int, revision: str, surge: int = 1, *, paused: bool = False) -> Manifest:
    """Returns the Deployment as it is rendered."""
    rolling = {"maxSurge": surge, "maxUnavailable": 0}
    return {
        "kind": "Deployment",
        "metadata": {"name": "m-main", "labels": LABELS, "annotations": {"fairlead.io/revision": revision}},
        "spec": {
            "replicas": desired,
            "paused": paused,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        },
    }


@dataclass
class Instance:
    """A pod. It has a device from its start on."""

    revision: str
    has_device: bool = False
    started: bool = False
    ready: bool = False

    def manifest(self) -> Manifest:
        """Returns the pod as kubelet reports it."""
        conditions = [{"type": "Ready", "status": str(self.ready)}]
        status = {"conditions": conditions, "containerStatuses": [{"started": self.started}]}
        return {"metadata": {"labels": {**LABELS, "fairlead.io/revision": self.revision}}, "status": status}


@dataclass
class DeploymentModel:
    """A Deployment, its pods, and `devices` devices. Pods of `broken` revisions never start."""

    live: Manifest
    devices: int
    broken: set[str] = field(default_factory=set)
    instances: list[Instance] = field(default_factory=list)
    writes: int = 0

    @property
    def ready(self) -> int:
        """Number of ready pods."""
        return sum(pod.ready for pod in self.instances)

    def operator(self, desired: Manifest) -> None:
        """Runs one pass of the operator."""
        applied = replace_failed(desired, self.live, [pod.manifest() for pod in self.instances])
        self.writes += applied["spec"] != self.live["spec"]
        self.live = applied

    def step(self) -> None:
        """Runs one pass of the Deployment's controller, and of the scheduler."""
        spec, revision = self.live["spec"], self.live["metadata"]["annotations"]["fairlead.io/revision"]
        rolling, desired = spec["strategy"]["rollingUpdate"], spec["replicas"]
        new = [pod for pod in self.instances if pod.revision == revision]
        room = min(desired + rolling["maxSurge"] - len(self.instances), desired - len(new))
        self.instances += [Instance(revision) for _ in range(room)]
        least = desired - rolling["maxUnavailable"]
        new = [pod for pod in self.instances if pod.revision == revision]
        removable = len(self.instances) - least - sum(not pod.ready for pod in new)
        unready = [pod for pod in self.instances if pod.revision != revision and not pod.ready][: max(0, removable)]
        self.instances = [pod for pod in self.instances if not any(pod is gone for gone in unready)]
        old_ready = [pod for pod in self.instances if pod.revision != revision and pod.ready]
        surplus = old_ready[: max(0, self.ready - least)] if removable > 0 else []
        self.instances = [pod for pod in self.instances if not any(pod is gone for gone in surplus)]
        for pod in self.instances:
            used = sum(other.has_device for other in self.instances)
            pod.has_device |= used < self.devices

    def start(self, chance: random.Random) -> None:
        """Lets some pods with a device get ready."""
        for pod in self.instances:
            if pod.has_device and pod.revision not in self.broken and chance.random() < 0.5:
                pod.started = pod.ready = True


def settle(model: DeploymentModel, desired: Manifest, chance: random.Random) -> None:
    """Runs all controllers in a random order; the operator is never a step behind a ready pod."""
    for _ in range(60):
        before = model.ready
        model.operator(desired)
        model.step()
        assert model.ready >= min(before, desired["spec"]["replicas"])
        model.operator(desired)
        model.start(chance)


@pytest.mark.property
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 5), st.lists(st.sampled_from("bcd"), max_size=3), st.randoms()
)
def test_corrected_revision_replaces_pods_that_never_started_without_free_devices(
    desired: int, surge: int, failed: int, failing: list[str], chance: random.Random
) -> None:
    failed = min(failed, desired)
    model = DeploymentModel(wanted(desired, "a", surge), devices=desired, broken=set(failing))
    model.instances = [Instance("a", True, index >= failed, index >= failed) for index in range(desired)]
    for revision in failing:
        settle(model, wanted(desired, revision, surge), chance)
        assert model.ready == desired - failed
    settle(model, wanted(desired, "right", surge), chance)
    assert model.ready == desired
    revisions = sorted(pod.revision for pod in model.instances)
    assert revisions.count("right") >= failed
    assert model.live == wanted(desired, "right", surge)
    assert model.writes <= 2 * (1 + len(failing))


@pytest.mark.parametrize("unready", range(4))
def test_pod_that_was_ready_before_allows_no_loss(unready: int) -> None:
    """A network that fails for seconds makes all pods unready; ended ones would load again."""
    pods = [Instance("a", True, True, index >= unready).manifest() for index in range(3)]
    assert replace_failed(wanted(3, "b"), wanted(3, "a"), pods) == wanted(3, "b")


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_number_of_another_writer_counts(replicas: int) -> None:
    live = wanted(replicas, "a")
    entry = {"manager": "hpa", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    live["metadata"]["managedFields"] = [entry]
    pods = [Instance("a").manifest() for _ in range(replicas)]
    changed = replace_failed(wanted(1, "b"), live, pods)
    assert changed["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": replicas}


def test_nothing_is_allowed_without_a_change_or_while_paused() -> None:
    failed = [Instance("a").manifest()]
    other_pool = {**failed[0], "metadata": {"labels": {"fairlead.io/pool": "other"}}}
    assert replace_failed(wanted(1, "a"), wanted(1, "a"), failed) == wanted(1, "a")
    assert replace_failed(wanted(1, "b"), None, failed) == wanted(1, "b")
    assert replace_failed(wanted(1, "b"), wanted(1, "a"), [other_pool]) == wanted(1, "b")
    assert replace_failed(wanted(1, "b", paused=True), wanted(1, "a"), failed) == wanted(1, "b", paused=True)
