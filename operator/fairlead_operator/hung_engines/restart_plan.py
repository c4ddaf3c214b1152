"""Restart plan: which pods of a model get the condition `fairlead.io/Serving`, and which are
deleted. Pure.

The condition is the only memory: it says since when a pod is marked. A new leader continues from
there.

A pod is deleted if all of this holds:

- its engine hangs, it has been marked for the restart grace, and it has run as long;
- it is ready, so that kubelet does not restart it already;
- no other pod of its pool is being deleted or not ready;
- its pool has as many instances as its workload asks for, unless the API server refuses to create
  more;
- at most one of `pods_per_restart` pods of the pool goes at a time.

A pod that no node takes does not count as not ready: it may wait for the devices of the pod that
hangs. A group of pods counts as one, and is restarted as one: its leader is deleted.

A pod with data-parallel ranks has several instances. Its engine hangs if each of them does.

Why: a restart ends the ranks that still answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fairlead.api.conditions import ServingReason
from fairlead.fleet.hung_engines import EjectionReport, HungVerdict, hung_verdict
from fairlead.fleet.labels import ENDPOINT_LABEL, POOL_LABEL, SERVING_CONDITION, parse_sleep_mark
from fairlead.kube.conditions import find_condition, parse_time
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, metadata_of, name_of, uid_of
from fairlead.units import format_duration
from fairlead_operator.hung_engines.gateway_reports import GatewayReport
from fairlead_operator.object_metadata import GROUP_INDEX_LABEL, GROUP_SET_LABEL, label

_Reports = dict[str, EjectionReport | None]

_GROUP_LABELS: Final = (GROUP_SET_LABEL, GROUP_INDEX_LABEL)
_ENDED_PHASES: Final = ("Succeeded", "Failed")
_MAX_MESSAGE_CHARS: Final = 1_024
"""Characters of a message: a gateway's report must not make the status too large to be written."""


def pod_verdicts(reports: Iterable[GatewayReport], grace_seconds: float) -> dict[str, HungVerdict]:
    """Returns the verdict about each pod, by its uid.

    A gateway that has not ejected an instance vetoes only if it had an answer within the grace.
    Otherwise it knows nothing, and is left out. A pod of which no gateway knows anything has no
    verdict.
    """
    by_pod: dict[str, dict[str, _Reports]] = {}
    for report in reports:
        for instance in report.instances:
            ranks = by_pod.setdefault(instance.id.partition("/")[0], {})
            known = ranks.setdefault(instance.id, {})
            if isinstance(instance.ejection, EjectionReport):
                known[report.name] = instance.ejection
            elif instance.ejection is None and _is_within(instance.answer_age_seconds, grace_seconds):
                known[report.name] = None
    return {
        uid: verdict for uid, ranks in by_pod.items() if (verdict := _pod_verdict(ranks, grace_seconds)) is not None
    }


def _pod_verdict(ranks: Mapping[str, _Reports], grace_seconds: float) -> HungVerdict | None:
    verdicts = [hung_verdict(known, grace_seconds=grace_seconds) for _, known in sorted(ranks.items()) if known]
    hung = [verdict for verdict in verdicts if verdict.is_hung]
    if len(hung) == len(verdicts) < len(ranks):
        return None  # nothing is known of the other ranks
    if len(ranks) == 1:
        return verdicts[0]
    if len(hung) < len(ranks):
        return HungVerdict(False, f"{len(hung)} of {len(ranks)} ranks hang")
    return replace(hung[0], reason=f"all {len(hung)} ranks hang; the first one: {hung[0].reason}")


def _is_within(seconds: float | None, grace_seconds: float) -> bool:
    return seconds is not None and seconds <= grace_seconds


@dataclass(frozen=True, slots=True)
class RestartRules:
    """The rules of restarts.

    restart_seconds: how long a pod is marked before it is deleted; None: pods are only marked.
    pods_per_restart: one of so many pods of a pool is restarted at a time, and at least one.
    """

    restart_seconds: float | None
    pods_per_restart: int


