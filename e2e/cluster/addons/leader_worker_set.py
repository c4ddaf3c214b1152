"""The controller of LeaderWorkerSets, in groups of which an engine spans several nodes. It makes
its webhook's certificate itself."""

import json
import time

from e2e.cluster.artifacts import image_set, pinned_versions
from e2e.cluster.progress import ClusterError
from e2e.cluster.running_cluster import RunningCluster
from scripts.release.images.components import USER

READY_SECONDS = 180
_CRD = "leaderworkersets.leaderworkerset.x-k8s.io"
_PROBE = {
    "apiVersion": "leaderworkerset.x-k8s.io/v1",
    "kind": "LeaderWorkerSet",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {
        "leaderWorkerTemplate": {"workerTemplate": {"spec": {"containers": [{"name": "probe", "image": "probe"}]}}}
    },
}


def is_installed(cluster: RunningCluster) -> bool:
    """Whether the cluster knows LeaderWorkerSets."""
    kinds = cluster.output("kubectl", "get", "crds", "--output=name")
    return f"customresourcedefinition.apiextensions.k8s.io/{_CRD}" in kinds.split()


def install(cluster: RunningCluster) -> None:
    """Its own chart, with the image that was loaded. It asks for a whole processor and no
    particular user otherwise."""
    repository, _, tag = image_set.LWS.rpartition(":")
    values = {
        "image.manager.repository": repository,
        "image.manager.tag": tag,
        "image.manager.pullPolicy": "Never",
        "podSecurityContext.runAsUser": USER.partition(":")[0],
        "resources.requests.cpu": "50m",
        "resources.requests.memory": "64Mi",
    }
    given = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    chart = str(pinned_versions.binaries("lws") / pinned_versions.LWS_CHART)
    place = ("-n", "lws-system", "--create-namespace", "--wait", "--timeout", f"{READY_SECONDS}s")
    cluster.command("helm", "install", "lws", chart, *place, *given)
    _wait_for_webhook(cluster)


def _wait_for_webhook(cluster: RunningCluster) -> None:
    """Waits until the API server reaches the webhook, which listens after its pod is ready."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            cluster.command("kubectl", "create", "--dry-run=server", "-f", "-", given=json.dumps(_PROBE))
            return
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
