"""Killed around every write while groups of nodes are replaced, and with an autoscaler that takes the number over in the midst.

Beside the loop run copies of the controllers of LeaderWorkerSets and StatefulSets: whatever happens when, there are never fewer
groups ready than asked, and in the end there are just as many as asked, of what is asked.
"""

from typing import Any

import pytest

from fairlead.api import EngineKind
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest
from fairlead_operator.render import InstallationDefaults
from fairlead_operator.rendering import renderer
from fairlead_testing.kube.lws_controllers import LwsControllers

NAMES = ("LeaderWorkerSet", "chat", "qwen-main")
SERVED = frozenset({(LEADER_WORKER_SETS.api_version, LEADER_WORKER_SETS.kind)})


class Killed(BaseException):
    """SIGKILL: nothing in the process sees it coming."""


class CrashHarness:
    """A model of groups of two nodes, and the controllers that run them. ``fewest``: how many served since it was set, at least."""

    def __init__(self, lab: Any, a_model: Any, asked: int) -> None:
        self.lab, self.asked, self.fewest, self.count = lab, asked, 0, 0
        self.kill_at: int | None = None
        self._model = a_model
        self._controllers: LwsControllers | None = None
        lab.served = SERVED
        lab.render = renderer(InstallationDefaults({EngineKind.SIM: "sim:1"}), None)
        lab.run_controllers = self.turn
        lab.kube.before_write = self._counted
        lab.restart()
        self.ask("first")
        self.settle()
        self.fewest, self.count = asked, 0

    def ask(self, round: str) -> None:
        """`kubectl apply`."""
        pool = {
            "name": "main",
            "accelerator": "cpu",
            "replicas": {"min": self.asked},
            "parallelism": {"tensor": 2, "nodes": 2},
        }
        engine = {"kind": "sim", "env": [{"name": "ROUND", "value": round}]}
        self.lab.kube.put(self._model(pools=[pool], engine=engine), "kubectl")

    def settle(self) -> None:
        """Until there is rest; with the kill that is due, and a new process after it."""
        try:
            self.lab.settle(most=200)
        except Killed:
            self.kill_at = None
            self.lab.restart()
            self.lab.settle(most=200)

    def workload(self) -> Manifest:
        (one,) = self.lab.kube.objects_of(NAMES[0])
        return dict(one)

    def turn(self) -> None:
        """The controllers look, what drains ends, what starts gets ready: until something is news, or nothing changes."""
        if not self.lab.kube.objects_of(NAMES[0]):
            return
        for _ in range(6):
            live = self.workload()
            self._controllers = ours = self._controllers or LwsControllers(live)
            ours.live = live
            before = len(self.lab.keys)
            ours.step()
            self._look(ours)
            self._told(ours)
            ours.groups = {place: one for place, one in ours.groups.items() if not one.leaving}
            for one in ours.groups.values():
                one.ready = True
            self._look(ours)
            self._told(ours)
            if len(self.lab.keys) > before:
                return

    def end(self) -> tuple[Any, ...]:
        """What is there in the end."""
        assert self._controllers is not None
        live, groups = self.workload(), self._controllers.groups
        assert [one.leaving or not one.ready for one in groups.values()] == [False] * len(groups)
        revisions = {one.revision for one in groups.values()}
        notes = live["metadata"]["annotations"]
        return (
            live["spec"],
            notes.get(SURGE_ANNOTATION),
            len(groups),
            revisions,
            self.lab.conditions(),
            self.lab.status()["ready"],
        )

    def _look(self, ours: LwsControllers) -> None:
        assert ours.serving_count >= self.fewest, ours

    def _told(self, ours: LwsControllers) -> None:
        """Pods and status as the API server has them."""
        kube = self.lab.kube
        pods = {one["metadata"]["name"]: one for one in ours.pods}
        there = {one["metadata"]["name"]: one for one in kube.objects_of("Pod")}
        for name in there.keys() - pods.keys():
            kube.remove("Pod", "chat", name)
        for name, one in pods.items():
            one["metadata"]["namespace"] = "chat"
            kube.put(one, "kubelet")
            if one["metadata"].get("deletionTimestamp") and "deletionTimestamp" not in there[name]["metadata"]:
                kube.mark_deleting("Pod", "chat", name)
        states = {"replicas": len(ours.groups), "readyReplicas": sum(one.ready for one in ours.groups.values())}
        metadata = {"name": NAMES[2], "namespace": "chat"}
        kind = {"apiVersion": LEADER_WORKER_SETS.api_version, "kind": NAMES[0]}
        kube.put({**kind, "metadata": metadata, "status": states}, "lws/status")

    def _counted(self, _: str) -> None:
        self.count += 1
        if self.count == self.kill_at:
            raise Killed


@pytest.mark.parametrize("asked", [1, 2])
def test_killed_before_every_write_of_a_rollout_of_groups_it_comes_to_the_same_end(
    labs: Any, a_model: Any, asked: int
) -> None:
    def rolled(kill_at: int | None) -> tuple[Any, int]:
        room = CrashHarness(labs(), a_model, asked)
        room.kill_at = kill_at
        room.ask("second")
        room.settle()
        return room.end(), room.count

    wanted, writes = rolled(None)
    spec, more, groups, revisions, conditions, ready = wanted
    assert (spec["replicas"], more, groups, len(revisions), ready) == (asked, None, asked, 1, f"{asked}/{asked}")
    assert conditions == {"Ready": ("True", "AllReady")}
    assert writes >= 4  # the revision, one more, the number again, and statuses
    for kill_at in range(1, writes + 1):
        assert rolled(kill_at)[0] == wanted, f"killed before write {kill_at} of {writes}"


@pytest.mark.parametrize("kill_at", [None, 1, 2, 3])
@pytest.mark.parametrize("after", range(6))
def test_an_autoscaler_that_writes_the_number_in_the_midst_keeps_it(
    labs: Any, a_model: Any, after: int, kill_at: int | None
) -> None:
    """After so many writes of the operator, and whether it is killed then or not: never taken back, never written again."""
    room = CrashHarness(labs(), a_model, 2)
    written: list[Any] = []

    def scale(_: str) -> None:
        if len(written) < after:
            written.append(None)
            return
        room.lab.kube.after_write = lambda _: None
        kind = {"apiVersion": LEADER_WORKER_SETS.api_version, "kind": NAMES[0]}
        metadata = {"name": NAMES[2], "namespace": "chat"}
        room.lab.kube.put({**kind, "metadata": metadata, "spec": {"replicas": 3}}, "hpa")
        room.count, room.kill_at = 0, kill_at

    room.lab.kube.after_write = scale
    room.ask("second")
    room.settle()
    assert room.lab.kube.after_write is not scale
    live = room.workload()
    owners = {
        one["manager"] for one in live["metadata"]["managedFields"] if "f:replicas" in one["fieldsV1"].get("f:spec", {})
    }
    assert (live["spec"]["replicas"], owners) == (3, {"hpa"})
    assert live["metadata"]["annotations"].get(SURGE_ANNOTATION) is None
    room.count = 0
    room.lab.restart()
    room.settle()
    assert room.count == 0
