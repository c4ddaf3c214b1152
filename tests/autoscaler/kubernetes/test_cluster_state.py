"""The state of the cluster as the autoscaler reads it, and the index of its models."""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.model import Role
from fairlead.kube.errors import NotFound, Unreachable
from fairlead.kube.resources import ACCELERATOR_CLASSES, DEPLOYMENTS, LEADER_WORKER_SETS, PODS
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead_autoscaler.core import ReplicaState, SleepTier, WakeTiming
from fairlead_autoscaler.kubernetes.cluster_state import (
    ClusterSnapshot,
    WatchStatus,
    foreign_writers,
    is_released,
    model_states,
    replicas_owner,
    sync_blocked_reason,
)
from fairlead_autoscaler.kubernetes.sleep_labels import SleepStatus
from fairlead_autoscaler.kubernetes.target import ModelIndex
from fairlead_autoscaler.target import ModelState

WALL = datetime(2026, 11, 21, 8, 2, tzinfo=UTC).timestamp()
L4 = builtin_accelerators()["nvidia-l4"].spec.model_copy(update={"cost_per_hour": "0.70"})
Make = Callable[..., dict[str, Any]]
POOL = {"acceleratorClassName": "nvidia-l4", "minReplicas": 1, "maxReplicas": 8}


def spec(*pools: dict[str, Any], mode: str = "Auto", **given: Any) -> ModelDeploymentSpec:
    model = {"model": {"uri": "hf://a/b"}, "pools": list(pools or (POOL,)), "autoscaling": {"mode": mode}}
    return ModelDeploymentSpec.model_validate({**model, **given})


def state(of: ModelDeploymentSpec, *objects: dict[str, Any], nursed: SleepStatus | None = None) -> ModelState | None:
    known = ClusterSnapshot(
        sleep_status=nursed or SleepStatus(),
        models=[ParsedModel("chat", "qwen", "", of)],
        workloads={"chat/qwen": [manifest for manifest in objects if manifest["kind"] != "Pod"]},
        pods={"chat/qwen": [manifest for manifest in objects if manifest["kind"] == "Pod"]},
        classes={"nvidia-l4": L4},
        wall=WALL,
    )
    return model_states(known).get("chat/qwen")


def test_a_pool_with_its_pods_is_told_with_states_ages_and_endpoints(a_workload: Make, a_pod: Make) -> None:
    notes = {"fairlead.io/port": "9000", "fairlead.io/data-parallel": "2"}
    observed = state(
        spec(slo={"ttft": "800ms", "target": "90%"}),
        a_workload(3),
        a_pod("a", annotations=notes),
        a_pod("b", ready=False),
        a_pod("c", going=True),
        a_pod("d", phase="Failed"),
        a_pod("e", labels={"fairlead.io/endpoint": "false"}),
    )
    assert observed is not None
    assert (observed.model.name, observed.model.ttft_seconds, observed.model.target) == ("chat/qwen", 0.8, 0.9)
    pool = observed.pools["main"]
    assert (pool.desired, pool.replicas_owner, pool.pause_reason) == (3, None, None)
    replicas = [
        (replica.id, replica.state, replica.age_seconds, replica.startup_seconds, replica.instances)
        for replica in pool.replicas
    ]
    assert replicas == [
        ("a", ReplicaState.READY, 120.0, 40.0, ("uid-a/9000/0", "uid-a/9000/1")),
        ("b", ReplicaState.PENDING, 120.0, None, ("uid-b/8000/0",)),
        ("c", ReplicaState.DRAINING, 120.0, 40.0, ("uid-c/8000/0",)),
    ]


def test_an_engine_that_was_started_again_tells_no_start_up_time(a_workload: Make, a_pod: Make) -> None:
    observed = state(spec(), a_workload(1), a_pod("a", containerStatuses=[{"restartCount": 2}]))
    assert observed is not None
    (replica,) = observed.pools["main"].replicas
    assert (replica.state, replica.startup_seconds) == (ReplicaState.READY, None)


