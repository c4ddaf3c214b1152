"""Builders of manifests, so that a test states only the fields that matter to it."""

from collections.abc import Mapping
from typing import Any

from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest, Resource


def manifest(
    resource: Resource,
    name: str,
    namespace: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Manifest:
    """Returns an object of a kind.

    metadata: more of it than the name and the namespace.
    fields: the other fields, such as `spec`.
    """
    place = {} if namespace is None else {"namespace": namespace}
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    return head | {"metadata": {"name": name} | place | dict(metadata or {})} | fields


def simulated_model(name: str, namespace: str, **spec: Any) -> Manifest:
    """Returns a ModelDeployment with one pool of one simulated engine. `spec` replaces fields."""
    pools = [{"name": "main", "acceleratorClassName": "cpu"}]
    whole = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "engine": {"type": "Sim"}, "pools": pools} | spec
    return manifest(MODEL_DEPLOYMENTS, name, namespace, spec=whole)


def engines_of(name: str, namespace: str) -> Manifest:
    """Returns a Deployment such as the operator creates for a pool, managed by Fairlead."""
    pods = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "engine", "image": "example.com/sim:1"}]},
    }
    labels = {"labels": {"app.kubernetes.io/managed-by": "fairlead"}}
    return manifest(
        DEPLOYMENTS, name, namespace, labels, spec={"selector": {"matchLabels": {"a": "b"}}, "template": pods}
    )
