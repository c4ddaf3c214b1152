"""Checks of the Secrets that endpoints of models name: gateways must have them as files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster.checks.analyzers.models import for_models
from fairlead_cli.cluster.checks.verdict import Verdict, unknown, verdict_of
from fairlead_cli.cluster.components import GATEWAY, watched_namespaces
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import arguments_of, containers_of, namespace_name, pod_spec_of, spec_of

_FIELDS = ("tokenSecretKeyRef", "caSecretKeyRef")


@dataclass(frozen=True, slots=True)
class EndpointSecret:
    """A key of a Secret that an endpoint names. ``model``: ``namespace/name``."""

    model: str
    namespace: str
    name: str
    key: str


@for_models
def check_endpoint_secrets(facts: ClusterFacts, models: Sequence[Manifest]) -> Verdict | None:
    """Fails for Secrets of endpoints that a gateway does not mount, or that lack what is named.

    Returns None when no model names any.
    """
    wanted = list(dict.fromkeys(secret for model in models for secret in _endpoint_secrets(model)))
    if not wanted:
        return None
    deployments = facts.component_deployments(GATEWAY)
    if isinstance(deployments, MissingValue):
        return unknown(deployments)
    findings: list[str] = []
    doubts: list[str] = []
    for gateway in deployments:
        if not any(argument.startswith("--kube") for argument in arguments_of(gateway)):
            continue  # it serves the models of its fleet file alone
        watched, mounted = watched_namespaces(gateway), _mounted_secrets(gateway)
        for secret in wanted:
            if watched and secret.namespace not in watched:
                continue
            name = mounted.get(f"{ENDPOINT_SECRETS_FOLDER}/{secret.namespace}/{secret.name}")
            if name is None:
                place = f"the Secret {secret.name} for models of the namespace {secret.namespace}"
                findings.append(f"{secret.model}: {key_of(gateway)} does not mount {place}")
                continue
            problem = _problem(facts, namespace_name(gateway), name, secret.key)
            if isinstance(problem, MissingValue):
                doubts.append(problem.reason)
            elif problem:
                findings.append(f"{secret.model}: {problem}")
    return verdict_of(findings, doubts)


def _endpoint_secrets(model: Manifest) -> Iterator[EndpointSecret]:
    for pool in spec_of(model).get("pools") or []:
        for endpoint in pool.get("endpoints") or []:
            for reference in (endpoint.get(field) or {} for field in _FIELDS):
                if reference.get("name"):
                    name, key = str(reference["name"]), str(reference.get("key") or "")
                    yield EndpointSecret(key_of(model), namespace_name(model), name, key)


def _mounted_secrets(gateway: Manifest) -> Mapping[str, str]:
    """Returns the Secrets that a gateway mounts, by folder."""
    pods = pod_spec_of(gateway)
    volumes = {
        volume.get("name"): str((volume.get("secret") or {}).get("secretName") or "")
        for volume in pods.get("volumes") or []
    }
    return {
        str(mount.get("mountPath")): volumes[mount.get("name")]
        for container in containers_of(pods)
        for mount in container.get("volumeMounts") or []
        if volumes.get(mount.get("name"))
    }


def _problem(facts: ClusterFacts, namespace: str, name: str, key: str) -> str | MissingValue:
    """Returns what a mounted Secret lacks; empty for nothing."""
    secret = facts.secrets.get((namespace, name), MissingValue(f"the Secret {namespace}/{name} was not read"))
    if isinstance(secret, MissingValue):
        return f"there is no Secret {namespace}/{name}" if secret.is_absent else secret
    return "" if key in secret.entries else f"the Secret {namespace}/{name} has no entry {key}"
