"""Diagnoses why instances do not start, from pods and workloads: a reason and the objects' names.

Pure. It reads the messages of kubelet, scheduler and controllers; unknown messages give no result.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fairlead.api.conditions import STALLED_IF_LASTS, Reason, reasons
from fairlead.fleet.labels import POD_REVISION_LABEL, POOL_LABEL
from fairlead.kube.conditions import find_condition, parse_time
from fairlead.kube.errors import Forbidden, Invalid, KubeError
from fairlead.kube.resources import Manifest, is_deleting, is_ready, labels_of, metadata_of, name_of, namespace_of
from fairlead.units import format_duration
from fairlead_operator.object_metadata import GROUP_INDEX_LABEL, GROUP_SET_LABEL, annotation, label
from fairlead_operator.status.pod_requirements import PodRequirements

_MAX_MESSAGE_LENGTH = 300
_MISSING_OBJECTS = (
    (re.compile(r"secrets? \S+ not found|couldn't find key \S+ in Secret "), Reason.MISSING_SECRET),
    (re.compile(r"configmaps? \S+ not found|couldn't find key \S+ in ConfigMap "), Reason.MISSING_CONFIG_MAP),
)
_CLAIM = re.compile(r"persistentvolumeclaim", re.IGNORECASE)
_ABSENT_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found', re.IGNORECASE)
_NAMED_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)"', re.IGNORECASE)
_UNBOUND_CLAIMS = "unbound immediate PersistentVolumeClaims"
_BOUND_ELSEWHERE = ("PersistentVolume's node affinity", "volume node affinity conflict")
"""The scheduler's words, new and old, for nodes that cannot mount a bound claim."""
_PREEMPTION = " preemption: "
"""The scheduler's message goes on with this: why removing other pods makes no room."""
_PULL_ERRORS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_DOWNLOAD_NAMES = ("download", "fetch")
_QUOTA_MESSAGES = ("exceeded quota", "must specify limits", "must specify requests")
_ADVICE_IN_ROLLOUT = "Add nodes, or lower minReplicas by rollout.maxSurge until the rollout is through."
_ADVICE_IF_IMMUTABLE = "Add a pool of another name with this change, and take this one out when the other is ready."
_UNKNOWN_REQUIREMENTS: Mapping[str, PodRequirements] = MappingProxyType({})

