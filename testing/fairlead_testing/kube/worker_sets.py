"""The kind LeaderWorkerSet for API servers of tests, and its objects."""

from typing import Any

from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest
from fairlead_testing.kube.api_server import binaries_folder
from fairlead_testing.yaml_documents import load_document

_PLAIN_CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "leaderworkersets.leaderworkerset.x-k8s.io"},
    "spec": {
        "group": "leaderworkerset.x-k8s.io",
        "names": {"kind": "LeaderWorkerSet", "plural": "leaderworkersets", "singular": "leaderworkerset"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
_CHART: str = "lws-*/lws-chart/crds/*.yaml"
"""The chart of LeaderWorkerSet, which a build of level *full* keeps in the cache."""


def worker_set_crd() -> Manifest:
    """Returns the CRD of the pinned release of LeaderWorkerSet, without its descriptions.

    Where that was not built, the CRD accepts any fields.
    """
    folder = binaries_folder()
    found = [] if folder is None else sorted(folder.parent.glob(_CHART))
    return _without_descriptions(load_document(found[-1].read_text())) if found else _PLAIN_CRD


def _without_descriptions(value: Any) -> Any:
    """Returns a schema whose texts are left out, since a request has at most 3 MiB."""
    if isinstance(value, list):
        return [_without_descriptions(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_descriptions(one)
        for key, one in value.items()
        if not (key == "description" and isinstance(one, str))
    }


def worker_set(metadata: Manifest, pod: Manifest, leader: Manifest | None = None) -> Manifest:
    """Returns a LeaderWorkerSet of two groups of two pods.

    pod: template of the workers, and of the leaders where `leader` is None.
    """
    template = {"size": 2, "workerTemplate": pod} | ({} if leader is None else {"leaderTemplate": leader})
    spec = {"replicas": 2, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template}
    kind = LEADER_WORKER_SETS
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}
