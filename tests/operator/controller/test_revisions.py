"""The revision to run: that of the spec, one that a pause keeps, or a requested one."""

from typing import Any

import pytest

from fairlead_operator.controller.revisions import (
    MAX_KEPT_REVISIONS,
    ModelRevision,
    choose_revision,
    controller_revision,
    revision_hash,
    revisions_to_keep,
    stored_revisions,
    with_current_numbers,
)
from fairlead_operator.object_metadata import MODEL_LABEL, UNDO_ANNOTATION


def spec(image: str = "a", **more: Any) -> dict[str, Any]:
    pools = more.pop("pools", [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 1}])
    return {"engine": {"type": "Sim", "image": image}, "pools": pools, **more}


def model(fields: dict[str, Any], undo: str = "") -> dict[str, Any]:
    return {"metadata": {"name": "m", "annotations": {UNDO_ANNOTATION: undo} if undo else {}}, "spec": fields}


def stored(*images: str) -> tuple[ModelRevision, ...]:
    return tuple(
        ModelRevision(number, revision_hash(spec(image)), spec(image)) for number, image in enumerate(images, 1)
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"replicas": 3},
        {"slo": {"ttft": "1s"}},
        {"routing": {"preset": "random"}},
        {"rollout": {"maxSurge": 2}},
        {"pools": [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 7}]},
    ],
)
def test_fields_without_restart_make_no_revision(changed: dict[str, Any]) -> None:
    assert revision_hash(spec(**changed)) == revision_hash(spec())


def test_drain_is_part_of_a_revision_unless_default() -> None:
    assert revision_hash(spec(rollout={"drainTimeout": "5m", "maxSurge": 1})) == revision_hash(spec())
    assert revision_hash(spec(rollout={"drainTimeout": "10m"})) != revision_hash(spec())


def test_earlier_revision_keeps_its_drain_and_current_settings() -> None:
    old, present = (
        spec("a", rollout={"drainTimeout": "10m", "maxSurge": 1}),
        spec("b", rollout={"drainTimeout": "20m", "maxSurge": 3}),
    )
    assert with_current_numbers(old, present)["rollout"] == {"drainTimeout": "10m", "maxSurge": 3}
    assert with_current_numbers(spec("a"), present)["rollout"] == {"maxSurge": 3}


def test_new_spec_is_the_next_revision_and_old_ones_are_renumbered() -> None:
    assert choose_revision(model(spec("c")), stored("a", "b"), frozenset()).revision.number == 3
    again = choose_revision(model(spec("a")), stored("a", "b"), frozenset())
    assert (again.revision.number, again.revision.hash, again.is_pending) == (3, revision_hash(spec("a")), False)
    assert choose_revision(model(spec("b")), stored("a", "b"), frozenset()).revision.number == 2


def test_paused_change_waits_and_replica_counts_follow() -> None:
    pools = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 5}]
    paused = spec("b", pools=pools, rollout={"paused": True})
    old = stored("a")
    choice = choose_revision(model(paused), old, frozenset([old[0].hash]))
    assert (choice.revision.number, choice.current.number, choice.is_pending) == (1, 2, True)
    assert choice.spec["engine"]["image"] == "a"
    assert choice.spec["pools"][0]["minReplicas"] == 5
    assert choice.spec["rollout"] == {"paused": True}
    assert "revision 1 runs on" in choice.reason


def test_pause_holds_a_running_rollout_but_not_the_first() -> None:
    paused, old = spec("b", rollout={"paused": True}), stored("a", "b")
    both = frozenset(revision.hash for revision in old)
    assert choose_revision(model(paused), old, both).revision.number == 2
    assert choose_revision(model(paused), (), frozenset()).is_pending is False


def test_undo_runs_an_earlier_revision_until_the_spec_changes() -> None:
    old = stored("a", "b")
    running = frozenset([old[1].hash])
    for asked, runs in (("1", 1), ("1/2", 1), ("1/9", 2), ("2", 2)):
        assert choose_revision(model(spec("b"), asked), old, running).revision.number == runs
    changed = choose_revision(model(spec("c"), "1/2"), old, running)
    assert (changed.revision.number, changed.problem) == (3, "")


@pytest.mark.parametrize("asked", ["7", "x", "-1", "1.0", "7/2"])
def test_undo_to_a_missing_revision_is_a_problem(asked: str) -> None:
    choice = choose_revision(model(spec("b"), asked), stored("a", "b"), frozenset())
    assert choice.revision.number == 2
    assert "there are: 1, 2" in choice.problem


def test_replicas_of_a_removed_pool_stay_as_stored() -> None:
    old = spec(pools=[{"name": "a", "minReplicas": 1}, {"name": "b", "minReplicas": 2}])
    now = spec(pools=[{"name": "b", "minReplicas": 9}], replicas=4)
    current = with_current_numbers(old, now)
    assert [pool["minReplicas"] for pool in current["pools"]] == [1, 9]
    assert "replicas" not in current


def test_running_current_and_newest_revisions_are_kept() -> None:
    old = stored(*(f"i{number}" for number in range(20)))
    choice = choose_revision(model(spec("new"), "3"), old, frozenset())
    numbers = [revision.number for revision in revisions_to_keep(old, choice)]
    assert len(numbers) == MAX_KEPT_REVISIONS
    assert {3, 21} <= set(numbers)
    assert numbers[-3:] == [19, 20, 21]


def test_revisions_of_other_controllers_are_ignored() -> None:
    (ours,) = stored("a")
    theirs = {
        "kind": "ControllerRevision",
        "metadata": {"name": "m-main-5d8f", "labels": {MODEL_LABEL: "m"}},
        "revision": 7,
        "data": {"spec": {"leaderWorkerTemplate": {"size": 2}}},
    }
    assert stored_revisions([theirs, controller_revision(model(spec("a")), ours)]) == (ours,)
