"""Why instances do not come up, read from pods and workloads: a reason of the closed list, with the names of the case.

Pure. What is read are the words of kubelet, scheduler and controllers; where they say something unknown, nothing is claimed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fairlead.api import Reason
from fairlead.api.conditions import reasons
from fairlead.kube.errors import Forbidden, Invalid, KubeError
from fairlead.kube.resources import Manifest, is_deleting, metadata_of, name_of

_MAX_MESSAGE_LENGTH = 300
_MISSING_SECRET = re.compile(r'secrets? "?([^"\s]+)"? not found|couldn\'t find key (\S+) in Secret (\S+)')
_MISSING_CONFIG_MAP = re.compile(r'configmaps? "?([^"\s]+)"? not found|couldn\'t find key (\S+) in ConfigMap (\S+)')
_MISSING_CLAIM = re.compile(r"persistentvolumeclaim", re.IGNORECASE)
_PULL_ERRORS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_DOWNLOAD_NAMES = ("download", "fetch")
_QUOTA_MESSAGES = ("exceeded quota", "must specify limits", "must specify requests")


@dataclass(frozen=True, slots=True)
class Failure:
    """One cause, in words that name objects. ``pods``: how many pods say so. ``mend``: what to do about it, where ``message`` does
    not say that itself.
    """

    reason: Reason
    message: str
    pods: int = 1
    advice: str = ""

    @property
    def message_with_advice(self) -> str:
        """The cause, and what to do about it."""
        return f"{self.message.rstrip('.')}. {self.advice}" if self.advice else self.message


# The first of these that is found is told: causes before effects.
_BY_PRIORITY = (
    *(Reason.POLICY_REFUSED, Reason.QUOTA_EXCEEDED, Reason.MISSING_SECRET, Reason.MISSING_CONFIG_MAP),
    *(Reason.MISSING_CLAIM, Reason.IMAGE_PULL_FAILED, Reason.DOWNLOAD_FAILED, Reason.OUT_OF_MEMORY),
    *(Reason.ENGINE_CRASHING, Reason.INSUFFICIENT_CAPACITY, Reason.START_TIMEOUT),
)


@dataclass(frozen=True, slots=True)
class PendingCapacity:
    """Pods wait for a node that a cluster's autoscaler may be bringing; it counts as a failure after ``seconds``."""

    message: str
    seconds: float


def pending_capacity(pods: Iterable[Manifest], wall: float, grace_seconds: float) -> PendingCapacity | None:
    """What a node is still hoped for, at the Unix time ``wall``; None where nothing waits, or too long already."""
    waits = []
    for pod in pods:
        found = diagnose_pod(pod)
        if found is not None and found.reason is Reason.INSUFFICIENT_CAPACITY:
            left = _unschedulable_since(pod, wall) + grace_seconds - wall
            if left > 0:
                waits.append(PendingCapacity(found.message, left))
    if not waits:
        return None
    more = f" (and {len(waits) - 1} more like it)" if len(waits) > 1 else ""
    return PendingCapacity(waits[0].message + more, min(one.seconds for one in waits))


def diagnose(
    pods: Iterable[Manifest], workloads: Iterable[Manifest], *, wall: float = 0.0, grace_seconds: float = 0.0
) -> Failure | None:
    """The one cause to tell; None when nothing has gone wrong as far as can be seen.

    A pod without a node counts only after ``grace_seconds``.
    """
    found: dict[Reason, Failure] = {}
    counting = [pod for pod in pods if pending_capacity((pod,), wall, grace_seconds) is None]
    for one in (*map(diagnose_pod, counting), *map(diagnose_workload, workloads)):
        if one is not None:
            before = found.get(one.reason)
            found[one.reason] = one if before is None else Failure(before.reason, before.message, before.pods + 1)
    first = next((found[reason] for reason in _BY_PRIORITY if reason in found), None)
    if first is None:
        return None
    more = f" (and {first.pods - 1} more like it)" if first.pods > 1 else ""
    return Failure(first.reason, f"{first.message}{more}", first.pods, advice_for(first.reason))


def advice_for(reason: Reason) -> str:
    """What the list of reasons says to do, as plain text."""
    return next((one.advice.replace("`", "") for one in reasons() if one.reason is reason), "")


