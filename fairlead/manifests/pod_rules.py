"""Rules of pods: what an API server or a node refuses in a rendered pod, and what leads nowhere.

A pool's `template` is merged over Fairlead's own pod. Each of the two may be right by itself while
the result is not, so the rules read the result.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fairlead import units
from fairlead.manifests.lint import LintNote

_KINDS: Final = ("initContainers", "containers")
_VARIABLE: Final = re.compile(r"(?<!\$)(?:\$\$)*\$\(([A-Za-z_][\w.-]*)\)")
_GIVEN_VARIABLES: Final = ("KUBERNETES_", "LWS_")
"""Beginnings of variables that Kubernetes and LeaderWorkerSet add to containers."""
_SHELLS: Final = ("sh", "bash", "dash", "ash")
_HOST_FIELDS: Final = ("hostNetwork", "hostPID", "hostIPC")
_RESTRICTED_VOLUMES: Final = frozenset(
    (
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
)
"""Source: Kubernetes, Pod Security Standards, "Restricted"."""
_SECCOMP: Final = ("RuntimeDefault", "Localhost")


def lint_pod(template: Mapping[str, Any]) -> Iterator[LintNote]:
    """Yields notes on a rendered pod template. A path is one of the template's spec."""
    spec = template["spec"]
    yield from _lint_names(spec)
    for kind in _KINDS:
        for container in spec.get(kind) or ():
            path = (kind, str(container["name"]))
            yield from _lint_mounts(container, path, spec)
            yield from _lint_privileges(container, path, spec)
            yield from _lint_requests(container, path)
            yield from _lint_variables(container, path)
    yield from _lint_selectors(template)
    if reasons := list(dict.fromkeys(_unrestricted(spec))):
        message = f"a namespace with the Pod Security level restricted refuses these pods: {'; '.join(reasons)}"
        yield LintNote((), message, "change them, or leave them if the level of the namespace is another")


def _lint_names(spec: Mapping[str, Any]) -> Iterator[LintNote]:
    counts = Counter(str(container["name"]) for kind in _KINDS for container in spec.get(kind) or ())
    for name, count in counts.items():
        if count > 1:
            yield LintNote(
                ("initContainers", name), f"{count} containers are called {name}", "rename one", is_problem=True
            )


def _lint_mounts(container: Mapping[str, Any], path: tuple[str, str], spec: Mapping[str, Any]) -> Iterator[LintNote]:
    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    for kind, place in (("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")):
        for mount in container.get(kind) or ():
            if mount.get("name") not in volumes:
                message = f"{mount.get(place)} is of the volume {mount.get('name')}, which the pod does not have"
                yield LintNote((*path, kind), message, "add it to volumes, or remove the mount", is_problem=True)
    claims = {claim["name"] for claim in spec.get("resourceClaims") or ()}
    for claim in (container.get("resources") or {}).get("claims") or ():
        if claim.get("name") not in claims:
            message = f"the pod has no resource claim {claim.get('name')}"
            yield LintNote((*path, "resources"), message, "add it to resourceClaims, or remove it", is_problem=True)


def _lint_privileges(
    container: Mapping[str, Any], path: tuple[str, str], spec: Mapping[str, Any]
) -> Iterator[LintNote]:
    own, pod = container.get("securityContext") or {}, spec.get("securityContext") or {}
    here = (*path, "securityContext")
    is_raised = own.get("privileged") or "CAP_SYS_ADMIN" in ((own.get("capabilities") or {}).get("add") or ())
    if is_raised and own.get("allowPrivilegeEscalation") is False:
        message = "a container with privileged: true, or CAP_SYS_ADMIN, cannot have allowPrivilegeEscalation: false"
        yield LintNote(here, message, "remove one of the two", is_problem=True)
    user, not_root = (own.get(name, pod.get(name)) for name in ("runAsUser", "runAsNonRoot"))
    if user == 0 and not_root:
        message = "runAsUser is 0 and runAsNonRoot is true: the node starts no such container"
        yield LintNote(here, message, "remove one of the two", is_problem=True)