def test_facts_are_those_of_the_spec_and_the_accelerator(a_workload: Make) -> None:
    observed = state(
        spec(
            {"name": "p", "role": "Prefill", "acceleratorClassName": "nvidia-l4", "minReplicas": 0, "maxReplicas": 3},
            {"name": "d", "role": "Decode", "acceleratorClassName": "nvidia-l4", "parallelism": {"tensor": 2}},
            kvCache={"transfer": "NIXL"},
        )
    )
    assert observed is not None
    prefill, decode = observed.model.pools
    assert (prefill.role, prefill.minimum, prefill.maximum) == (Role.PREFILL, 0, 3)
    assert (decode.role, decode.minimum, decode.maximum) == (Role.DECODE, 1, 1)  # without a max it stays at its min
    assert (prefill.cost_per_hour, decode.cost_per_hour) == (pytest.approx(0.7), pytest.approx(1.4))
    assert observed.pools == {}  # nothing is made of it yet


def test_models_that_are_switched_off_or_run_elsewhere_are_none(a_workload: Make) -> None:
    assert state(spec(mode="Disabled"), a_workload()) is None
    assert state(spec(mode="Advise"), a_workload()) is not None
    pools = [{"selector": {"matchLabels": {"a": "b"}}}]
    assert state(spec(*pools, mode="Disabled", engine={"type": "External"})) is None


@pytest.mark.parametrize(
    ("writers", "who"),
    [
        (("fairlead",), None),
        (("fairlead-autoscaler",), None),
        (("fairlead", "fairlead-autoscaler"), None),
        (("kubectl",), "kubectl"),
        (("fairlead-autoscaler", "kube-controller-manager"), "kube-controller-manager"),
    ],
)
def test_a_number_that_somebody_else_wrote_is_theirs(a_workload: Make, writers: tuple[str, ...], who: str) -> None:
    assert replicas_owner(spec(), a_workload(2, *writers)) == who


def test_a_number_in_the_spec_holds_the_pool() -> None:
    assert replicas_owner(spec(replicas=3), {"metadata": {}}) == "spec.replicas"


def test_who_sleeps_is_let_go_where_the_mode_or_the_number_is_somebody_elses(a_workload: Make) -> None:
    assert not is_released(spec(), a_workload(2, "fairlead", "fairlead-autoscaler"))
    assert is_released(spec(), a_workload(2, "kube-controller-manager"))
    assert is_released(spec(replicas=2), a_workload())
    for mode in ("Advise", "Disabled"):
        assert is_released(spec(mode=mode), a_workload())


def test_only_models_that_are_asked_about_are_told_of_and_by_whom_each_pool_is_held(a_workload: Make) -> None:
    two = ({**POOL, "name": "main"}, {**POOL, "name": "other"})
    reads = [
        ParsedModel("chat", "auto", "", spec(*two)),
        ParsedModel("chat", "off", "", spec(mode="Disabled")),
        ParsedModel("chat", "broken", "", None, "it cannot be read"),
    ]
    live = [a_workload(2, "kubectl"), a_workload(2, pool="other")]
    writers = foreign_writers(reads, {"chat/auto": live, "chat/off": live})
    assert writers == {"chat/auto": {"main": "kubectl"}, "chat/broken": {}}


def test_nothing_is_known_while_a_kind_was_never_listed_or_cannot_be_followed() -> None:
    away, gone = Unreachable("nobody answers"), NotFound("no such kind", status=404)
    assert sync_blocked_reason([WatchStatus(PODS, True), WatchStatus(DEPLOYMENTS, True)]) == ""
    assert sync_blocked_reason([WatchStatus(PODS, False)]) == "pods have not been listed yet"
    assert sync_blocked_reason([WatchStatus(PODS, True, away)]) == "cannot watch pods: nobody answers"
    assert sync_blocked_reason([WatchStatus(ACCELERATOR_CLASSES, False, away)]) == ""  # without the right to read them
    assert sync_blocked_reason([WatchStatus(ACCELERATOR_CLASSES, False)]) != ""
    assert sync_blocked_reason([WatchStatus(LEADER_WORKER_SETS, True, gone)]) == ""
    assert sync_blocked_reason([WatchStatus(LEADER_WORKER_SETS, True, away)]) != ""


