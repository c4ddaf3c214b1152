"""Which revision runs: the spec's, a held one, or one that people asked for."""

from typing import Any

import pytest

from fairlead_operator.marks import MODEL, UNDO
from fairlead_operator.rollout import (
    KEPT_REVISIONS,
    Revision,
    choose,
    record,
    remembered,
    revision_hash,
    revisions,
    with_numbers,
)


def spec(image: str = "a", **more: Any) -> dict[str, Any]:
    pools = more.pop("pools", [{"name": "main", "accelerator": "cpu", "replicas": {"min": 1}}])
    return {"engine": {"kind": "sim", "image": image}, "pools": pools, **more}


def model(one: dict[str, Any], undo: str = "") -> dict[str, Any]:
    return {"metadata": {"name": "m", "annotations": {UNDO: undo} if undo else {}}, "spec": one}


def kept(*images: str) -> tuple[Revision, ...]:
    return tuple(Revision(number, revision_hash(spec(image)), spec(image)) for number, image in enumerate(images, 1))


@pytest.mark.parametrize(
    "changed",
    [
        {"replicas": 3},
        {"objectives": {"ttft": "1s"}},
        {"routing": {"preset": "random"}},
        {"rollout": {"surge": 2}},
        {"pools": [{"name": "main", "accelerator": "cpu", "replicas": {"min": 7}}]},
    ],
)
def test_what_engines_do_not_notice_makes_no_revision(changed: dict[str, Any]) -> None:
    assert revision_hash(spec(**changed)) == revision_hash(spec())


def test_the_drain_is_a_part_of_the_engines_and_its_default_is_none() -> None:
    assert revision_hash(spec(rollout={"drain": "5m", "surge": 1})) == revision_hash(spec())
    assert revision_hash(spec(rollout={"drain": "10m"})) != revision_hash(spec())


def test_an_earlier_revision_has_its_own_drain_and_the_present_pace() -> None:
    old, present = spec("a", rollout={"drain": "10m", "surge": 1}), spec("b", rollout={"drain": "20m", "surge": 3})
    assert with_numbers(old, present)["rollout"] == {"drain": "10m", "surge": 3}
    assert with_numbers(spec("a"), present)["rollout"] == {"surge": 3}


def test_a_new_spec_is_the_next_revision_and_an_old_one_the_newest_again() -> None:
    assert choose(model(spec("c")), kept("a", "b"), frozenset()).revision.number == 3
    again = choose(model(spec("a")), kept("a", "b"), frozenset())
    assert (again.revision.number, again.revision.hash, again.waiting) == (3, revision_hash(spec("a")), False)
    assert choose(model(spec("b")), kept("a", "b"), frozenset()).revision.number == 2


def test_a_paused_change_waits_and_numbers_follow() -> None:
    pools = [{"name": "main", "accelerator": "cpu", "replicas": {"min": 5}}]
    paused = spec("b", pools=pools, rollout={"paused": True})
    old = kept("a")
    choice = choose(model(paused), old, frozenset([old[0].hash]))
    assert (choice.revision.number, choice.present.number, choice.waiting) == (1, 2, True)
    assert choice.spec["engine"]["image"] == "a"
    assert choice.spec["pools"][0]["replicas"] == {"min": 5}
    assert choice.spec["rollout"] == {"paused": True}
    assert "revision 1 runs on" in choice.why


def test_a_pause_in_the_midst_holds_where_it_is_and_a_first_one_holds_nothing() -> None:
    paused, old = spec("b", rollout={"paused": True}), kept("a", "b")
    both = frozenset(one.hash for one in old)
    assert choose(model(paused), old, both).revision.number == 2
    assert choose(model(paused), (), frozenset()).waiting is False


def test_undo_runs_an_earlier_revision_until_the_spec_changes() -> None:
    old = kept("a", "b")
    running = frozenset([old[1].hash])
    for asked, runs in (("1", 1), ("1/2", 1), ("1/9", 2), ("2", 2)):
        assert choose(model(spec("b"), asked), old, running).revision.number == runs
    changed = choose(model(spec("c"), "1/2"), old, running)
    assert (changed.revision.number, changed.problem) == (3, "")


@pytest.mark.parametrize("asked", ["7", "x", "-1", "1.0", "7/2"])
def test_undo_to_what_is_not_kept_says_so_and_runs_the_spec(asked: str) -> None:
    choice = choose(model(spec("b"), asked), kept("a", "b"), frozenset())
    assert choice.revision.number == 2
    assert "there are: 1, 2" in choice.problem


def test_numbers_of_a_pool_that_is_no_more_stay_those_of_its_time() -> None:
    old = spec(pools=[{"name": "a", "replicas": {"min": 1}}, {"name": "b", "replicas": {"min": 2}}])
    now = spec(pools=[{"name": "b", "replicas": {"min": 9}}], replicas=4)
    found = with_numbers(old, now)
    assert [pool["replicas"]["min"] for pool in found["pools"]] == [1, 9]
    assert "replicas" not in found


def test_what_runs_and_what_is_asked_is_kept_with_the_newest_others() -> None:
    old = kept(*(f"i{number}" for number in range(20)))
    choice = choose(model(spec("new"), "3"), old, frozenset())
    numbers = [one.number for one in remembered(old, choice)]
    assert len(numbers) == KEPT_REVISIONS
    assert {3, 21} <= set(numbers)
    assert numbers[-3:] == [19, 20, 21]


def test_revisions_that_other_controllers_keep_of_our_workloads_are_not_ours() -> None:
    (ours,) = kept("a")
    theirs = {
        "kind": "ControllerRevision",
        "metadata": {"name": "m-main-5d8f", "labels": {MODEL: "m"}},
        "revision": 7,
        "data": {"spec": {"leaderWorkerTemplate": {"size": 2}}},
    }
    assert revisions([theirs, record(model(spec("a")), ours)]) == (ours,)