# The first of these is reported: causes before effects.
_BY_PRIORITY = (
    *(Reason.POLICY_REFUSED, Reason.QUOTA_EXCEEDED, Reason.MISSING_SECRET, Reason.MISSING_CONFIG_MAP),
    *(Reason.MISSING_CLAIM, Reason.UNBOUND_CLAIM, Reason.IMAGE_PULL_FAILED, Reason.DOWNLOAD_FAILED),
    *(Reason.OUT_OF_MEMORY, Reason.ENGINE_CRASHING, Reason.INSUFFICIENT_CAPACITY, Reason.START_TIMEOUT),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A cause of failure.

    message: names the affected objects.
    pods: number of pods with this cause.
    advice: what to do, unless `message` says so itself.
    """

    reason: Reason
    message: str
    pods: int = 1
    advice: str = ""

    @property
    def message_with_advice(self) -> str:
        return f"{self.message.rstrip('.')}. {self.advice}" if self.advice else self.message


@dataclass(frozen=True, slots=True)
class PendingCapacity:
    """Pods that wait for a node, which a cluster autoscaler may be adding.

    seconds: time until the wait counts as a failure.
    """

    message: str
    seconds: float


def pending_capacity(
    pods: Iterable[Manifest],
    wall: float,
    grace_seconds: float,
    requirements: Mapping[str, PodRequirements] = _UNKNOWN_REQUIREMENTS,
) -> PendingCapacity | None:
    """Returns the pods that still may get a node at Unix time `wall`; None if none waits or all
    waited too long.
    """
    pending = []
    for pod in pods:
        failure = diagnose_pod(pod, requirements)
        if failure is not None and failure.reason is Reason.INSUFFICIENT_CAPACITY:
            left = _unschedulable_since(pod, wall) + grace_seconds - wall
            if left > 0:
                pending.append(PendingCapacity(failure.message, left))
    if not pending:
        return None
    more = f" (and {len(pending) - 1} more like it)" if len(pending) > 1 else ""
    deadline = f"; {STALLED_IF_LASTS} {format_duration(grace_seconds)}"
    return PendingCapacity(pending[0].message + more + deadline, min(item.seconds for item in pending))


def diagnose(
    pods: Sequence[Manifest],
    workloads: Sequence[Manifest],
    *,
    wall: float = 0.0,
    grace_seconds: float = 0.0,
    requirements: Mapping[str, PodRequirements] = _UNKNOWN_REQUIREMENTS,
) -> Failure | None:
    """Returns the most important cause of failure; None if nothing is known to have failed.

    A pod without a node counts only after `grace_seconds`. Outdated pods count only if all others
    are ready: the spec may no longer have what failed.

    requirements: of the pods of each pool.
    """
    failures: dict[Reason, Failure] = {}
    present = {(label(one, POOL_LABEL), annotation(one, POD_REVISION_LABEL)) for one in workloads}
    updated = [pod for pod in pods if (label(pod, POOL_LABEL), label(pod, POD_REVISION_LABEL)) in present]
    starting = [pod for pod in updated if not is_ready(pod) and not is_deleting(pod)] or pods
    counting = [pod for pod in starting if pending_capacity((pod,), wall, grace_seconds) is None]
    of_pods = (diagnose_pod(pod, requirements) for pod in counting)
    for failure in (*of_pods, *map(diagnose_workload, workloads)):
        if failure is not None:
            known = failures.get(failure.reason)
            failures[failure.reason] = failure if known is None else replace(known, pods=known.pods + 1)
    first = next((failures[reason] for reason in _BY_PRIORITY if reason in failures), None)
    if first is None:
        return None
    more = f" (and {first.pods - 1} more like it)" if first.pods > 1 else ""
    advice = first.advice or advice_for(first.reason)
    if first.reason is Reason.INSUFFICIENT_CAPACITY and not first.advice:
        # In a rollout, outdated instances hold the capacity that new ones wait for.
        rolls_out = 0 < len(updated) < len(pods)
        advice = _advice_for_groups(pods) or (_ADVICE_IN_ROLLOUT if rolls_out else advice)
    return Failure(first.reason, f"{first.message}{more}", first.pods, advice)


def _advice_for_groups(pods: Iterable[Manifest]) -> str:
    """Returns the advice for groups that hold nodes for which others wait; else empty."""
    held: dict[str, set[str]] = {}
    for pod in pods:
        group = f"{label(pod, GROUP_SET_LABEL)}-{label(pod, GROUP_INDEX_LABEL)}".removesuffix("-")
        held.setdefault(group, set()).add(str(_scheduled(pod).get("status")))
    groups = " and ".join(sorted(group for group, found in held.items() if group and {"True", "False"} <= found)[:9])
    text = f"Groups {groups} hold nodes that the others wait for: add nodes, or lower minReplicas."
    return text if " " in groups else ""


def advice_for(reason: Reason) -> str:
    return next((info.advice.replace("`", "") for info in reasons() if info.reason is reason), "")


def diagnose_pod(pod: Manifest, requirements: Mapping[str, PodRequirements] = _UNKNOWN_REQUIREMENTS) -> Failure | None:
    """Returns why a pod is not ready; None if it is ready, being deleted, or still starting."""
    status = pod.get("status") or {}
    if is_deleting(pod) or is_ready(pod):
        return None
    scheduled = _scheduled(pod)
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        needs = requirements.get(labels_of(pod).get(POOL_LABEL, ""), PodRequirements())
        return _diagnose_unschedulable(pod, str(scheduled.get("message", "")), needs)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or []:
            failure = _diagnose_container(pod, container, first=kind.startswith("init"))
            if failure is not None:
                return failure
    return None


def diagnose_workload(workload: Manifest) -> Failure | None:
    """Returns the first problem that a workload's controller reports: rejected pods or a failed
    start.

    None if it reports neither.
    """
    for condition in (workload.get("status") or {}).get("conditions") or []:
        message = _truncate(str(condition.get("message", "")))
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return Failure(rejection_reason(message) or Reason.POLICY_REFUSED, f"{name_of(workload)}: {message}")
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return Failure(Reason.START_TIMEOUT, f"{name_of(workload)}: {message}")
    return None


def diagnose_write(error: KubeError, kind: str, name: str) -> Failure | None:
    """Returns why the API server rejects a child; None if a retry may help."""
    message = f"{kind} {name}: {_truncate(error.message)}"
    if error.status == 413 or "too large" in error.message or "Too long: may not be more than" in error.message:
        reason = Reason.TOO_LARGE
    elif isinstance(error, Forbidden):
        reason = rejection_reason(error.message) or Reason.FORBIDDEN
    elif isinstance(error, Invalid):
        causes = "; ".join(": ".join(filter(None, (cause.field, cause.message))) for cause in error.causes[:3])
        reason = rejection_reason(error.message) or Reason.INVALID_TEMPLATE
        message = f"{kind} {name}: {_truncate(causes)}" if causes else message
    else:
        return None
    is_immutable = "field is immutable" in error.message
    return Failure(reason, message, advice=_ADVICE_IF_IMMUTABLE if is_immutable else advice_for(reason))


def rejection_reason(message: str) -> Reason | None:
    """Returns the reason for a rejection by quota or policy; None for other messages."""
    if any(word in message for word in _QUOTA_MESSAGES):
        return Reason.QUOTA_EXCEEDED
    if "violates PodSecurity" in message or "admission webhook" in message or "ValidatingAdmissionPolicy" in message:
        return Reason.POLICY_REFUSED
    return None


def _unschedulable_since(pod: Manifest, wall: float) -> float:
    text = str(_scheduled(pod).get("lastTransitionTime") or metadata_of(pod).get("creationTimestamp") or "")
    return parse_time(text) or wall


def _scheduled(pod: Manifest) -> Mapping[str, Any]:
    return find_condition(pod.get("status") or {}, "PodScheduled") or {}


def _diagnose_unschedulable(pod: Manifest, message: str, needs: PodRequirements) -> Failure:
    if _CLAIM.search(message):
        return _diagnose_claim(pod, message, needs)
    demand, message = needs.describe(), _truncate(message.partition(_PREEMPTION)[0])
    lacking, advice = f": no node fits {demand}" if demand else "", ""
    if any(words in message for words in _BOUND_ELSEWHERE):
        lacking = f": {_list_claims(needs.claims_of(name_of(pod)))} is bound to another node"
        advice = "Use a claim that several nodes can mount, or model.cache.size."
    where = f"pod {name_of(pod)} waits for a node"
    return Failure(Reason.INSUFFICIENT_CAPACITY, f"{where}{lacking}; the scheduler says: {message}", advice=advice)


def _list_claims(claims: tuple[str, ...]) -> str:
    if len(claims) > 1:
        return f"one of the claims {', '.join(claims)}"
    return f"claim {claims[0]}" if claims else "its claim"


def _diagnose_claim(pod: Manifest, message: str, needs: PodRequirements) -> Failure:
    where = f"pod {name_of(pod)} waits for a volume"
    if absent := _ABSENT_CLAIM.search(message):
        return Failure(Reason.MISSING_CLAIM, f"{where}: there is no PersistentVolumeClaim {absent[1]}")
    namespace = namespace_of(pod)
    described = f"kubectl describe pvc{f' -n {namespace}' if namespace else ''}"
    named, claims = _NAMED_CLAIM.search(message), needs.claims_of(name_of(pod))
    if _UNBOUND_CLAIMS not in message or not claims:
        look = f"{described} {named[1]}" if named else described
        return Failure(Reason.UNBOUND_CLAIM, f"{where}: {_truncate(message)} ({look} says why)")
    which = _list_claims(claims)
    return Failure(Reason.UNBOUND_CLAIM, f"{where}: {which} is Pending ({described} {' '.join(claims)} says why)")


def _diagnose_container(pod: Manifest, container: dict[str, Any], *, first: bool) -> Failure | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), _truncate(str(waiting.get("message", "")))
    where = f"pod {name_of(pod)}"
    if reason in _PULL_ERRORS:
        return Failure(Reason.IMAGE_PULL_FAILED, f"{where}: {container.get('image', 'the image')}: {message or reason}")
    if reason == "CreateContainerConfigError":
        missing = next((missing for pattern, missing in _MISSING_OBJECTS if pattern.search(message)), None)
        return Failure(missing, f"{where}: {message}") if missing else None
    terminated = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if terminated.get("reason") == "OOMKilled":
        return Failure(
            Reason.OUT_OF_MEMORY, f"{where}: {container.get('name')} was ended for using more memory than it may"
        )
    if reason != "CrashLoopBackOff":
        return None
    code = terminated.get("exitCode", "?")
    times = f"{container.get('name')} ended with exit code {code}, {container.get('restartCount', 0)} times"
    download = first and any(word in str(container.get("name", "")) for word in _DOWNLOAD_NAMES)
    last = _truncate(str(terminated.get("message", "")).strip())
    kind = Reason.DOWNLOAD_FAILED if download else Reason.ENGINE_CRASHING
    return Failure(kind, f"{where}: {times}" + (f": {last}" if last else ""))


def _truncate(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 1] + "…"
