"""The installed components: labels of the chart, and what their Deployments refer to. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.object_fields import (
    arguments_of,
    containers_of,
    environment_of,
    label_of,
    mounted_secrets,
    namespace_name,
    pod_spec_of,
    spec_of,
)

NAME_LABEL: Final = "app.kubernetes.io/name"


COMPONENT_LABEL: Final = "app.kubernetes.io/component"


RELEASE_LABEL: Final = "app.kubernetes.io/instance"


VERSION_LABEL: Final = "app.kubernetes.io/version"


OWN_OBJECTS: Final = f"{NAME_LABEL}=fairlead"


OPERATOR, GATEWAY, INDEXER, AUTOSCALER, REDIS = "operator", "gateway", "indexer", "autoscaler", "redis"

MANAGEMENT_PODS_VARIABLE: Final = "FAIRLEAD_MANAGEMENT_PODS"
WATCH_NAMESPACES_VARIABLE = "FAIRLEAD_WATCH_NAMESPACES"


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Entries of a Secret that a Deployment uses; ``is_optional``: its pods start without them."""

    namespace: str
    name: str
    entries: frozenset[str]
    is_optional: bool = False


def with_component(objects: Sequence[Manifest], name: str) -> list[Manifest]:
    return [object_ for object_ in objects if label_of(object_, COMPONENT_LABEL) == name]


def desired_replicas(deployment: Manifest) -> int:
    replicas = spec_of(deployment).get("replicas")
    return 1 if replicas is None else int(replicas)


def watched_namespaces(deployment: Manifest) -> list[str]:
    """Returns the namespaces that a Deployment watches; empty means all."""
    value = environment_of(deployment).get(WATCH_NAMESPACES_VARIABLE, "")
    if not value:
        argument = next((word for word in arguments_of(deployment) if word.startswith("--kube=")), "")
        value = argument.removeprefix("--kube=")
    return [part.strip() for part in value.split(",") if part.strip()]


def restarts_engines(deployment: Manifest) -> bool:
    """Returns True if an operator reads from gateways which engines hang."""
    return bool(environment_of(deployment).get(MANAGEMENT_PODS_VARIABLE))


def secret_references(deployment: Manifest) -> list[SecretReference]:
    """Returns the Secrets that a Deployment's pods use, with their entries; image pull secrets are
    left out.
    """
    pods = pod_spec_of(deployment)
    entries: dict[tuple[str, bool], set[str]] = {}
    for container in containers_of(pods):
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if reference and reference.get("name"):
                key = (str(reference["name"]), bool(reference.get("optional")))
                entries.setdefault(key, set()).add(str(reference.get("key", "")))
    for volume in pods.get("volumes") or []:
        for secret in mounted_secrets(volume):
            entries.setdefault((secret.name, secret.is_optional), set()).update(secret.entries)
    return [
        SecretReference(namespace_name(deployment), name, frozenset(names), optional)
        for (name, optional), names in entries.items()
    ]


def has_redis(deployment: Manifest) -> bool:
    """Whether the pods get the URL of a Redis."""
    return any(
        variable.get("name") == "FAIRLEAD_REDIS_URL"
        for container in containers_of(pod_spec_of(deployment))
        for variable in container.get("env") or []
    )


def service_account(deployment: Manifest) -> str:
    return str(pod_spec_of(deployment).get("serviceAccountName") or "default")


def revocation_list(gateway: Manifest) -> str | None:
    """Returns the name of the ConfigMap with revoked keys that a gateway watches, or None."""
    option = "--kube-revoked="
    return next((word.removeprefix(option) for word in arguments_of(gateway) if word.startswith(option)), None)
