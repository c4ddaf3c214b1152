"""Secrets, claims and accelerator classes that the specs of models name. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.kube.resources import SECRETS, VOLUME_CLAIMS, Manifest, Resource, key_of
from fairlead_cli.cluster.object_fields import containers_of, mounted_secrets, namespace_name, spec_of


@dataclass(frozen=True, slots=True)
class ModelReference:
    """An object in a model's namespace that the model's pods need. ``model``: ``namespace/name``.
    ``entry``: the entry of a Secret, else empty.
    """

    model: str
    resource: Resource
    namespace: str
    name: str
    entry: str = ""


def accelerator_names(model: Manifest) -> list[str]:
    names = [str(pool.get("acceleratorClassName") or "") for pool in spec_of(model).get("pools") or []]
    return [name for name in dict.fromkeys(names) if name]


def model_references(model: Manifest) -> list[ModelReference]:
    """Returns the Secrets and claims that a model's pods need, without optional ones."""
    found = (
        ModelReference(key_of(model), resource, namespace_name(model), name, entry)
        for resource, name, entry in _references(spec_of(model))
    )
    return list(dict.fromkeys(found))


def _references(spec: Mapping[str, Any]) -> Iterator[tuple[Resource, str, str]]:
    source, engine = spec.get("model") or {}, spec.get("engine") or {}
    if secret := ((source.get("credentials") or {}).get("secretRef") or {}).get("name"):
        yield SECRETS, str(secret), ""
    if claim := (source.get("cache") or {}).get("claimName"):
        yield VOLUME_CLAIMS, str(claim), ""
    if (uri := str(source.get("uri") or "")).startswith("pvc:"):
        yield VOLUME_CLAIMS, uri.removeprefix("pvc:").lstrip("/").partition("/")[0], ""
    pod_specs = [{"containers": [engine], "imagePullSecrets": engine.get("imagePullSecrets")}]
    pod_specs += [(pool.get("template") or {}).get("spec") or {} for pool in spec.get("pools") or []]
    for pod_spec in pod_specs:
        yield from _pod_references(pod_spec)


def _pod_references(pod_spec: Mapping[str, Any]) -> Iterator[tuple[Resource, str, str]]:
    for secret in pod_spec.get("imagePullSecrets") or []:
        yield SECRETS, str(secret.get("name")), ""
    for container in containers_of(pod_spec):
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef") or {}
            if reference.get("name") and not reference.get("optional"):
                yield SECRETS, str(reference["name"]), str(reference.get("key") or "")
    for volume in pod_spec.get("volumes") or []:
        for secret in mounted_secrets(volume):
            if not secret.is_optional:
                yield SECRETS, secret.name, ""
        claim = volume.get("persistentVolumeClaim") or {}
        if claim.get("claimName"):
            yield VOLUME_CLAIMS, str(claim["claimName"]), ""
