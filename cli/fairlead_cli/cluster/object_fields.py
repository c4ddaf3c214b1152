"""Fields of Kubernetes objects: labels, conditions, containers, and why a pod is not ready. Pure.

An absent field is empty or None.
"""

import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from fairlead.errors import FairleadError
from fairlead.kube.errors import Forbidden, NotFound
from fairlead.kube.resources import Manifest, is_deleting, is_ready, labels_of, namespace_of
from fairlead_cli.formatting import UNKNOWN

Condition = Mapping[str, Any]

MAX_CONDITION_MESSAGE: Final = 800
"""Length to which the message of a condition is cut. It ends with the advice, which stays whole."""

_STEPS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"), (1.0, "s"))

NOT_ALLOWED_PREFIX: Final = "you may not"
"""Beginning of a reason that is a missing permission."""
_NO_KIND: Final = ("404 page not found", "the server could not find the requested resource")
"""Messages of the API server for a path that it does not serve."""
_DENIED: Final = re.compile(
    r'cannot (\w+) resource "([^"]+)" in API group "[^"]*" (?:at the cluster scope|in the namespace "([^"]+)")'
)


def label_of(manifest: Manifest, name: str) -> str:
    """Returns a label; empty when it is absent."""
    return str(labels_of(manifest).get(name, ""))


def namespace_name(manifest: Manifest) -> str:
    """Returns the namespace; empty for cluster-scoped objects."""
    return namespace_of(manifest) or ""


def status_of(manifest: Manifest) -> Mapping[str, Any]:
    """Returns ``status``; empty when it is absent."""
    return manifest.get("status") or {}


def spec_of(manifest: Manifest) -> Mapping[str, Any]:
    """Returns ``spec``; empty when it is absent."""
    return manifest.get("spec") or {}


def conditions_of(manifest: Manifest) -> Sequence[Condition]:
    return [condition for condition in status_of(manifest).get("conditions") or [] if isinstance(condition, dict)]


def condition_of(manifest: Manifest, type: str) -> Condition | None:
    """Returns the condition of a type, or None."""
    return next((condition for condition in conditions_of(manifest) if condition.get("type") == type), None)


def is_condition_true(manifest: Manifest, type: str) -> bool:
    found = condition_of(manifest, type)
    return found is not None and found.get("status") == "True"


@dataclass(frozen=True, slots=True)
class MountedSecret:
    """A Secret in a volume of a pod; `entries` are those that it names, empty for all of them."""

    name: str
    is_optional: bool
    entries: frozenset[str]


def mounted_secrets(volume: Mapping[str, Any]) -> Sequence[MountedSecret]:
    """Returns the Secrets of a volume: of a Secret, or a projected one."""
    own = volume.get("secret") or {}
    projected = [source.get("secret") or {} for source in (volume.get("projected") or {}).get("sources") or []]
    named = [(own.get("secretName"), own), *((source.get("name"), source) for source in projected)]
    return [
        MountedSecret(
            str(name),
            bool(source.get("optional")),
            frozenset(str(item.get("key", "")) for item in source.get("items") or []),
        )
        for name, source in named
        if name
    ]


def pod_spec_of(workload: Manifest) -> Mapping[str, Any]:
    template = spec_of(workload).get("template") or {}
    return template.get("spec") or {}


def containers_of(pods: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*(pods.get("initContainers") or []), *(pods.get("containers") or [])]


def environment_of(workload: Manifest) -> dict[str, str]:
    """Returns the environment variables of a Deployment that have a literal value."""
    return {
        str(variable["name"]): str(variable["value"])
        for container in containers_of(pod_spec_of(workload))
        for variable in container.get("env") or []
        if "name" in variable and "value" in variable
    }


def arguments_of(workload: Manifest) -> list[str]:
    """Returns the arguments of all containers of a Deployment."""
    return [
        str(argument) for container in containers_of(pod_spec_of(workload)) for argument in container.get("args") or []
    ]


