"""Pool states while instances are replaced, for workloads with and without revision counts."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from fairlead.api.conditions import Reason
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.kube.conditions import find_condition
from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest
from fairlead_operator.status.events import events_of_status
from fairlead_operator.status.model_status import PoolState, StatusInputs, model_status
from fairlead_operator.status.pool_status import ObservedPools, pool_states
from fairlead_testing.kube.manifests import manifest

SPEC = ModelDeploymentSpec.model_validate(
    {
        "model": {"uri": "hf://a/b"},
        "engine": {"type": "Sim"},
        "pools": [{"acceleratorClassName": "cpu", "minReplicas": 2, "parallelism": {"tensor": 2, "nodes": 2}}],
    }
)
NEW, OLD = "bbbb", "aaaa"
SERVED = {"conditions": [{"type": "Ready", "status": "True", "reason": "AllReady"}]}


def group(**status: Any) -> Manifest:
    """Returns a LeaderWorkerSet as last applied: revision `now`, with the pods of `NEW`."""
    notes = {"fairlead.io/model-revision": "now", "fairlead.io/revision": NEW}
    metadata = {"generation": 7, "labels": {"fairlead.io/pool": "main"}, "annotations": notes}
    counts = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, **status}
    return manifest(LEADER_WORKER_SETS, "m-main", None, metadata, spec={"replicas": 2}, status=counts)


def leader(revision: str, *, pool: str = "main", **metadata: Any) -> Manifest:
    labels = {"fairlead.io/pool": pool, "fairlead.io/endpoint": "true", "fairlead.io/revision": revision}
    return {"metadata": {"labels": labels, **metadata}}


def worker(revision: str) -> Manifest:
    return {"metadata": {"labels": {"fairlead.io/pool": "main", "fairlead.io/revision": revision}}}


def state(workload: Manifest, *pods: Manifest, notes: dict[str, str] | None = None) -> PoolState:
    observed = ObservedPools({(workload["kind"], "m-main"): workload}, pods)
    (pool,) = pool_states(SPEC, [workload], "now", observed, notes)
    return pool


def progress(pool: PoolState, *, paused: bool = False) -> tuple[str, str] | None:
    before = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "AllReady"}]}}
    model = {"metadata": {"name": "m", "namespace": "x"}, **before}
    condition = find_condition(
        model_status(model, StatusInputs((pool,), paused=paused), 1, "2026-01-01T00:00:00Z"), "Reconciling"
    )  # type: ignore[arg-type]
    return None if condition is None else (condition["reason"], condition["message"])


def test_group_workload_settles_without_observed_generation() -> None:
    pool = state(group(), leader(NEW), leader(NEW), worker(NEW), worker(NEW))
    assert (pool.ready, pool.updated, pool.existing, pool.is_settled) == (2, 2, 2, True)
    assert progress(pool) is None


def test_group_is_updated_when_its_leader_is() -> None:
    """Its numbers are still about the template before: only the pods know."""
    pool = state(group(), leader(OLD), leader(OLD), worker(OLD), worker(OLD))
    assert (pool.ready, pool.updated) == (2, 0)
    assert progress(pool) == (Reason.ROLLING_OUT, "pool main: 0 of 2 replaced")
    leaving = leader(NEW, deletionTimestamp="2026-01-01T00:00:00Z")
    assert state(group(), leader(NEW), leader(OLD), leaving, leader(NEW, pool="other")).updated == 1


@pytest.mark.parametrize("number", [0, 1, 5])
def test_foreign_replica_change_is_no_rollout(number: int) -> None:
    """The controller has not counted again yet: its counts are of the same template."""
    had = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "observedGeneration": 6}
    scaled = {**group(**had), "kind": "Deployment", "spec": {"replicas": number}}
    pool = state(scaled, leader(NEW), leader(NEW), leader(OLD, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert pool.is_settled
    assert progress(pool) == (Reason.SCALING, f"pool main: 2 instances, {number} desired")
    assert not state(scaled, leader(NEW), leader(OLD)).is_settled, "another template is no scaling"
    assert state(scaled).is_settled is (number == 0), "the pods have not been heard of yet"


def test_sleeping_ready_instances_are_counted() -> None:
    def pod(ready: str, **annotations: str) -> Manifest:
        status = {"conditions": [{"type": "Ready", "status": ready}]}
        return {**leader(NEW, annotations=annotations), "status": status}

    mark = {"fairlead.io/sleep": "1-asleep"}
    both = {**group(observedGeneration=7), "kind": "Deployment"}
    pool = state(both, pod("True", **mark), pod("True"), pod("False", **mark))
    assert pool.asleep == 1
    model = {"metadata": {"name": "m", "namespace": "x"}}
    condition = find_condition(model_status(model, StatusInputs((pool,)), 1, "2026-01-01T00:00:00Z"), "Ready")  # type: ignore[arg-type]
    assert condition is not None
    assert condition["message"] == "2 instances ready, 1 of them asleep"


def test_surge_group_is_not_counted_and_keeps_it_moving() -> None:
    more = group(replicas=3, readyReplicas=3)
    more["spec"]["replicas"] = 3
    more["metadata"]["annotations"]["fairlead.io/surge"] = "1"
    pool = state(more, leader(OLD), leader(OLD), leader(NEW))
    assert (pool.desired, pool.updated, pool.is_settled) == (2, 0, False)
    notes = {"main": "with a surge of 1 until all are replaced"}
    pool = state(more, leader(OLD), leader(NEW), leader(NEW), notes=notes)
    assert pool.updated == 1
    message = "pool main: 1 of 2 replaced, with a surge of 1 until all are replaced"
    assert progress(pool) == (Reason.ROLLING_OUT, message)
    pool = state(more, leader(NEW), leader(NEW), leader(NEW))
    assert (pool.updated, progress(pool)) == (2, (Reason.ROLLING_OUT, "pool main: 2 of 2 replaced"))


def test_workload_of_another_revision_has_no_updates() -> None:
    before = group()
    before["metadata"]["annotations"]["fairlead.io/model-revision"] = "before"
    assert state(before, leader(NEW), leader(NEW)).updated == 0


def test_pause_during_a_rollout_is_reported() -> None:
    half = state(group(), leader(NEW), leader(OLD))
    assert progress(half, paused=True) == (
        Reason.PAUSED,
        "the rollout is paused in the midst; pool main: 1 of 2 replaced",
    )
    assert progress(state(group(), leader(NEW), leader(NEW)), paused=True) is None


def rollout_states(desired: int, surge: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """Yields numbers of old, new and ready new pods in the phases of one rollout of a Deployment.

    In any order, new pods start, become ready or wait, and old ones end as soon as the rest serves.
    Nodes fail meanwhile.
    """
    random = Random(seed)
    old, new, ready = desired, 0, 0
    yield old, new, ready
    while old or new < desired:
        steps = [("ready", ready < new), ("start", new < desired and old + new < desired + surge)]
        steps += [("end", old > 0 and old + ready > desired), ("fail", old > 0 and random.random() < 0.1)]
        step = random.choice([name for name, is_possible in steps if is_possible])
        new += step == "start"
        ready += step == "ready"
        old -= step in ("end", "fail")
        yield old, new, ready


@pytest.mark.parametrize("seed", range(40))
def test_only_pods_that_replaced_an_old_one_are_counted(seed: int) -> None:
    desired, surge = Random(seed).randint(1, 6), Random(-seed).randint(1, 6)
    before: Manifest = {}
    done = []
    for old, new, ready in rollout_states(desired, surge, seed):
        counts = {"replicas": old + new, "updatedReplicas": new, "readyReplicas": old + ready, "observedGeneration": 7}
        workload = {**group(**counts), "kind": "Deployment", "spec": {"replicas": desired}}
        pool = state(workload)
        assert 0 <= pool.updated <= min(new, desired)
        assert pool.updated + old <= max(desired, old), "a surge pod replaces nothing yet"
        reason, message = progress(pool) or ("", "")
        assert (reason == Reason.ROLLING_OUT) is (old > 0), "until no old pod is left"
        assert not old or message == f"pool main: {max(0, min(new, desired - old))} of {desired} replaced"
        model = {"metadata": {"name": "m", "namespace": "x"}, "status": before or SERVED}
        after = model_status(model, StatusInputs((pool,)), 1, "2026-01-01T00:00:00Z")  # type: ignore[arg-type]
        done += [(old, event.reason) for event in events_of_status(before, after) if event.reason == "RolloutDone"]
        before = after
    assert done == [(0, "RolloutDone")], "once, when none is left"


@pytest.mark.parametrize(("desired", "is_paused"), [(0, False), (3, True)])
def test_rollout_that_is_cut_short_is_not_done(desired: int, *, is_paused: bool) -> None:
    counts = {"replicas": 4, "updatedReplicas": 1, "readyReplicas": 3, "observedGeneration": 7}
    statuses: list[Manifest] = [SERVED]
    for number, paused in ((3, False), (desired, is_paused)):
        pool = state({**group(**counts), "kind": "Deployment", "spec": {"replicas": number}})
        model = {"metadata": {"name": "m", "namespace": "x"}, "status": statuses[-1]}
        statuses.append(model_status(model, StatusInputs((pool,), paused=paused), 1, "2026-01-01T00:00:00Z"))  # type: ignore[arg-type]
    assert "RolloutDone" not in [event.reason for event in events_of_status(statuses[1], statuses[2])]
