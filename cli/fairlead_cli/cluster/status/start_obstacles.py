"""Explains pods that are not made, and pods whose containers do not start, by warnings.

Pure. The operator reads no events. A pod in `ContainerCreating` says nothing of its own. The same
is true of a LeaderWorkerSet whose pods are refused: only its StatefulSets have events.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.kube.resources import Manifest, is_deleting, name_of, namespace_of, uid_of
from fairlead_cli.cluster.object_fields import condition_of, shorten, spec_of, status_of
from fairlead_operator.status.diagnosis import advice_for, rejection_reason

_REFUSED: Final = "FailedCreate"
_PODS_OF_GROUPS: Final = (_REFUSED, "SuccessfulCreate")
_CREATING: Final = ("ContainerCreating", "PodInitializing")
_KINDS: Final = {
    "FailedAttachVolume": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedMount": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedMapVolume": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedCreatePodSandBox": "look at the network plugin and the container runtime of the node",
}
"""Reasons of events that stop a start, each with advice for unknown messages."""
_SHARED: Final = (
    "only one node at a time has a ReadWriteOnce volume: give the claim ReadWriteMany or ReadOnlyMany, "
    "or give each pod a volume of its own with model.cache.size"
)
_REMEDIES: Final = (
    (re.compile("Multi-Attach error|exclusively attached"), _SHARED),
    (re.compile(r'secret "([^"]+)" not found'), "create the Secret {} in {namespace}"),
    (re.compile(r'configmap "([^"]+)" not found'), "create the ConfigMap {} in {namespace}"),
    (re.compile(r"non-existent secret key: (\S+)"), "add the entry {} to the Secret of the volume"),
    (re.compile(r"non-existent config key: (\S+)"), "add the entry {} to the ConfigMap of the volume"),
    (re.compile(r"driver name (\S+) not found"), "install the CSI driver {} on the node"),
    (re.compile(r'(?:no runtime for|RuntimeHandler) "([^"]+)"'), "install the container runtime {} on the node"),
)
"""Part of an event's message to what helps; ``{}`` is its group."""


@dataclass(frozen=True, slots=True)
class StartObstacle:
    """The last warning about a pod whose containers do not start. ``remedy``: what helps."""

    message: str
    remedy: str


def group_names(model: Manifest) -> frozenset[str]:
    """Returns the beginnings of the names of the StatefulSets that run pools on several nodes."""
    pools = spec_of(model).get("pools") or []
    several = [pool for pool in pools if int((pool.get("parallelism") or {}).get("nodes") or 1) > 1]
    return frozenset(f"{name_of(model)}-{pool.get('name') or 'main'}" for pool in several)


def is_about_group(event: Manifest, names: Collection[str]) -> bool:
    """Whether an event is about a StatefulSet of a group with one of these names."""
    regarding = event.get("regarding") or {}
    name = f"{regarding.get('name')}-"
    return regarding.get("kind") == "StatefulSet" and any(name.startswith(f"{one}-") for one in names)


def find_rejection(model: Manifest, events: Sequence[Manifest]) -> StartObstacle | None:
    """Returns why the pods of a model's groups are refused, by its last event.

    events: the newest last.
    """
    names = group_names(model)
    about = [event for event in events if event.get("reason") in _PODS_OF_GROUPS and is_about_group(event, names)]
    if not about or about[-1]["reason"] != _REFUSED:
        return None
    note = shorten(" ".join(str(about[-1].get("note") or "").split()))
    reason = rejection_reason(note)
    return StartObstacle(note, advice_for(reason).rstrip(".") if reason else "read what the API server says")


def find_obstacle(pod: Manifest, events: Sequence[Manifest]) -> StartObstacle | None:
    """Returns what keeps a pod's containers from starting; None for a pod that may go on by itself.

    events: the newest last.
    """
    if is_deleting(pod) or not _is_creating(pod):
        return None
    about = [event for event in events if (event.get("regarding") or {}).get("uid") == uid_of(pod)]
    last = next((event for event in reversed(about) if event.get("reason") in _KINDS), None)
    if last is None:
        return None
    note = " ".join(str(last.get("note") or "").split())
    for pattern, remedy in _REMEDIES:
        if found := pattern.search(note):
            text = remedy.format(*found.groups(), namespace=namespace_of(pod))
            return StartObstacle(f"{last['reason']}: {shorten(note)}", text)
    return StartObstacle(f"{last['reason']}: {shorten(note)}", _KINDS[str(last["reason"])])


def _is_creating(pod: Manifest) -> bool:
    """Whether a pod has a node, and none of its containers was started or fetched yet."""
    ready_to_start = condition_of(pod, "PodReadyToStartContainers")
    if ready_to_start is not None and ready_to_start.get("status") == "True":
        return False
    states: list[dict[str, Any]] = [
        container.get("state") or {}
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in status_of(pod).get(kind) or []
    ]
    return bool(states) and all((state.get("waiting") or {}).get("reason") in _CREATING for state in states)