def test_groups_that_are_replaced_with_one_more_are_left_alone_meanwhile(a_workload: Make) -> None:
    observed = state(spec(), a_workload(3, kind="LeaderWorkerSet", surge="1"))
    assert observed is not None
    assert observed.pools["main"].desired == 2
    assert observed.pools["main"].pause_reason is not None


def test_a_lone_group_of_ours_that_is_to_be_replaced_gets_a_second_one(a_workload: Make, a_pod: Make) -> None:
    live = a_workload(1, "fairlead-autoscaler", kind="LeaderWorkerSet", revision="new")
    old, new = (a_pod("a", labels={"fairlead.io/revision": revision}) for revision in ("old", "new"))
    for pod, least in ((old, 2), (new, 1)):
        observed = state(spec(), live, pod)
        assert observed is not None
        assert observed.model.pools[0].minimum == least


def test_marks_say_who_sleeps_and_the_engine_whether_it_does(a_workload: Make, a_pod: Make) -> None:
    def marked(name: str, mark: str, **more: Any) -> dict[str, Any]:
        return a_pod(name, annotations={"fairlead.io/port": "8000", "fairlead.io/sleep": mark}, **more)

    woken = WakeTiming(1, 2, 3.5)
    observed = state(
        spec(autoscaling={"mode": "Auto", "sleep": {"max": 3, "after": "1h"}}),
        a_workload(7),
        a_pod("a"),
        marked("b", "1-asleep"),
        marked("c", "1-asleep"),
        marked("d", "1-waking"),
        marked("e", "1-stuck"),
        marked("f", "nonsense"),
        a_pod("g", ready=False),
        nursed=SleepStatus(frozenset({"uid-b"}), {"uid-a": woken}),
    )
    assert observed is not None
    assert observed.model.pools[0].tier == SleepTier(3, 0, 1, 3_600.0)
    pool = observed.pools["main"]
    assert (pool.desired, pool.asleep) == (4, 2), "without the one that is stuck"
    assert {replica.id: replica.state.value for replica in pool.replicas} == {
        "a": "ready",
        "b": "asleep",
        "c": "falling-asleep",
        "d": "waking",
        "e": "draining",
        "f": "ready",
        "g": "pending",
    }
    assert pool.replicas[0].last_wake == woken


def test_a_pod_that_starts_for_the_tier_counts_as_asleep_before_it_can_be_marked(a_workload: Make, a_pod: Make) -> None:
    tiered = spec(autoscaling={"mode": "Auto", "sleep": {"max": 2}})
    wished = SleepStatus(desired_asleep={("chat/qwen", "main"): 2})
    for pods in ([a_pod("b", ready=False)], []):
        observed = state(tiered, a_workload(2), a_pod("a"), *pods, nursed=wished)
        assert observed is not None
        assert (observed.pools["main"].desired, observed.pools["main"].asleep) == (1, 1)
    there = state(tiered, a_workload(2), a_pod("a"), a_pod("b"), nursed=wished)
    assert there is not None
    assert (there.pools["main"].desired, there.pools["main"].asleep) == (2, 0), "it serves until somebody marks it"


def test_a_pool_whose_engines_refuse_to_sleep_has_no_tier_until_they_are_others(a_workload: Make, a_pod: Make) -> None:
    tiered = spec(autoscaling={"mode": "Auto", "sleep": {"max": 2}})
    refused = SleepStatus(rejecting_pools=frozenset({("chat/qwen", "main", "r1")}))
    for revision, sleeps in (("r1", False), ("r2", True)):
        observed = state(tiered, a_workload(1), a_pod("a", labels={"fairlead.io/revision": revision}), nursed=refused)
        assert observed is not None
        assert (observed.model.pools[0].tier is not None) is sleeps