def diagnose_pod(pod: Manifest) -> Failure | None:
    """What keeps a pod from being ready; None for one that is ready, goes, or just takes its time."""
    status = pod.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or []}
    if is_deleting(pod) or (conditions.get("Ready") or {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return _diagnose_unschedulable(pod, str(scheduled.get("message", "")))
    for kind in ("initContainerStatuses", "containerStatuses"):
        for one in status.get(kind) or []:
            found = _diagnose_container(pod, one, first=kind.startswith("init"))
            if found is not None:
                return found
    return None


def diagnose_workload(workload: Manifest) -> Failure | None:
    """What its controller says: pods that are refused, and instances that never came up."""
    for one in (workload.get("status") or {}).get("conditions") or []:
        said = _truncate(str(one.get("message", "")))
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            return Failure(rejection_reason(said) or Reason.POLICY_REFUSED, f"{name_of(workload)}: {said}")
        if one.get("type") == "Progressing" and one.get("reason") == "ProgressDeadlineExceeded":
            return Failure(Reason.START_TIMEOUT, f"{name_of(workload)}: {said}")
    return None


def diagnose_write(error: KubeError, kind: str, name: str) -> Failure | None:
    """Why the API server does not take a child; None when trying again may help."""
    said = f"{kind} {name}: {_truncate(error.message)}"
    if error.status == 413 or "too large" in error.message or "Too long: may not be more than" in error.message:
        reason = Reason.TOO_LARGE
    elif isinstance(error, Forbidden):
        reason = rejection_reason(error.message) or Reason.FORBIDDEN
    elif isinstance(error, Invalid):
        causes = "; ".join(f"{cause.field}: {cause.message}" for cause in error.causes[:3])
        reason = rejection_reason(error.message) or Reason.INVALID_TEMPLATE
        said = f"{kind} {name}: {_truncate(causes)}" if causes else said
    else:
        return None
    return Failure(reason, said, advice=advice_for(reason))


def rejection_reason(message: str) -> Reason | None:
    """Which rule of the cluster speaks in a refusal; None for none of them."""
    if any(word in message for word in _QUOTA_MESSAGES):
        return Reason.QUOTA_EXCEEDED
    if "violates PodSecurity" in message or "admission webhook" in message or "ValidatingAdmissionPolicy" in message:
        return Reason.POLICY_REFUSED
    return None


def _unschedulable_since(pod: Manifest, wall: float) -> float:
    """When the scheduler said first that there is no room, as Unix seconds; now where it cannot be read."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    said = [one.get("lastTransitionTime") for one in conditions if one.get("type") == "PodScheduled"]
    text = str((said or [None])[0] or metadata_of(pod).get("creationTimestamp") or "")
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return wall


def _diagnose_unschedulable(pod: Manifest, message: str) -> Failure:
    reason = Reason.MISSING_CLAIM if _MISSING_CLAIM.search(message) else Reason.INSUFFICIENT_CAPACITY
    return Failure(reason, f"pod {name_of(pod)} waits for a node: {_truncate(message)}")


def _diagnose_container(pod: Manifest, container: dict[str, Any], *, first: bool) -> Failure | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, said = str(waiting.get("reason", "")), _truncate(str(waiting.get("message", "")))
    where = f"pod {name_of(pod)}"
    if reason in _PULL_ERRORS:
        return Failure(Reason.IMAGE_PULL_FAILED, f"{where}: {container.get('image', 'the image')}: {said or reason}")
    if reason == "CreateContainerConfigError":
        return _diagnose_config_error(where, said)
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return Failure(
            Reason.OUT_OF_MEMORY, f"{where}: {container.get('name')} was ended for using more memory than it may"
        )
    if reason != "CrashLoopBackOff":
        return None
    code = ended.get("exitCode", "?")
    times = f"{container.get('name')} ended with exit code {code}, {container.get('restartCount', 0)} times"
    download = first and any(word in str(container.get("name", "")) for word in _DOWNLOAD_NAMES)
    last = _truncate(str(ended.get("message", "")).strip())
    kind = Reason.DOWNLOAD_FAILED if download else Reason.ENGINE_CRASHING
    return Failure(kind, f"{where}: {times}" + (f": {last}" if last else ""))


def _diagnose_config_error(where: str, said: str) -> Failure | None:
    if _MISSING_SECRET.search(said):
        return Failure(Reason.MISSING_SECRET, f"{where}: {said}")
    if _MISSING_CONFIG_MAP.search(said):
        return Failure(Reason.MISSING_CONFIG_MAP, f"{where}: {said}")
    return None


def _truncate(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 1] + "…"