def _lint_requests(container: Mapping[str, Any], path: tuple[str, str]) -> Iterator[LintNote]:
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    for name, request in (resources.get("requests") or {}).items():
        if name not in limits:
            continue
        least, most = units.parse_resource(request), units.parse_resource(limits[name])
        if least is None or most is None:
            continue  # the type of the field says so
        if least > most or ("/" in name and least != most):
            relation = "must be" if "/" in name else "may be at most"
            message = f"the request of {name} is {request}, and {relation} its limit of {limits[name]}"
            yield LintNote((*path, "resources"), message, "correct one of the two", is_problem=True)


def _lint_variables(container: Mapping[str, Any], path: tuple[str, str]) -> Iterator[LintNote]:
    """Yields a note on each `$(NAME)` that stays as it is, without a variable before it."""
    known: set[str] = set()
    has_unknown = bool(container.get("envFrom"))
    texts = []
    for variable in container.get("env") or ():
        texts.append((f"the value of {variable['name']}", variable.get("value") or "", frozenset(known)))
        known.add(variable["name"])
    command = [str(word) for word in container.get("command") or ()]
    if not command or command[0].rpartition("/")[2] not in _SHELLS:  # a shell runs $(NAME)
        words = [*command, *map(str, container.get("args") or ())]
        texts += [("an argument", word, frozenset(known)) for word in words]
    missing: dict[str, str] = {}
    for place, text, before in texts:
        for name in _VARIABLE.findall(text):
            if name not in before and not has_unknown and not name.startswith(_GIVEN_VARIABLES):
                missing.setdefault(name, place)
    for name, place in missing.items():
        message = f"$({name}) in {place} stays as it is: no variable of that name comes before it"
        yield LintNote((*path, "env"), message, f"set {name} before it, or write $$({name}) if the text is meant")


def _lint_selectors(template: Mapping[str, Any]) -> Iterator[LintNote]:
    labels = template["metadata"].get("labels") or {}
    for constraint in template["spec"].get("topologySpreadConstraints") or ():
        selector = constraint.get("labelSelector")
        if selector is not None and not selects(selector, labels):
            message = f"the spread over {constraint.get('topologyKey')} counts no pod of this pool: it selects others"
            fix = "write labels that the pods have, such as those of template.metadata.labels"
            yield LintNote(("topologySpreadConstraints",), message, fix)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Returns whether a label selector matches labels."""
    if any(labels.get(name) != str(value) for name, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_matches(expression, labels) for expression in selector.get("matchExpressions") or ())


def _matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(str(expression.get("key"))), [str(one) for one in expression.get("values") or ()]
    match expression.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None


def _unrestricted(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yields what Pod Security `restricted` refuses in a pod."""
    pod = spec.get("securityContext") or {}
    yield from (name for name in _HOST_FIELDS if spec.get(name))
    for volume in spec.get("volumes") or ():
        yield from (
            f"the volume {volume['name']} is a {kind}" for kind in volume.keys() - {"name"} - _RESTRICTED_VOLUMES
        )
    for kind in _KINDS:
        for container in spec.get(kind) or ():
            if fields := list(_unrestricted_fields(container, pod)):
                yield f"container {container['name']}: {', '.join(fields)}"


def _unrestricted_fields(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield "capabilities does not drop ALL"
    yield from (f"capability {name}" for name in capabilities.get("add") or () if name != "NET_BIND_SERVICE")
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser is 0"
    seccomp = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if seccomp.get("type") not in _SECCOMP:
        yield "no seccompProfile"
    yield from (f"hostPort {port['hostPort']}" for port in container.get("ports") or () if port.get("hostPort"))


def template_path(pool_spec: Mapping[str, Any], path: Sequence[str]) -> tuple[str | int, ...]:
    """Returns a path of a rendered pod in a pool's own `template.spec`; else that of the pool."""
    if not path or not isinstance(items := pool_spec.get(path[0]), list):
        return ("template", "spec") if not path or path[0] in pool_spec else ()
    steps: tuple[str | int, ...] = ("template", "spec", path[0])
    for index, item in enumerate(items):
        if len(path) > 1 and isinstance(item, Mapping) and item.get("name") == path[1]:
            steps = (*steps, index, *path[2:])
    return steps
