"""Surge rollouts of multi-node instances, which are groups of pods in a LeaderWorkerSet. Pure.

A Deployment replaces instances without ever having fewer ready than desired. The controller of
LeaderWorkerSets (0.8.0, `rollingUpdateParameters`) does not. With `maxSurge` it adds no group if
one is desired, and waits for ever. With several groups, it removes the surge group when the last
group is *about to be* replaced, so that one is missing meanwhile. It does respect `maxUnavailable`,
relative to whatever replica count it gets. The operator therefore raises the replica count itself:

- Together with the new template, it sets `replicas: n + 1`, `maxSurge: 0`, `maxUnavailable: 1` and
  an annotation. The controller creates group n from the new template while the others serve. Then
  it replaces the others one by one from the last, each once those after it are ready. Of n + 1
  groups, n are always ready.
- Once the first n groups have the new template and are ready, the operator sets `replicas: n` and
  removes the annotation. The controller removes group n, which drains like any other.

Both steps are derived from the cluster each time: the annotation says that the replica count
includes surge groups, and the pods show the progress. An operator that is killed continues from
there, and a rollout without the annotation is continued with it. `rollout.maxSurge` sets the number
of surge groups, which is also `maxUnavailable`.

A template that changes while a group drains (an undo during a rollout) needs more. The controller
counts a draining pod as ready, and would also stop the next group. The change is therefore applied
with a partition that protects every group. It is lifted when no group drains.

If no outdated group has started, none is lost: all are replaced at once, and no surge begins. A
surge group could wait for ever for the nodes of groups whose image does not exist.

If another manager owns the replica count (an autoscaler, `kubectl scale`), the operator cannot
raise it. The controller then proceeds in its own way, and the model's status says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.api.spec.rollout import Rollout
from fairlead.fleet.labels import ENDPOINT_LABEL, FIELD_MANAGER, POOL_LABEL, SURGE_ANNOTATION, parse_surge_groups
from fairlead.fleet.labels import POD_REVISION_LABEL as POD_REVISION
from fairlead.kube.resources import (
    LEADER_WORKER_SETS,
    Manifest,
    annotations_of,
    has_started,
    is_deleting,
    is_ready,
    metadata_of,
    name_of,
)
from fairlead_operator.controller.failed_instances import replace_failed
from fairlead_operator.controller.field_ownership import replica_field_owner
from fairlead_operator.object_metadata import GROUP_INDEX_LABEL, GROUP_SET_LABEL, ChildKey, annotation, child_key, label
from fairlead_operator.render.children.leader_worker_set import ALL_GROUPS


@dataclass(frozen=True, slots=True)
class SurgeStep:
    """The number of groups above the desired number, and a message; empty if nothing is replaced.

    partition_all: no group may be stopped now.
    replace_all: all outdated groups may be stopped now.
    """

    extra_groups: int = 0
    message: str = ""
    partition_all: bool = False
    replace_all: bool = False


def is_group_workload(workload: Manifest) -> bool:
    """Returns True if the instances of this workload are groups of pods."""
    return workload.get("kind") == LEADER_WORKER_SETS.kind


def surplus_groups(live: Manifest) -> int:
    return 0 if replica_field_owner(live, FIELD_MANAGER) else parse_surge_groups(annotations_of(live))


def surge_step(wanted: Manifest, live: Manifest | None, pods: Sequence[Manifest], rollout: Rollout) -> SurgeStep:
    """Returns the next step for the rendered LeaderWorkerSet `wanted` and the existing one, `live`.

    pods: all pods of the model.
    """
    if live is None or is_deleting(live):
        return SurgeStep()
    desired, revision = int(wanted["spec"]["replicas"]), annotation(wanted, POD_REVISION)
    group_pods = [pod for pod in pods if label(pod, GROUP_SET_LABEL) == name_of(live)]
    current_pods = [pod for pod in group_pods if not is_deleting(pod)]
    is_draining = len(current_pods) < len(group_pods)
    leaders = [pod for pod in current_pods if label(pod, ENDPOINT_LABEL) == "true"]  # they serve their groups
    outdated = [pod for pod in leaders if label(pod, POD_REVISION) != revision]
    changes = annotation(live, POD_REVISION) != revision or bool(outdated)
    owner, surge = replica_field_owner(live, FIELD_MANAGER), surplus_groups(live)
    if (desired or owner) and outdated and not rollout.paused and not any(map(has_started, outdated)):
        return SurgeStep(surge, "at once, since no old one has started", replace_all=True)
    if owner:
        return SurgeStep(0, _unmanaged_message(live, owner) if changes else "")
    if not desired or (not surge and (rollout.paused or not changes)):
        return SurgeStep()
    if surge and not changes and _are_complete(wanted, current_pods, desired):
        return SurgeStep()
    # Constant during a rollout: a smaller surge would leave fewer ready groups than desired.
    extra = surge or min(rollout.surge_for(desired), desired)
    message = f"with a surge of {extra} until all are replaced"
    is_template_changing = annotation(live, POD_REVISION) != revision or (_partition(live) and not _partition(wanted))
    if is_template_changing and is_draining:
        return SurgeStep(extra, f"{message}; the rollout waits for draining groups", partition_all=True)
    return SurgeStep(extra, message)


def with_surge(wanted: Manifest, step: SurgeStep) -> Manifest:
    """Returns `wanted` with the surge groups of the step."""
    if not step.extra_groups and not step.replace_all:
        return wanted
    spec = wanted["spec"]
    strategy = spec["rolloutStrategy"]
    unavailable = ALL_GROUPS if step.replace_all else step.extra_groups
    rolling = {**strategy["rollingUpdateConfiguration"], "maxSurge": 0, "maxUnavailable": unavailable}
    if step.partition_all:
        rolling["partition"] = ALL_GROUPS
    replaced = {**strategy, "rollingUpdateConfiguration": rolling}
    notes = {**annotations_of(wanted), **({SURGE_ANNOTATION: str(step.extra_groups)} if step.extra_groups else {})}
    return {
        **wanted,
        "metadata": {**metadata_of(wanted), "annotations": notes},
        "spec": {**spec, "replicas": int(spec["replicas"]) + step.extra_groups, "rolloutStrategy": replaced},
    }


def apply_rollout(
    children: Sequence[Manifest], live: Mapping[ChildKey, Manifest], pods: Sequence[Manifest], rollout: Rollout
) -> tuple[list[Manifest], dict[str, str]]:
    """Returns the children as a rollout needs them, and a message for each pool of groups."""
    applied, messages = [], {}
    for child in children:
        existing = live.get(child_key(child))
        if is_group_workload(child):
            step = surge_step(child, existing, pods, rollout)
            child = with_surge(child, step)
            if step.message:
                messages[label(child, POOL_LABEL)] = step.message
        applied.append(replace_failed(child, existing, pods))
    return applied, messages


def _partition(workload: Manifest) -> int:
    strategy = (workload.get("spec") or {}).get("rolloutStrategy") or {}
    return int((strategy.get("rollingUpdateConfiguration") or {}).get("partition") or 0)


def _are_complete(wanted: Manifest, members: Sequence[Manifest], desired: int) -> bool:
    """Returns True if the first `desired` groups are complete, up to date and ready.

    These are the groups that stay. The surge group may be gone already, with its node; nothing
    waits for it.
    """
    size, revision = int(wanted["spec"]["leaderWorkerTemplate"]["size"]), annotation(wanted, POD_REVISION)
    ready = [label(pod, GROUP_INDEX_LABEL) for pod in members if label(pod, POD_REVISION) == revision and is_ready(pod)]
    return all(ready.count(str(index)) >= size for index in range(desired))


def _unmanaged_message(live: Manifest, owner: str) -> str:
    """Returns a message: how groups are replaced while `owner` sets the replica count."""
    message = f"without an additional instance, since {owner} sets the number"
    if (live.get("spec") or {}).get("replicas") == 1:
        return f"{message}: a single instance is not replaced, since nothing would serve; scale the pool to 2 meanwhile"
    return f"{message}: one fewer is ready while the last one starts"