def restart_count(pod: Manifest) -> int:
    return sum(int(container.get("restartCount") or 0) for container in status_of(pod).get("containerStatuses") or [])


def is_on_lost_node(pod: Manifest) -> bool:
    """Whether the control plane hears nothing from a pod's node.

    It then sets `Ready` to False, and leaves what the node said last: the containers were ready.
    """
    has_gates = bool(spec_of(pod).get("readinessGates"))
    return not is_ready(pod) and is_condition_true(pod, "ContainersReady") and not has_gates


def waiting_reason(pod: Manifest) -> str:
    """Returns why a pod is not ready, in the cluster's words; empty for a ready pod."""
    if is_deleting(pod):
        return "it is being deleted"
    if is_ready(pod):
        return ""
    if is_on_lost_node(pod):
        return f"its node {spec_of(pod).get('nodeName')} is not ready"
    unscheduled = condition_of(pod, "PodScheduled")
    if unscheduled is not None and unscheduled.get("status") == "False":
        return f"{unscheduled.get('reason', 'Unschedulable')}: {shorten(str(unscheduled.get('message', '')))}"
    for container in _statuses(pod):
        state = container.get("state") or {}
        waiting, terminated = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            last_terminated = (container.get("lastState") or {}).get("terminated") or {}
            code = f" ({_exit_code(last_terminated)})" if "exitCode" in last_terminated else ""
            return f"{waiting['reason']}{code}: {shorten(str(waiting.get('message', '')))}".rstrip(": ")
        if terminated and terminated.get("exitCode"):
            return f"{container.get('name')} ended with {_exit_code(terminated)}"
    not_ready = condition_of(pod, "Ready")
    if not_ready is not None and not_ready.get("message"):
        return shorten(str(not_ready["message"]))
    return str(status_of(pod).get("reason") or status_of(pod).get("phase") or "nothing is known of it")


def _exit_code(terminated: Mapping[str, Any]) -> str:
    killed = ", OOMKilled" if terminated.get("reason") == "OOMKilled" else ""
    return f"exit code {terminated['exitCode']}{killed}"


def _statuses(pod: Manifest) -> Iterable[Mapping[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status_of(pod).get(kind) or []


def shorten(text: str, max_length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def parse_http_date(text: str) -> float | None:
    """Returns an HTTP ``Date`` as Unix time, exact to a second; None for an invalid date."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None


def format_age(since: float | None, now: float) -> str:
    """Returns ``41s``, ``12m``, ``3h``, ``8d``, in one unit as kubectl has it; a dash for an
    unknown time.
    """
    if since is None:
        return UNKNOWN
    seconds = max(0.0, now - since)
    for size, unit in _STEPS:
        if seconds >= (2 * size if unit in ("h", "m") else size):
            return f"{int(seconds // size)}{unit}"
    return "0s"


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class MissingValue:
    """The reason why there is no value. ``is_absent``: the API server says that the object does not
    exist.
    """

    reason: str
    is_forbidden: bool = False
    is_absent: bool = False


async def value_or_missing(request: Awaitable[_Value]) -> _Value | MissingValue:
    """Awaits a request; returns its result, or a MissingValue in place of a FairleadError."""
    try:
        return await request
    except Forbidden as error:
        return MissingValue(_reason(error), is_forbidden=True)
    except NotFound as error:
        return MissingValue(_reason(error), is_absent=True)
    except FairleadError as error:
        return MissingValue(_reason(error))


def _reason(error: FairleadError) -> str:
    """Returns why a request failed: the message without the request line, or the permission that
    the user lacks.
    """
    head, _, rest = error.message.partition(": ")
    message = rest if rest and head.startswith(("GET /", "POST /", "PATCH /")) else error.message
    if message in _NO_KIND:
        return "the cluster does not know this kind"
    match = _DENIED.search(message)
    if match is None:
        return message
    return f"{NOT_ALLOWED_PREFIX} {match[1]} {match[2]} {f'in {match[3]}' if match[3] else 'in the whole cluster'}"
