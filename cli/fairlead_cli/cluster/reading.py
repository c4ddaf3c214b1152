"""Looking into objects of the API: labels, conditions, owners, what a pod waits for. Pure; what is not there is empty or None."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead.kube.resource import Manifest, labels_of, leaving, name_of, namespace_of, says_ready

Condition = Mapping[str, Any]


def label(manifest: Manifest, name: str) -> str:
    """A label; empty where there is none."""
    return str(labels_of(manifest).get(name, ""))


def space(manifest: Manifest) -> str:
    """The namespace; empty for objects of the whole cluster."""
    return namespace_of(manifest) or ""


def key(manifest: Manifest) -> str:
    """``namespace/name``."""
    return f"{space(manifest)}/{name_of(manifest)}"


def status(manifest: Manifest) -> Mapping[str, Any]:
    """``status``, empty where there is none."""
    return manifest.get("status") or {}


def spec(manifest: Manifest) -> Mapping[str, Any]:
    """``spec``, empty where there is none."""
    return manifest.get("spec") or {}


def conditions(manifest: Manifest) -> Sequence[Condition]:
    """``status.conditions``."""
    return [one for one in status(manifest).get("conditions") or [] if isinstance(one, dict)]


def condition(manifest: Manifest, type: str) -> Condition | None:
    """One of them."""
    return next((one for one in conditions(manifest) if one.get("type") == type), None)


def holds(manifest: Manifest, type: str) -> bool:
    """Is this condition there and True?"""
    found = condition(manifest, type)
    return found is not None and found.get("status") == "True"


def pod_spec(workload: Manifest) -> Mapping[str, Any]:
    """The spec of the pods that a Deployment makes."""
    template = spec(workload).get("template") or {}
    return template.get("spec") or {}


def containers(pods: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The containers of a pod's spec, those that run first included."""
    return [*(pods.get("initContainers") or []), *(pods.get("containers") or [])]


def environment(workload: Manifest) -> dict[str, str]:
    """The variables of a Deployment's pods that stand there as text; those from Secrets are left out."""
    return {
        str(one["name"]): str(one["value"])
        for container in containers(pod_spec(workload))
        for one in container.get("env") or []
        if "name" in one and "value" in one
    }


def arguments(workload: Manifest) -> list[str]:
    """What its containers are started with."""
    return [str(word) for one in containers(pod_spec(workload)) for word in one.get("args") or []]


def restarts(pod: Manifest) -> int:
    """Of all its containers."""
    return sum(int(one.get("restartCount") or 0) for one in status(pod).get("containerStatuses") or [])


def waits_for(pod: Manifest) -> str:
    """What keeps a pod from being ready, in the cluster's words; empty for one that is."""
    if leaving(pod):
        return "it is being deleted"
    if says_ready(pod):
        return ""
    unscheduled = condition(pod, "PodScheduled")
    if unscheduled is not None and unscheduled.get("status") == "False":
        return f"{unscheduled.get('reason', 'Unschedulable')}: {short(str(unscheduled.get('message', '')))}"
    for one in _statuses(pod):
        state = one.get("state") or {}
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            last = (one.get("lastState") or {}).get("terminated") or {}
            code = f" (exit code {last['exitCode']})" if "exitCode" in last else ""
            return f"{waiting['reason']}{code}: {short(str(waiting.get('message', '')))}".rstrip(": ")
        if ended and ended.get("exitCode"):
            return f"{one.get('name')} ended with exit code {ended['exitCode']}"
    not_ready = condition(pod, "Ready")
    if not_ready is not None and not_ready.get("message"):
        return short(str(not_ready["message"]))
    return str(status(pod).get("reason") or status(pod).get("phase") or "nothing is known of it")


def _statuses(pod: Manifest) -> Iterable[Mapping[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status(pod).get(kind) or []


def short(text: str, most: int = 300) -> str:
    """On one line, and no longer than that."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
