"""The controller of LeaderWorkerSets, in groups of which an engine spans several nodes. It makes
its webhook's certificate itself."""

from e2e.cluster.artifacts import image_set, pinned_versions
from e2e.cluster.running_cluster import RunningCluster
from scripts.release.images.components import USER

READY_SECONDS = 180


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
