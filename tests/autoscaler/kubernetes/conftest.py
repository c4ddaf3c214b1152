"""Objects as the API server has them."""

from collections.abc import Callable
from typing import Any

import pytest

Manifest = dict[str, Any]


def manifest(kind: str, name: str, spec: Manifest, **metadata: Any) -> Manifest:
    versions = {"Deployment": "apps/v1", "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1", "Pod": "v1"}
    names = {"name": name, "namespace": "chat", **metadata}
    return {"apiVersion": versions[kind], "kind": kind, "metadata": names, "spec": spec}


@pytest.fixture
def a_workload() -> Callable[..., Manifest]:
    def made(replicas: int = 2, *writers: str, kind: str = "Deployment", pool: str = "main", **notes: str) -> Manifest:
        fields = {"f:spec": {"f:replicas": {}}}
        return manifest(
            kind,
            f"qwen-{pool}",
            {"replicas": replicas},
            labels={
                "fairlead.io/model": "qwen",
                "fairlead.io/pool": pool,
                "app.kubernetes.io/managed-by": "fairlead",
            },
            annotations={f"fairlead.io/{name}": value for name, value in notes.items()},
            resourceVersion="7",
            ownerReferences=[{"uid": "u", "controller": True}],
            managedFields=[{"manager": writer, "fieldsV1": fields} for writer in writers or ("fairlead",)],
        )

    return made


@pytest.fixture
def a_pod() -> Callable[..., Manifest]:
    def made(name: str, *, ready: bool = True, going: bool = False, pool: str = "main", **more: Any) -> Manifest:
        labels = {"fairlead.io/model": "qwen", "fairlead.io/pool": pool, "fairlead.io/endpoint": "true"}
        annotations = more.pop("annotations", {"fairlead.io/port": "8000"})
        pod = manifest(
            "Pod",
            name,
            {},
            uid=f"uid-{name}",
            labels=labels | more.pop("labels", {}),
            annotations=annotations,
            creationTimestamp="2026-11-21T08:00:00Z",
            **({"deletionTimestamp": "2026-11-21T08:05:00Z"} if going else {}),
        )
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-11-21T08:00:40Z"}
        return {**pod, "status": {"phase": "Running", "conditions": [condition], **more}}

    return made
