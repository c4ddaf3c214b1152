"""Objects of a cluster, and the fleet that they give."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fairlead.fleet.kubernetes.builder import ClusterObjects, FleetResult, build_fleet
from fairlead.fleet.kubernetes.spec_cache import SpecCache
from fairlead.fleet.model import Fleet
from fairlead.kube.resources import MODEL_DEPLOYMENTS, PODS, Manifest
from fairlead.limits import Limits

LIMITS = Limits()
READY = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
NOT_READY = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "False"}]}
GONE = {"deletionTimestamp": "2026-11-20T18:00:00Z"}
LABELS = {
    "fairlead.io/model": "tiny",
    "fairlead.io/pool": "main",
    "fairlead.io/role": "Serve",
    "fairlead.io/engine": "vllm",
    "fairlead.io/endpoint": "true",
}
LWS = "leaderworkerset.sigs.k8s.io/"


def model(name: str = "tiny", namespace: str = "x", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Manifest:
    """Returns a ModelDeployment with one pool. `spec` replaces fields."""
    whole = {"model": {"uri": "hf://a/b"}, "pools": [{"acceleratorClassName": "cpu"}], **spec}
    metadata = {"name": name, "namespace": namespace, "uid": f"m-{namespace}-{name}", "creationTimestamp": created}
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": "ModelDeployment",
        "metadata": metadata,
        "spec": whole,
    }


def external(*pools: Mapping[str, Any], **more: Any) -> Manifest:
    """Returns a ModelDeployment of external engines."""
    return model(engine={"type": "External"}, pools=list(pools), **more)


def pod(
    name: str = "p",
    labels: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] = READY,
    namespace: str = "x",
    **metadata: Any,
) -> Manifest:
    """Returns a pod of the model `tiny`. `metadata` replaces fields."""
    marks = {"fairlead.io/port": "8000", **{key: str(value) for key, value in (notes or {}).items()}}
    own = {"name": name, "namespace": namespace, "uid": f"u-{name}", "annotations": marks, **metadata}
    return {
        "apiVersion": "v1",
        "kind": PODS.kind,
        "metadata": {"labels": {**LABELS, **(labels or {})}, **own},
        "status": status,
    }


def keyed(*items: Manifest) -> dict[str, Manifest]:
    """Returns the manifests by `namespace/name`."""
    return {f"{one['metadata']['namespace']}/{one['metadata']['name']}": one for one in items}


def build(
    models: list[Manifest],
    *pods: Manifest,
    previous: Fleet | None = None,
    classes: list[Manifest] | None = None,
    limits: Limits = LIMITS,
    **objects: Any,
) -> FleetResult:
    """Returns the fleet of these manifests. `objects` are further fields of `ClusterObjects`."""
    specs = SpecCache()
    accelerators, broken = specs.accelerators(classes or [])
    known = ClusterObjects(
        specs.models(keyed(*models)),
        accelerators,
        keyed(*pods),
        **{"endpoint_namespaces": {"x", "a", "b"}, **objects},
    )
    found = build_fleet(known, previous, limits)
    return replace(found, problems=(*broken, *found.problems))


def named(name: str, *served: str, namespace: str = "x", born: str = "1") -> Manifest:
    """Returns a ModelDeployment with served names."""
    return model(name=name, namespace=namespace, created=born, model={"uri": "hf://a/b", "servedNames": list(served)})
