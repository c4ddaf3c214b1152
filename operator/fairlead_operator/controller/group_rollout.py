"""How groups of nodes are replaced: with one group more than asked, for as long as it lasts. Pure functions.

A Deployment replaces instances without ever having fewer ready than asked. The controller of LeaderWorkerSets does not (0.8.0, to be
read in its ``rollingUpdateParameters``): with ``maxSurge`` it makes no group more where one alone is asked, and waits for ever; of
several it takes the one more away when the last one is *about to be* replaced, not when it is, so that one is missing meanwhile. What
it does keep is ``maxUnavailable``, of whatever number it is given. So we ask for one more by the number itself:

1. With the change of the template go ``replicas: n + 1``, ``maxSurge: 0``, ``maxUnavailable: 1`` and a mark. The controller makes the
   group at place n, of the new template, while those before it serve on; then it replaces them one by one, the last one first, each
   once those after it are ready: of n + 1, n are ready at any time.
2. When the groups at the first n places are all of the new template and ready, it is ``replicas: n`` again and the mark goes. The
   controller takes the group at place n away, which drains like any other.

Both are read off the cluster each time: the mark says that the number holds more than is asked, the pods say how far it is. An
operator that is killed anywhere goes on from there, and a rollout that somebody began without the mark is carried on with it. More
than one at a time is ``rollout.surge``: so many more, and so many missing of the sum.

A template that changes while a group is on its way out (an undo in the midst) is another matter: the controller takes a pod that
drains for one that is ready, and would end the next group beside it. So the change comes with a partition that holds every group, and
it is let go when none drains any more.

Where somebody else owns the number (an autoscaler, ``kubectl scale``) it is not ours to raise. Then the controller does what it
does, and the model says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.api import Rollout
from fairlead.fleet.labels import FIELD_MANAGER, POOL_LABEL, SURGE_ANNOTATION
from fairlead.fleet.labels import POD_REVISION_LABEL as POD_REVISION
from fairlead.kube.resources import (
    LEADER_WORKER_SETS,
    Manifest,
    annotations_of,
    is_deleting,
    is_ready,
    metadata_of,
    name_of,
)
from fairlead_operator.controller.field_ownership import replica_field_owner
from fairlead_operator.object_metadata import ChildKey, annotation, child_key, label
from fairlead_operator.render.children.leader_worker_set import ALL_GROUPS_PARTITION

_SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"


@dataclass(frozen=True, slots=True)
class SurgeStep:
    """How many groups there shall be beyond the number that is asked, and why in words; empty when nothing is replaced.

    ``held``: none is ended now.
    """

    extra_groups: int = 0
    message: str = ""
    partition_all: bool = False


def is_group_workload(workload: Manifest) -> bool:
    """Are the instances of this workload groups of pods?"""
    return workload.get("kind") == LEADER_WORKER_SETS.kind


def surplus_groups(live: Manifest) -> int:
    """How many groups the number of a live workload holds beyond what is asked; none where the number is somebody else's."""
    told = annotation(live, SURGE_ANNOTATION)
    return int(told) if told.isdecimal() and not replica_field_owner(live, FIELD_MANAGER) else 0


def surge_step(wanted: Manifest, live: Manifest | None, pods: Sequence[Manifest], rollout: Rollout) -> SurgeStep:
    """What to do now about the LeaderWorkerSet ``wanted`` as it is rendered, of which ``live`` is there.

    ``pods`` are all of the model's.
    """
    if live is None or is_deleting(live):
        return SurgeStep()
    asked, revision = int(wanted["spec"]["replicas"]), annotation(wanted, POD_REVISION)
    members, going = _group_pods(live, pods)
    changes = annotation(live, POD_REVISION) != revision or any(label(pod, POD_REVISION) != revision for pod in members)
    if owner := replica_field_owner(live, FIELD_MANAGER):
        return SurgeStep(0, _unmanaged_message(live, owner) if changes else "")
    before = surplus_groups(live)
    if not asked or (not before and (rollout.paused or not changes)):
        return SurgeStep()
    if before and not changes and _are_complete(wanted, members, asked):
        return SurgeStep()
    # Once begun it stays as it was: with fewer, those that are missing just now would be missing of the number that is asked.
    more = before or min(rollout.surge_for(asked), asked)
    told = f"{more} more than asked until all are"
    turning = annotation(live, POD_REVISION) != revision or (_partition(live) and not _partition(wanted))
    if turning and going:
        return SurgeStep(more, f"{told}; it waits for what drains", partition_all=True)
    return SurgeStep(more, told)


def with_surge(wanted: Manifest, pace: SurgeStep) -> Manifest:
    """``wanted`` with as many more as ``pace`` says."""
    if not pace.extra_groups:
        return wanted
    spec = wanted["spec"]
    strategy = spec["rolloutStrategy"]
    rolling = {**strategy["rollingUpdateConfiguration"], "maxSurge": 0, "maxUnavailable": pace.extra_groups}
    if pace.partition_all:
        rolling["partition"] = ALL_GROUPS_PARTITION
    replaced = {**strategy, "rollingUpdateConfiguration": rolling}
    notes = {**annotations_of(wanted), SURGE_ANNOTATION: str(pace.extra_groups)}
    return {
        **wanted,
        "metadata": {**metadata_of(wanted), "annotations": notes},
        "spec": {**spec, "replicas": int(spec["replicas"]) + pace.extra_groups, "rolloutStrategy": replaced},
    }


def apply_surge(
    children: Sequence[Manifest], live: Mapping[ChildKey, Manifest], pods: Sequence[Manifest], rollout: Rollout
) -> tuple[list[Manifest], dict[str, str]]:
    """The children with their LeaderWorkerSets paced, and what is to be said of the pools whose groups are replaced."""
    found, said = [], {}
    for one in children:
        if is_group_workload(one):
            decided = surge_step(one, live.get(child_key(one)), pods, rollout)
            one = with_surge(one, decided)
            if decided.message:
                said[label(one, POOL_LABEL)] = decided.message
        found.append(one)
    return found, said


def _group_pods(live: Manifest, pods: Sequence[Manifest]) -> tuple[list[Manifest], bool]:
    """The pods of a LeaderWorkerSet without those that go, and whether any goes."""
    all_of_it = [pod for pod in pods if label(pod, _SET_LABEL) == name_of(live)]
    members = [pod for pod in all_of_it if not is_deleting(pod)]
    return members, len(members) < len(all_of_it)


def _partition(workload: Manifest) -> int:
    strategy = (workload.get("spec") or {}).get("rolloutStrategy") or {}
    return int((strategy.get("rollingUpdateConfiguration") or {}).get("partition") or 0)


def _are_complete(wanted: Manifest, members: Sequence[Manifest], asked: int) -> bool:
    """Are the groups at the first ``asked`` places complete, new and ready?

    Those are what stays. The group beyond them may be gone by now, with its node: nothing is waited for in its place.
    """
    size, revision = int(wanted["spec"]["leaderWorkerTemplate"]["size"]), annotation(wanted, POD_REVISION)
    ready = [label(pod, _INDEX_LABEL) for pod in members if label(pod, POD_REVISION) == revision and is_ready(pod)]
    return all(ready.count(str(place)) >= size for place in range(asked))


def _unmanaged_message(live: Manifest, owner: str) -> str:
    """What comes of a change where ``owner`` sets the number."""
    told = f"{owner} sets their number, so that there is none more meanwhile"
    if (live.get("spec") or {}).get("replicas") == 1:
        return f"{told}: one that is alone is not replaced, since nothing would serve; scale it to 2 until it is"
    return f"{told}: one fewer is ready while the last one starts"