@pytest.mark.parametrize("surge", ["9" * 5000, "-1", "\u0663", "1e9", ""])
def test_surge_annotation_that_is_no_number_does_not_stop_the_autoscaler(a_workload: Make, surge: str) -> None:
    observed = state(spec(), a_workload(3, surge=surge))
    assert observed is not None
    assert (observed.pools["main"].desired, observed.pools["main"].pause_reason) == (3, None)


def test_model_whose_objects_cannot_be_read_stops_no_other_model(a_workload: Make) -> None:
    broken = {**a_workload(), "spec": {"replicas": "many"}}
    known = ClusterSnapshot(
        models=[ParsedModel("a", "m", "", spec()), ParsedModel("b", "m", "", spec())],
        workloads={"a/m": [broken], "b/m": [a_workload(3)]},
    )
    assert model_states(known).keys() == {"b/m"}


def test_ranks_beyond_the_limit_of_a_fleet_take_no_memory(a_workload: Make, a_pod: Make) -> None:
    ranks = {"fairlead.io/port": "8000", "fairlead.io/data-parallel": "1024"}
    pods = [a_pod(f"p{number}", annotations=ranks) for number in range(500)]
    known = ClusterSnapshot(
        models=[ParsedModel("a", "m", "", spec())], workloads={"a/m": [a_workload()]}, pods={"a/m": pods}, wall=WALL
    )
    tracemalloc.start()
    states = model_states(known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(replica.instances) for replica in states["a/m"].pools["main"].replicas) == 4_096
    assert peak < 4_000_000, "half a million ranks would take 40 MB"


def test_ranks_of_one_namespace_are_looked_up_to_the_limit_of_a_fleet(a_workload: Make, a_pod: Make) -> None:
    ranks = {"fairlead.io/port": "8000", "fairlead.io/data-parallel": "8"}
    pods = [a_pod(f"p{number}", annotations=ranks) for number in range(5)]
    models = [ParsedModel("a", "m", "", spec()), ParsedModel("a", "n", "", spec()), ParsedModel("b", "m", "", spec())]
    keys = [model.key for model in models]
    known = ClusterSnapshot(
        models=models,
        workloads={key: [a_workload()] for key in keys},
        pods=dict.fromkeys(keys, pods),
        most_instances=16,
        wall=WALL,
    )
    states = model_states(known)
    counts = {key: [len(replica.instances) for replica in states[key].pools["main"].replicas] for key in keys}
    assert counts == {"a/m": [8, 8, 0, 0, 0], "a/n": [0, 0, 0, 0, 0], "b/m": [8, 8, 0, 0, 0]}


def pod(name: str, model: str, namespace: str = "chat") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"fairlead.io/model": model}}
    return {"kind": "Pod", "metadata": metadata}


def test_index_follows_new_moved_and_deleted_objects() -> None:
    index = ModelIndex()
    for manifest in (pod("a", "qwen"), pod("b", "qwen"), pod("a", "qwen", "other")):
        index.apply(WatchEvent(WatchEventType.ADDED, manifest))
    assert [manifest["metadata"]["name"] for manifest in index.of_model("chat/qwen")] == ["a", "b"]
    index.apply(WatchEvent(WatchEventType.MODIFIED, pod("a", "llama")))
    index.apply(WatchEvent(WatchEventType.DELETED, pod("b", "qwen")))
    assert {key: len(objects) for key, objects in index.by_model().items()} == {"chat/llama": 1, "other/qwen": 1}
    assert index.of_model("chat/qwen") == ()
    index.apply(WatchEvent(WatchEventType.DELETED, pod("never", "qwen")))


class CountedPods(dict[str, Any]):
    """A pod that counts how often it is read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        type(self).reads += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        type(self).reads += 1
        return super().get(key, default)


def test_look_up_of_a_model_reads_no_object_of_another_model() -> None:
    index = ModelIndex()
    for number in range(1_000):
        index.apply(WatchEvent(WatchEventType.ADDED, CountedPods(pod(f"p{number}", f"m{number}"))))
    CountedPods.reads = 0
    assert len(index.of_model("chat/m7")) == 1
    assert CountedPods.reads == 0