@dataclass(frozen=True, slots=True)
class PodMark:
    """A change of the condition `fairlead.io/Serving` of a pod. `message` explains it."""

    pod: Manifest
    is_serving: bool
    message: str

    @property
    def reason(self) -> ServingReason:
        return ServingReason.ENGINE_ANSWERS if self.is_serving else ServingReason.ENGINE_HUNG


@dataclass(frozen=True, slots=True)
class HungEnginePlan:
    """The marks and restarts of the pods of a model.

    restarts: pods to delete.
    hung: pods whose engine hangs.
    waiting: why a marked pod is not deleted yet, by its name.
    """

    marks: tuple[PodMark, ...] = ()
    restarts: tuple[Manifest, ...] = ()
    hung: tuple[Manifest, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)


def plan_restarts(
    pods: Sequence[Manifest],
    verdicts: Mapping[str, HungVerdict],
    wall: float,
    rules: RestartRules,
    workloads: Iterable[Manifest] = (),
) -> HungEnginePlan:
    """Returns the plan for the pods of one model.

    verdicts: by the uid of a pod; a pod without one stays as it is.
    wall: Unix seconds.
    workloads: of the model.

    Why workloads: the pod that replaces a deleted one may not exist yet. Until it does, no other
    pod may go.
    """
    desired = {label(workload, POOL_LABEL): _desired_instances(workload) for workload in workloads}
    engines = [pod for pod in pods if label(pod, ENDPOINT_LABEL) == "true" and not is_deleting(pod)]
    judged = [(pod, verdicts[uid_of(pod)]) for pod in engines if uid_of(pod) in verdicts]
    hung = tuple(pod for pod, verdict in judged if verdict.is_hung)
    restarts: list[Manifest] = []
    waiting: dict[str, str] = {}
    for pool in sorted({label(pod, POOL_LABEL) for pod in hung}):
        in_pool = [pod for pod in pods if label(pod, POOL_LABEL) == pool]
        chosen, reasons = _plan_pool(in_pool, [pod for pod in hung if label(pod, POOL_LABEL) == pool], wall, rules)
        if chosen and (missing := desired.get(pool, 0) - _count_instances(in_pool)) > 0:
            reasons |= {
                name_of(pod): f"{missing} of {desired[pool]} instances of the pool are missing" for pod in chosen
            }
            chosen = []
        restarts += chosen
        waiting |= reasons
    marks = tuple(mark for pod, verdict in judged if (mark := _mark(pod, verdict)) is not None)
    return HungEnginePlan(marks, tuple(restarts), hung, waiting)


def serving_condition(mark: PodMark, now: str) -> dict[str, Any]:
    """Returns the pod condition of a mark.

    now: current time as the API server writes it.
    """
    return {
        "type": SERVING_CONDITION,
        "status": "True" if mark.is_serving else "False",
        "reason": str(mark.reason),
        "message": mark.message,
        "lastTransitionTime": now,
    }


def _mark(pod: Manifest, verdict: HungVerdict) -> PodMark | None:
    """Returns the change of a pod's condition; None if it stays. A pod that never hung has none."""
    is_marked = _marked_at(pod) is not None
    if verdict.is_hung == is_marked:
        return None
    if verdict.is_hung:
        message = f"{verdict.reason}; reported by {', '.join(verdict.voters)}"
        return PodMark(pod, False, message[:_MAX_MESSAGE_CHARS])
    return PodMark(pod, True, f"no longer hung: {verdict.reason}"[:_MAX_MESSAGE_CHARS])


