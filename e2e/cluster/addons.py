"""The controller of LeaderWorkerSets, in groups of which an engine spans several nodes. It makes
its webhook's certificate itself.

metrics-server, on request, for ``kubectl top`` and HorizontalPodAutoscalers: a process here
behind an aggregated API.

A registry on this machine, from which the nodes of test clusters pull: Distribution's, with its
data in a folder.

It listens on loopback, where containerd, helm and Fairlead's own client do without TLS.
"""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.artifacts import image_set, pinned_versions
from e2e.cluster.artifacts.go_builds import compile_missing, path_of
from e2e.cluster.nodes.control_plane import LOOPBACK, ControlPlane
from e2e.cluster.nodes.network import GATEWAY
from e2e.cluster.run_record import ClusterError, RunningCluster, RunRecord
from fairlead_testing.processes import unused_port
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

NAME = "metrics-server"
_PORT = 4443
_READY_SECONDS = 120.0

OCI_REGISTRY_READY_SECONDS = 30.0


def is_installed(cluster: RunningCluster) -> bool:
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
    # It listens after its pod is ready.
    words = ("kubectl", "create", "--dry-run=server", "-f", "-")
    cluster.command_eventually(*words, seconds=READY_SECONDS, given=json.dumps(_PROBE))


def start(record: RunRecord, cluster: RunningCluster, plane: ControlPlane) -> None:
    """Until it has measured the node once."""
    flags = {
        "kubeconfig": cluster.kubeconfig,
        "authentication-kubeconfig": cluster.kubeconfig,
        "authorization-kubeconfig": cluster.kubeconfig,
        "kubelet-insecure-tls": "true",  # kubelet signs its certificate itself
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-use-node-status-port": "true",  # nodes share the machine's address, not the port
        "metric-resolution": "10s",
        "kubelet-request-timeout": "5s",  # must be below the resolution
        "bind-address": GATEWAY,
        "secure-port": _PORT,
        "cert-dir": record.run / NAME,
    }
    record.start(NAME, [cluster.binaries / NAME, *(f"--{name}={value}" for name, value in flags.items())])
    cluster.apply(*_manifests())
    measured = "/apis/metrics.k8s.io/v1beta1/nodes/local"
    record.wait("metrics of the node", _READY_SECONDS, lambda: plane.get_text(measured) is not None)


def _manifests() -> list[dict[str, Any]]:
    labels = {"kubernetes.io/service-name": NAME}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "spec": {"ports": [{"name": "https", "port": 443}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{NAME}-host", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": _PORT}],
    }
    api = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "service": {"name": NAME, "namespace": "kube-system"},
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
    return [service, endpoints, api]


@contextmanager
def oci_registry(folder: Path) -> Iterator[str]:
    """Runs a registry during the block; yields its host and port.

    folder: for its data, configuration and log.
    """
    compile_missing([pinned_versions.REGISTRY_PROGRAM])
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{LOOPBACK}:{unused_port()}"
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    command = [str(path_of(pinned_versions.REGISTRY_PROGRAM)), "serve", str(folder / "config.yml")]
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(process, address, folder / "registry.log")
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + OCI_REGISTRY_READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ClusterError(f"the registry does not answer:\n{log.read_text(errors='replace')[-2_000:]}")
