"""Kills the operator around each write of a group rollout, or sets replicas meanwhile.

The controllers of LeaderWorkerSets and StatefulSets are modelled. There are never fewer ready
groups than desired, and in the end exactly the desired ones, up to date.
"""

from typing import Any

import pytest

from fairlead.api.spec.engine import EngineType
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.resources import LEADER_WORKER_SETS
from fairlead_operator.render import InstallationDefaults, render_model
from fairlead_testing.kube.lws_controllers import LwsControllers
from fairlead_testing.kube.operator_harness import NAMESPACE, OperatorHarness, model_manifest
from fairlead_testing.pytest_hooks.nightly import shortened

KIND = LEADER_WORKER_SETS.kind
WORKLOAD = {
    "apiVersion": LEADER_WORKER_SETS.api_version,
    "kind": KIND,
    "metadata": {"name": "qwen-main", "namespace": NAMESPACE},
}


class Killed(BaseException):
    """Raised in place of SIGKILL; nothing in the process handles it."""


class GroupHarness(OperatorHarness):
    """The operator with a model of two-node groups, and the controllers that run them.

    desired: number of groups.
    min_serving: lower bound of serving groups, which is checked all the time.
    """

    def __init__(self, desired: int) -> None:
        self.desired, self.min_serving, self.write_count = desired, 0, 0
        self.kill_at: int | None = None
        self.controllers: LwsControllers | None = None
        super().__init__(
            render=render_model,
            installation=InstallationDefaults({EngineType.SIM: "sim:1"}),
            served_kinds=frozenset({(LEADER_WORKER_SETS.api_version, KIND)}),
        )
        self.kube.before_write = self._count_write
        self.apply_model("first")
        self.run_through_crash()
        self.min_serving, self.write_count = desired, 0

    def apply_model(self, version: str) -> None:
        """Applies the model with kubectl."""
        pool = {
            "name": "main",
            "acceleratorClassName": "cpu",
            "minReplicas": self.desired,
            "parallelism": {"tensor": 2, "nodes": 2},
        }
        engine = {"type": "Sim", "env": [{"name": "VERSION", "value": version}]}
        self.kube.put(model_manifest(pools=[pool], engine=engine), "kubectl")

    def run_through_crash(self) -> None:
        """Runs until idle; restarts the operator if it is killed."""
        try:
            self.run_until_idle(max_rounds=200)
        except Killed:
            self.kill_at = None
            self.restart()
            self.run_until_idle(max_rounds=200)

    def run_controllers(self) -> None:
        """Runs the controllers until there is an event for the operator, or nothing changes."""
        if not self.kube.objects_of(KIND):
            return
        for _ in range(6):
            live = self.workload(KIND)
            self.controllers = controllers = self.controllers or LwsControllers(live)
            controllers.live = live
            event_count = len(self.keys)
            controllers.step()
            self._publish(controllers)
            controllers.groups = {index: group for index, group in controllers.groups.items() if not group.leaving}
            for group in controllers.groups.values():
                group.ready = True
            self._publish(controllers)
            if len(self.keys) > event_count:
                return

    def end_state(self) -> tuple[Any, ...]:
        """Returns the final state of the workload and its groups."""
        assert self.controllers is not None
        live, groups = self.workload(KIND), self.controllers.groups
        assert all(group.ready and not group.leaving for group in groups.values())
        return (
            live["spec"],
            live["metadata"]["annotations"].get(SURGE_ANNOTATION),
            len(groups),
            {group.revision for group in groups.values()},
            self.conditions(),
            self.status()["ready"],
        )

    def _publish(self, controllers: LwsControllers) -> None:
        """Writes the pods and the status to the API server."""
        assert controllers.serving_count >= self.min_serving, controllers
        pods = {pod["metadata"]["name"]: pod for pod in controllers.pods}
        existing = {pod["metadata"]["name"]: pod for pod in self.kube.objects_of("Pod")}
        for name in existing.keys() - pods.keys():
            self.kube.remove("Pod", NAMESPACE, name)
        for name, pod in pods.items():
            pod["metadata"]["namespace"] = NAMESPACE
            self.kube.put(pod, "kubelet")
            if pod["metadata"].get("deletionTimestamp") and "deletionTimestamp" not in existing[name]["metadata"]:
                self.kube.mark_deleting("Pod", NAMESPACE, name)
        groups = controllers.groups.values()
        status = {"replicas": len(groups), "readyReplicas": sum(group.ready for group in groups)}
        self.kube.put({**WORKLOAD, "status": status}, "lws/status")

    def _count_write(self, _: str) -> None:
        self.write_count += 1
        if self.write_count == self.kill_at:
            raise Killed


def roll_out(desired: int, kill_at: int | None) -> tuple[tuple[Any, ...], int]:
    """Returns the end state of a rollout, and the number of writes."""
    harness = GroupHarness(desired)
    harness.kill_at = kill_at
    harness.apply_model("second")
    harness.run_through_crash()
    return harness.end_state(), harness.write_count


@pytest.mark.parametrize("desired", [1, 2])
def test_crash_before_every_write_of_a_group_rollout_reaches_the_same_end(desired: int) -> None:
    expected, writes = roll_out(desired, None)
    spec, surge, group_count, revisions, conditions, ready = expected
    assert (spec["replicas"], surge, group_count) == (desired, None, desired)
    assert (len(revisions), ready) == (1, f"{desired}/{desired}")
    assert conditions == {"Ready": ("True", "AllReady")}
    assert writes >= 4  # revision, surge, replicas again, and statuses
    for kill_at in range(1, writes + 1, shortened(1, desired)):
        assert roll_out(desired, kill_at)[0] == expected, f"killed before write {kill_at} of {writes}"


@pytest.mark.parametrize("kill_at", [None, 1, 2, 3])
@pytest.mark.parametrize("after", range(6))
def test_autoscaler_that_writes_replicas_during_a_rollout_keeps_them(after: int, kill_at: int | None) -> None:
    """The autoscaler writes after `after` writes of the operator, which may be killed then."""
    harness = GroupHarness(2)
    writes: list[str] = []

    def scale(write: str) -> None:
        if len(writes) < after:
            writes.append(write)
            return
        harness.kube.after_write = lambda _: None
        harness.kube.put({**WORKLOAD, "spec": {"replicas": 3}}, "hpa")
        harness.write_count, harness.kill_at = 0, kill_at

    harness.kube.after_write = scale
    harness.apply_model("second")
    harness.run_through_crash()
    assert harness.kube.after_write is not scale
    live = harness.workload(KIND)
    owners = {
        entry["manager"]
        for entry in live["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert (live["spec"]["replicas"], owners) == (3, {"hpa"})
    assert live["metadata"]["annotations"].get(SURGE_ANNOTATION) is None
    harness.write_count = 0
    harness.restart()
    harness.run_through_crash()
    assert harness.write_count == 0