def _plan_pool(
    pods: Sequence[Manifest], hung: Iterable[Manifest], wall: float, rules: RestartRules
) -> tuple[list[Manifest], dict[str, str]]:
    """Returns the pods of one pool to delete, and why the others wait, by name."""
    waiting: dict[str, str] = {}
    due: list[tuple[float, Manifest]] = []
    for pod in hung:
        since = _hung_since(pod, wall, rules)
        if reason := _postponement(pod, since, wall, rules):
            waiting[name_of(pod)] = reason
        elif since is not None:
            due.append((since, pod))
    due.sort(key=lambda entry: (entry[0], name_of(entry[1])))
    groups = {_group_key(pod) for pod in pods if not _has_ended(pod)}
    most = max(1, len(groups) // rules.pods_per_restart)
    chosen: list[Manifest] = []
    for _, pod in due:
        own_group = _group_key(pod)
        reason = _pool_problem([other for other in pods if _group_key(other) != own_group])
        if not reason and len(chosen) >= most:
            reason = f"{most} of {len(groups)} instances of the pool may restart at a time"
        if reason:
            waiting[name_of(pod)] = reason
        else:
            chosen.append(pod)
    return chosen, waiting


def _desired_instances(workload: Manifest) -> int:
    """Returns how many instances a workload should have; 0 if the API server refuses to create
    some.

    Why 0: an instance that exceeds a quota may come only once the one that hangs is gone.
    """
    status, replicas = workload.get("status") or {}, (workload.get("spec") or {}).get("replicas")
    failure = find_condition(status, "ReplicaFailure")
    if failure is not None and failure.get("status") == "True":
        return 0
    return 1 if replicas is None else int(replicas)


def _count_instances(pods: Iterable[Manifest]) -> int:
    return len({_group_key(pod) for pod in pods if not _has_ended(pod) and not is_deleting(pod)})


def _postponement(pod: Manifest, since: float | None, wall: float, rules: RestartRules) -> str:
    """Returns why a pod that hangs is not deleted, as far as it lies in the pod; empty if nothing
    does.
    """
    if rules.restart_seconds is None:
        return "restarts are off"
    if since is None:
        return "it was not marked yet"
    if not is_ready(pod):
        return "it is not ready: kubelet restarts its engine"
    if parse_sleep_mark(annotations_of(pod)) is not None:
        return "it is put to sleep or woken"
    left = since + rules.restart_seconds - wall
    return f"it is restarted in {format_duration(max(1.0, round(left)))}" if left > 0.0 else ""


def _pool_problem(others: Iterable[Manifest]) -> str:
    """Returns why no pod of a pool may be deleted now; empty if the others are ready."""
    for pod in others:
        if _has_ended(pod) or _is_unschedulable(pod):
            continue
        if is_deleting(pod):
            return f"the pod {name_of(pod)} is being deleted"
        if not is_ready(pod):
            return f"the pod {name_of(pod)} is not ready"
    return ""


def _marked_at(pod: Manifest) -> float | None:
    """Returns the Unix time since when a pod is marked as hung; None if it is not."""
    condition = find_condition(pod.get("status") or {}, SERVING_CONDITION)
    if condition is None or condition.get("status") != "False":
        return None
    return parse_time(condition.get("lastTransitionTime")) or 0.0


def _hung_since(pod: Manifest, wall: float, rules: RestartRules) -> float | None:
    """Returns since when a pod is marked; None if it is not.

    It is the Unix time of the mark, or of the last start of a container if that is later.

    Why a mark of the future counts as old: the clock has gone back, and how long the pod is marked
    is unknown. Otherwise it would be restarted as much later.
    """
    marked_at = _marked_at(pod)
    if marked_at is None:
        return None
    if marked_at > wall + (rules.restart_seconds or 0.0):
        marked_at = 0.0
    containers = (pod.get("status") or {}).get("containerStatuses") or []
    starts = [((container.get("state") or {}).get("running") or {}).get("startedAt") for container in containers]
    return max(marked_at, *(parse_time(start) or 0.0 for start in starts if start), 0.0)


def is_group_leader(pod: Manifest) -> bool:
    """Returns True if a pod that serves HTTP leads a group of pods."""
    return all(label(pod, name) for name in _GROUP_LABELS)


def _group_key(pod: Manifest) -> tuple[str, ...]:
    group = tuple(label(pod, name) for name in _GROUP_LABELS)
    return group if all(group) else (str(metadata_of(pod).get("name", "")),)


def _has_ended(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") in _ENDED_PHASES


def _is_unschedulable(pod: Manifest) -> bool:
    scheduled = find_condition(pod.get("status") or {}, "PodScheduled")
    return scheduled is not None and scheduled.get("status") == "False"
