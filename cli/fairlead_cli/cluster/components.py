"""Components."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.object_fields import (
    arguments_of,
    containers_of,
    environment_of,
    label_of,
    namespace_name,
    pod_spec_of,
    spec_of,
)

NAME_LABEL: Final = "app.kubernetes.io/name"


COMPONENT_LABEL: Final = "app.kubernetes.io/component"


RELEASE_LABEL: Final = "app.kubernetes.io/instance"


VERSION_LABEL: Final = "app.kubernetes.io/version"


OWN_OBJECTS: Final = f"{NAME_LABEL}=fairlead"


OPERATOR, GATEWAY, INDEXER, REDIS = "operator", "gateway", "indexer", "redis"


@dataclass(frozen=True, slots=True)
class SecretReference:
    """What a Deployment takes from one Secret: the entries, and whether its pods start without."""

    namespace: str
    name: str
    entries: frozenset[str]
    is_optional: bool = False


def with_component(objects: Sequence[Manifest], name: str) -> list[Manifest]:
    """Those that carry the component's label."""
    return [one for one in objects if label_of(one, COMPONENT_LABEL) == name]


WATCH_NAMESPACES_VARIABLE = "FAIRLEAD_WATCH_NAMESPACES"


def desired_replicas(deployment: Manifest) -> int:
    """As asked; one where nobody says."""
    asked = spec_of(deployment).get("replicas")
    return 1 if asked is None else int(asked)


def watched_namespaces(deployment: Manifest) -> list[str]:
    """The namespaces whose models it looks after; none named: all."""
    named = environment_of(deployment).get(WATCH_NAMESPACES_VARIABLE, "")
    if not named:
        argument = next((word for word in arguments_of(deployment) if word.startswith("--kube=")), "")
        named = argument.removeprefix("--kube=")
    return [part.strip() for part in named.split(",") if part.strip()]


def secret_references(deployment: Manifest) -> list[SecretReference]:
    """Every Secret that its pods name, with the entries that they take from it; pull secrets aside."""
    pods = pod_spec_of(deployment)
    entries: dict[tuple[str, bool], set[str]] = {}
    for container in containers_of(pods):
        for one in container.get("env") or []:
            chosen = (one.get("valueFrom") or {}).get("secretKeyRef")
            if chosen and chosen.get("name"):
                where = (str(chosen["name"]), bool(chosen.get("optional")))
                entries.setdefault(where, set()).add(str(chosen.get("key", "")))
    for volume in pods.get("volumes") or []:
        chosen = volume.get("secret")
        if chosen and chosen.get("secretName"):
            where = (str(chosen["secretName"]), bool(chosen.get("optional")))
            entries.setdefault(where, set()).update(str(one.get("key", "")) for one in chosen.get("items") or [])
    return [
        SecretReference(namespace_name(deployment), name, frozenset(found), optional)
        for (name, optional), found in entries.items()
    ]


def has_redis(deployment: Manifest) -> bool:
    """Are its pods told where Redis is?"""
    return any(
        one.get("name") == "FAIRLEAD_REDIS_URL"
        for container in containers_of(pod_spec_of(deployment))
        for one in container.get("env") or []
    )


def service_account(deployment: Manifest) -> str:
    """The service account of its pods."""
    return str(pod_spec_of(deployment).get("serviceAccountName") or "default")
