"""Leaves out the fields of the operator that contradict a pool's own template."""

from collections.abc import Mapping
from typing import Any

from fairlead.kube.resources import Manifest
from fairlead.units import parse_resource
from fairlead_operator.render.pod_template import ENGINE_CONTAINER_NAME


def drop_contradicted_defaults(spec: Manifest, own: Mapping[str, Any]) -> None:
    """Removes the fields of a pod's spec with which a field of the pool's own template is refused.

    Why in every render version: the API server or the node refuses a pod with both, so none runs.
    """
    own_context = _mapping(own, "securityContext")
    if own_context.get("runAsUser") == 0 and "runAsNonRoot" not in own_context:
        spec["securityContext"].pop("runAsNonRoot", None)
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            context = _mapping(container, "securityContext")
            if context.get("runAsUser") == 0 and "runAsNonRoot" not in context:
                container["securityContext"] = {**context, "runAsNonRoot": False}
    engine, given = (_engine_of(part) for part in (spec, own))
    context, capabilities = _mapping(engine, "securityContext"), _mapping(engine, "securityContext", "capabilities")
    is_raised = context.get("privileged") is True or "CAP_SYS_ADMIN" in str(capabilities.get("add"))
    if is_raised and "allowPrivilegeEscalation" not in _mapping(given, "securityContext"):
        engine["securityContext"] = {k: value for k, value in context.items() if k != "allowPrivilegeEscalation"}
    requests, own_requests = (_mapping(part, "resources", "requests") for part in (engine, given))
    for name, limit in _mapping(given, "resources", "limits").items():
        request, most = parse_resource(requests.get(name)), parse_resource(limit)
        if name not in own_requests and request is not None and most is not None and request > most:
            del engine["resources"]["requests"][name]  # Kubernetes takes the limit then


def _engine_of(spec: Mapping[str, Any]) -> Manifest:
    return next((one for one in spec.get("containers") or () if one.get("name") == ENGINE_CONTAINER_NAME), {})


def _mapping(value: Any, *path: str) -> Mapping[str, Any]:
    """Returns the mapping at a path of a template, which may hold anything; empty for others."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
