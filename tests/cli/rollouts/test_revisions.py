"""Rollout status, patches and refusals of ``fairlead rollout``."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead.kube.resources import Manifest
from fairlead.runtime.clock import ManualClock
from fairlead_cli.rollouts.command import (
    RolloutStatus,
    changed_fields,
    choose_undo_revision,
    pause_patch,
    render_status,
    resume_patch,
    summarize_rollout,
    undo_patch,
)
from fairlead_operator.controller.revisions import ModelRevision, controller_revision, revision_hash
from fairlead_operator.object_metadata import UNDO_ANNOTATION

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
POOLS = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 2}]


def spec(image: str, **more: Any) -> dict[str, Any]:
    return {"model": {"uri": "hf://a/b"}, "engine": {"type": "Sim", "image": image}, "pools": POOLS, **more}


def model(image: str, undo: str = "", **more: Any) -> Manifest:
    conditions = [{"type": "Ready", "status": "True", "reason": "AllReady", "message": "2 instances ready"}]
    return {
        "kind": "ModelDeployment",
        "metadata": {
            "name": "m",
            "namespace": "x",
            "uid": "u",
            "generation": 4,
            "annotations": {UNDO_ANNOTATION: undo} if undo else {},
        },
        "spec": spec(image, **more),
        "status": {"observedGeneration": 4, "conditions": conditions},
    }


def records(*images: str) -> list[Manifest]:
    created = []
    for number, image in enumerate(images, 1):
        manifest = controller_revision(model(image), ModelRevision(number, revision_hash(spec(image)), spec(image)))
        manifest["metadata"]["creationTimestamp"] = f"2025-12-{31 - len(images) + number:02}T00:00:00Z"
        created.append(manifest)
    return created


def workload(image: str, **status: int) -> Manifest:
    counts = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "observedGeneration": 1, **status}
    notes = {"fairlead.io/model-revision": revision_hash(spec(image))}
    metadata = {"name": "m-main", "generation": 1, "annotations": notes}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 2}, "status": counts}


def found(image: str = "c", runs: str = "c", undo: str = "", **more: Any) -> RolloutStatus:
    return summarize_rollout(model(image, undo, **more), records("a", "b", "c"), [workload(runs)])


def refused(status: RolloutStatus, to: int | None) -> str:
    with pytest.raises(BadInput) as caught:
        choose_undo_revision(status, to)
    return f"{caught.value.message} ({caught.value.hint})"


# --- how it stands ------------------------------------------------------------------------------------------------------


def test_status_lists_revisions_and_their_changes_newest_first() -> None:
    assert list(render_status(found(), NOW)) == [
        "x/m runs revision 3",
        "  ready (AllReady): 2 instances ready",
        "",
        "REVISION      AGE  CHANGED",
        "3 runs, spec  1d   engine.image",
        "2             2d   engine.image",
        "1             3d",
    ]


def test_status_after_undo_names_both_revisions() -> None:
    lines = list(render_status(found(runs="a", undo="1/3"), NOW))
    assert lines[0] == f"x/m runs revision 1 of 3: the annotation {UNDO_ANNOTATION} asks for revision 1"
    assert [line.split("  ")[0] for line in lines[-3:]] == ["3 spec", "2", "1 runs"]


def test_status_shows_a_pause_with_and_without_a_pending_change() -> None:
    waiting = found("d", rollout={"paused": True})
    lines = list(render_status(waiting, NOW))
    assert lines[0] == "x/m runs revision 3 of 4: the rollout is paused; revision 3 runs on"
    assert lines[-4] == "4 spec         engine.image"  # no operator has seen it yet
    assert "  paused: nothing waits; the next change will" in render_status(found(rollout={"paused": True}), NOW)


def test_status_shows_why_an_undo_is_impossible() -> None:
    assert any("cannot be done: the annotation" in line for line in render_status(found(undo="9"), NOW))


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        ({"image": "a"}, {"image": "b", "args": ["x"]}, ("engine.args", "engine.image")),
        ({"image": "a"}, {"image": "a"}, ()),
    ],
)
def test_changed_fields_are_named_two_levels_deep(before: Any, after: Any, fields: Any) -> None:
    assert changed_fields({"engine": before}, {"engine": after}) == fields


def test_changed_pools_are_named_and_replicas_are_ignored() -> None:
    old = {"pools": [{"name": "a", "minReplicas": 1, "role": "Serve"}, {"name": "b"}], "adapters": None}
    new = {"pools": [{"name": "a", "minReplicas": 9, "role": "Decode"}, {"name": "c"}], "adapters": {"slots": 4}}
    assert changed_fields(old, new) == ("adapters", "pools[a].role", "pools[b]", "pools[c]")


# --- whether it is done -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts",
    [{"updatedReplicas": 1}, {"readyReplicas": 1}, {"replicas": 3}, {"observedGeneration": 0}],
)
def test_rollout_is_settled_when_all_instances_have_the_revision(counts: dict[str, int]) -> None:
    assert found().is_settled
    assert not summarize_rollout(model("c"), records("c"), [workload("c", **counts)]).is_settled


def test_status_of_an_older_generation_is_not_settled() -> None:
    """An annotation changes no generation: the status may be about how things were before it."""
    assert not found(runs="c", undo="1/3").is_settled
    assert found(runs="a", undo="1/3").is_settled
    old = model("c")
    old["status"]["observedGeneration"] = 3
    assert not summarize_rollout(old, records("c"), [workload("c")]).is_settled
    moving = model("c")
    moving["status"]["conditions"].append({"type": "Reconciling", "status": "True", "reason": "Draining"})
    assert not summarize_rollout(moving, records("c"), [workload("c")]).is_settled


def test_leader_worker_set_conditions_decide_whether_it_is_settled() -> None:
    def group(type: str, holds: str) -> Manifest:
        manifest = {**workload("c", observedGeneration=0), "kind": "LeaderWorkerSet"}
        manifest["status"] = {**manifest["status"], "conditions": [{"type": type, "status": holds}]}
        return manifest

    assert summarize_rollout(model("c"), records("c"), [group("Available", "True")]).is_settled
    assert summarize_rollout(model("c"), records("c"), [group("UpdateInProgress", "False")]).is_settled
    assert not summarize_rollout(model("c"), records("c"), [group("UpdateInProgress", "True")]).is_settled


# --- what is written ----------------------------------------------------------------------------------------------------


def test_repeated_undo_goes_back_one_revision_each_time() -> None:
    first = found()
    assert choose_undo_revision(first, None).number == 2
    assert undo_patch(first, choose_undo_revision(first, None)) == {
        "metadata": {"annotations": {UNDO_ANNOTATION: "2/3"}}
    }
    again = found(runs="b", undo="2/3")
    assert undo_patch(again, choose_undo_revision(again, None)) == {
        "metadata": {"annotations": {UNDO_ANNOTATION: "1/3"}}
    }
    assert choose_undo_revision(first, 1).number == 1


def test_impossible_undo_lists_the_stored_revisions() -> None:
    assert refused(found(runs="a", undo="1/3"), None) == "no revision of x/m before 1 is stored (there are: 1, 2, 3)"
    assert refused(found(), 7) == "--to: revision 7 of x/m is not stored (there are: 1, 2, 3)"
    assert refused(found(), 3) == "--to: revision 3 of x/m runs already (there are: 1, 2, 3)"
    back = refused(found(runs="a", undo="1/3"), 3)
    assert back == "--to: revision 3 is what the spec of x/m says (`fairlead rollout resume` runs it)"
    paused = refused(found(rollout={"paused": True}), None)
    assert (
        paused == "the rollout of x/m is paused, and an undo would wait as well (run `fairlead rollout resume` first)"
    )


def test_resume_patch_ends_pause_and_undo() -> None:
    assert pause_patch() == {"spec": {"rollout": {"paused": True}}}
    assert resume_patch() == {
        "metadata": {"annotations": {UNDO_ANNOTATION: None}},
        "spec": {"rollout": {"paused": False}},
    }


# --- waiting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "settles"), [(10.0, True), (2.5, False)])
async def test_wait_polls_every_second_until_settled_or_timeout(seconds: float, settles: bool) -> None:
    from fairlead_cli.rollouts.command import wait_until_settled

    clock, done = ManualClock(), found()
    looks: list[float] = []

    async def read_next() -> RolloutStatus:
        looks.append(clock.now())
        return done if len(looks) == 4 else replace(done, is_settled=False)

    async def pause(wait: float) -> None:
        clock.advance(wait)

    begun = clock.now()
    last = await wait_until_settled(read_next, replace(done, is_settled=False), seconds, clock, pause)
    assert last.is_settled is settles
    assert clock.now() - begun == (4.0 if settles else 2.5)
