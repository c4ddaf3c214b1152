"""The controller of LeaderWorkerSets, in groups of which an engine spans several nodes. It makes its webhook's certificate itself."""

from cluster import images, pins
from cluster.running import Cluster

READY_SECONDS = 180


def install(cluster: Cluster) -> None:
    """Its own chart, with the image that was loaded. It asks for a whole processor and no particular user otherwise."""
    repository, _, tag = images.LWS.rpartition(":")
    values = {
        "image.manager.repository": repository,
        "image.manager.tag": tag,
        "image.manager.pullPolicy": "Never",
        "podSecurityContext.runAsUser": images.USER.partition(":")[0],
        "resources.requests.cpu": "50m",
        "resources.requests.memory": "64Mi",
    }
    given = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    chart = str(pins.binaries("lws") / pins.LWS_CHART)
    place = ("-n", "lws-system", "--create-namespace", "--wait", "--timeout", f"{READY_SECONDS}s")
    cluster.command("helm", "install", "lws", chart, *place, *given)
