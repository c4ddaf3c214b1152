"""Looking into objects of the API: labels, conditions, owners, what a pod waits for. Pure; what is not there is empty or None."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead.kube.resources import Manifest, is_deleting, is_ready, labels_of, name_of, namespace_of

Condition = Mapping[str, Any]


def label_of(manifest: Manifest, name: str) -> str:
    """A label; empty where there is none."""
    return str(labels_of(manifest).get(name, ""))


def namespace_name(manifest: Manifest) -> str:
    """The namespace; empty for objects of the whole cluster."""
    return namespace_of(manifest) or ""


def object_key(manifest: Manifest) -> str:
    """``namespace/name``."""
    return f"{namespace_name(manifest)}/{name_of(manifest)}"


def status_of(manifest: Manifest) -> Mapping[str, Any]:
    """``status``, empty where there is none."""
    return manifest.get("status") or {}


def spec_of(manifest: Manifest) -> Mapping[str, Any]:
    """``spec``, empty where there is none."""
    return manifest.get("spec") or {}


def conditions_of(manifest: Manifest) -> Sequence[Condition]:
    """``status.conditions``."""
    return [one for one in status_of(manifest).get("conditions") or [] if isinstance(one, dict)]


def condition_of(manifest: Manifest, type: str) -> Condition | None:
    """One of them."""
    return next((one for one in conditions_of(manifest) if one.get("type") == type), None)


def is_condition_true(manifest: Manifest, type: str) -> bool:
    """Is this condition there and True?"""
    found = condition_of(manifest, type)
    return found is not None and found.get("status") == "True"


def pod_spec_of(workload: Manifest) -> Mapping[str, Any]:
    """The spec of the pods that a Deployment makes."""
    template = spec_of(workload).get("template") or {}
    return template.get("spec") or {}


def containers_of(pods: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The containers of a pod's spec, those that run first included."""
    return [*(pods.get("initContainers") or []), *(pods.get("containers") or [])]


def environment_of(workload: Manifest) -> dict[str, str]:
    """The variables of a Deployment's pods that stand there as text; those from Secrets are left out."""
    return {
        str(one["name"]): str(one["value"])
        for container in containers_of(pod_spec_of(workload))
        for one in container.get("env") or []
        if "name" in one and "value" in one
    }


def arguments_of(workload: Manifest) -> list[str]:
    """What its containers are started with."""
    return [str(word) for one in containers_of(pod_spec_of(workload)) for word in one.get("args") or []]


def restart_count(pod: Manifest) -> int:
    """Of all its containers."""
    return sum(int(one.get("restartCount") or 0) for one in status_of(pod).get("containerStatuses") or [])


def waiting_reason(pod: Manifest) -> str:
    """What keeps a pod from being ready, in the cluster's words; empty for one that is."""
    if is_deleting(pod):
        return "it is being deleted"
    if is_ready(pod):
        return ""
    unscheduled = condition_of(pod, "PodScheduled")
    if unscheduled is not None and unscheduled.get("status") == "False":
        return f"{unscheduled.get('reason', 'Unschedulable')}: {shorten(str(unscheduled.get('message', '')))}"
    for one in _statuses(pod):
        state = one.get("state") or {}
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            last = (one.get("lastState") or {}).get("terminated") or {}
            code = f" (exit code {last['exitCode']})" if "exitCode" in last else ""
            return f"{waiting['reason']}{code}: {shorten(str(waiting.get('message', '')))}".rstrip(": ")
        if ended and ended.get("exitCode"):
            return f"{one.get('name')} ended with exit code {ended['exitCode']}"
    not_ready = condition_of(pod, "Ready")
    if not_ready is not None and not_ready.get("message"):
        return shorten(str(not_ready["message"]))
    return str(status_of(pod).get("reason") or status_of(pod).get("phase") or "nothing is known of it")


def _statuses(pod: Manifest) -> Iterable[Mapping[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status_of(pod).get(kind) or []


def shorten(text: str, max_length: int = 300) -> str:
    """On one line, and no longer than that."""
    text = " ".join(text.split())
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
