"""Replicas are written under Fairlead's field manager, never over another; marks come first."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.labels import DELETION_COST_ANNOTATION, SLEEP_ANNOTATION
from fairlead.kube.errors import Conflict
from fairlead.kube.field_managers import replicas_managers
from fairlead_autoscaler.kubernetes.scale_writer import ScaleWriter, deletion_costs
from fairlead_testing.kube.in_memory import InMemoryKube

Manifest = dict[str, Any]
Make = Callable[..., Manifest]


class FakeWorkloads:
    def __init__(self, kube: InMemoryKube) -> None:
        self.kube = kube

    def workload(self, key: str, pool: str) -> Manifest | None:
        workloads = self.kube.objects_of("Deployment") + self.kube.objects_of("LeaderWorkerSet")
        return next(
            (manifest for manifest in workloads if manifest["metadata"]["labels"]["fairlead.io/pool"] == pool), None
        )

    def pods(self, key: str, pool: str) -> Sequence[Manifest]:
        return self.kube.objects_of("Pod")

    def sleep_level(self, key: str) -> int:
        return 2


class WorkloadFixture:
    """One workload in memory, which the operator made with ``replicas``."""

    def __init__(self, workload: Manifest, *pods: Manifest) -> None:
        self.kube = InMemoryKube()
        kept = {name: value for name, value in workload["metadata"].items() if name in ("name", "namespace", "labels")}
        self.kind = workload["kind"]
        self.workload = {name: value for name, value in workload.items() if name != "spec"} | {"metadata": kept}
        self.kube.put({**self.workload, "spec": workload["spec"]}, "fairlead")
        for pod in pods:
            self.kube.put(pod)
        self.scaler = ScaleWriter(self.kube, FakeWorkloads(self.kube))

    def scale(self, replicas: int, *leaving: str, asleep: int = 0) -> None:
        asyncio.run(self.scaler.scale("chat/qwen", "main", replicas, leaving, asleep))

    def sleep(self) -> dict[str, str | None]:
        """Returns the sleep marks of the pods."""
        return {
            manifest["metadata"]["name"]: manifest["metadata"]["annotations"].get(SLEEP_ANNOTATION)
            for manifest in self.kube.objects_of("Pod")
        }

    @property
    def live(self) -> Manifest:
        (workload,) = self.kube.objects_of(self.kind)
        return workload

    @property
    def stands(self) -> tuple[int, tuple[str, ...]]:
        return self.live["spec"]["replicas"], replicas_managers(self.live)


@pytest.mark.parametrize("kind", ["Deployment", "LeaderWorkerSet"])
def test_the_number_is_taken_over_from_the_operator_and_kept_through_zero(a_workload: Make, kind: str) -> None:
    room = WorkloadFixture(a_workload(2, kind=kind))
    for number in (5, 0, 1, 3):
        room.scale(number)
        assert room.stands == (number, ("fairlead-autoscaler",))


def test_somebody_elses_number_is_not_written(a_workload: Make) -> None:
    room = WorkloadFixture(a_workload(2))
    room.scale(5)
    room.kube.put({**room.workload, "spec": {"replicas": 7}}, "kubectl/scale")
    with pytest.raises(Unavailable, match="kubectl sets the number of pool main"):
        room.scale(4)
    assert room.stands == (7, ("kubectl",))


def test_whoever_was_faster_keeps_the_number(a_workload: Make) -> None:
    room = WorkloadFixture(a_workload(2))

    def hpa(what: str) -> None:
        if what.startswith("scale"):
            room.kube.before_write = lambda _: None
            room.kube.put({**room.workload, "spec": {"replicas": 9}}, "hpa/scale")

    room.kube.before_write = hpa
    with pytest.raises(Unavailable, match="hpa sets the number"):
        room.scale(4)
    assert room.stands == (9, ("hpa",))


def test_an_object_that_changes_under_a_write_is_written_all_the_same(a_workload: Make) -> None:
    room = WorkloadFixture(a_workload(2))
    left = [1, 2]

    def busy(what: str) -> None:
        if what.startswith("scale") and left:
            room.kube.put({**room.workload, "status": {"readyReplicas": left.pop()}}, "kcm/status")

    room.kube.before_write = busy
    room.scale(4)
    assert room.stands[0] == 4

    def never(what: str) -> None:
        if what.startswith("scale"):
            room.kube.put(
                {**room.workload, "status": {"observed": room.live["metadata"]["resourceVersion"]}}, "kcm/status"
            )

    room.kube.before_write = never
    with pytest.raises(Conflict):
        room.scale(6)
    assert room.stands[0] == 4


def test_a_pool_without_a_workload_is_said_to_be_one(a_workload: Make) -> None:
    room = WorkloadFixture(a_workload(2))
    room.kube.remove("Deployment", "chat", "qwen-main")
    with pytest.raises(Unavailable, match="has no workload"):
        room.scale(3)


@pytest.mark.parametrize("kind", ["Deployment", "LeaderWorkerSet"])
def test_a_workload_that_is_deleted_under_a_write_is_not_made_again(a_workload: Make, kind: str) -> None:
    room = WorkloadFixture(a_workload(2, kind=kind))

    def deleted(what: str) -> None:
        room.kube.before_write = lambda _: None
        room.kube.remove(kind, "chat", "qwen-main")

    room.kube.before_write = deleted
    with pytest.raises(Unavailable, match="no longer has a workload"):
        room.scale(4)
    assert room.kube.objects_of(kind) == []


def test_those_that_are_to_go_are_marked_in_their_order_and_the_others_unmarked(a_workload: Make, a_pod: Make) -> None:
    names = ("a", "b", "c", "d")
    room = WorkloadFixture(a_workload(4), *(a_pod(name) for name in names))

    def marks() -> dict[str, str | None]:
        pods = {manifest["metadata"]["name"]: manifest["metadata"] for manifest in room.kube.objects_of("Pod")}
        return {name: pods[name]["annotations"].get(DELETION_COST_ANNOTATION) for name in names}

    room.scale(2, "c", "a", "b", "d")
    assert marks() == {"a": "-1", "b": None, "c": "-2", "d": None}
    assert room.kube.writes[-1] == "scale Deployment qwen-main to 2"
    room.kube.writes.clear()
    room.scale(3, "b", "a", "c", "d")
    assert marks() == {"a": None, "b": "-1", "c": None, "d": None}
    room.scale(4)
    assert marks() == dict.fromkeys(names)


def test_costs_of_somebody_elses_making_and_pods_that_leave_are_left_alone(a_pod: Make) -> None:
    theirs = a_pod("a", annotations={DELETION_COST_ANNOTATION: "50"})
    going = a_pod("b", going=True, annotations={DELETION_COST_ANNOTATION: "-1"})
    assert deletion_costs([theirs, going], []) == {}
    assert deletion_costs([theirs, going], ["a"]) == {"a": "-1"}


def test_who_is_not_to_serve_is_marked_to_sleep_and_the_number_counts_both(a_workload: Make, a_pod: Make) -> None:
    room = WorkloadFixture(a_workload(3), *(a_pod(name) for name in ("a", "b", "c")))
    room.scale(1, "b", "a", "c", asleep=1)
    assert room.sleep() == {"a": None, "b": "2-asleep", "c": None}
    assert room.stands[0] == 2
    costs_of = {
        manifest["metadata"]["name"]: manifest["metadata"]["annotations"].get(DELETION_COST_ANNOTATION)
        for manifest in room.kube.objects_of("Pod")
    }
    assert costs_of == {"a": "-1", "b": None, "c": None}
    assert room.scaler.desired_asleep == {("chat/qwen", "main"): 1}


def test_who_sleeps_is_woken_before_anybody_is_started(a_workload: Make, a_pod: Make) -> None:
    asleep = {SLEEP_ANNOTATION: "1-asleep", "fairlead.io/port": "8000"}
    room = WorkloadFixture(a_workload(2), a_pod("a"), a_pod("b", annotations=asleep))
    room.scale(3)
    assert room.sleep() == {"a": None, "b": "1-waking"}
    assert room.stands[0] == 3


def test_who_still_starts_is_not_marked_and_one_that_does_not_wake_goes_first(a_workload: Make, a_pod: Make) -> None:
    stuck = {SLEEP_ANNOTATION: "1-stuck", "fairlead.io/port": "8000"}
    room = WorkloadFixture(a_workload(3), a_pod("a"), a_pod("b", ready=False), a_pod("c", annotations=stuck))
    room.scale(1, "b", "a", asleep=1)
    assert room.sleep() == {"a": None, "b": None, "c": "1-stuck"}
    assert room.stands[0] == 3, "the stuck one counts for nobody"
    room.scale(1, "b", "a")
    (cost,) = [
        manifest["metadata"]["annotations"].get(DELETION_COST_ANNOTATION) for manifest in room.kube.objects_of("Pod")
    ][2:]
    assert cost == "-1"
