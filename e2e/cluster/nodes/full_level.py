"""Level *full*, in order: bridge, container runtime, control plane, node, DNS, LeaderWorkerSet. And
the way back."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import addons
from e2e.cluster.nodes import control_plane, network
from e2e.cluster.nodes.control_plane import ControlPlane
from e2e.cluster.nodes.network import GATEWAY
from e2e.cluster.nodes.node import ClusterNode, dns_manifests
from e2e.cluster.run_record import RunningCluster, RunRecord, progress_step
from scripts.release.images.layers import OciImage, write_archive

PORT = 6443
READY_SECONDS = 120.0


def start(record: RunRecord, cluster: RunningCluster, given: Sequence[OciImage]) -> None:
    """Everything, until pods of the images ``given`` run and the controllers are available."""
    node = ClusterNode(record, cluster.binaries)
    plane = ControlPlane(record, cluster.binaries, GATEWAY, PORT, whole=True)
    record.update(before=network.snapshot())
    with progress_step("bridge, container runtime"):
        network.make_bridge()  # before the API server, which listens on its address
        node.start_runtime()
    with ThreadPoolExecutor(1) as beside:
        loaded = beside.submit(load_images, node, given)
        plane.start()
        with progress_step("images, at the same time"):
            loaded.result()
    with progress_step("node ready"):
        node.start()
        cluster.apply(*dns_manifests())
        record.wait("the node", READY_SECONDS, lambda: _node_ready(plane))
    with progress_step("service accounts, DNS"):
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        record.wait("the first service account", READY_SECONDS, lambda: plane.get_text(account) is not None)
        record.wait("DNS", READY_SECONDS, node.is_dns_ready)
    with progress_step("LeaderWorkerSet"):
        addons.install(cluster)


def load_images(node: ClusterNode, given: Sequence[OciImage]) -> None:
    """Give the node these images."""
    archive = node.run / "images.tar"
    write_archive(archive, given)
    node.load(archive)
    archive.unlink()


def stop(record: RunRecord) -> None:
    """Back to what the machine was. Every step stands alone, so that half a cluster goes as well as
    a whole one."""
    node = ClusterNode(record, Path(record.get("binaries")))
    with progress_step("kubelet, kube-proxy, DNS stopped"):
        for name in (addons.NAME, "kubelet", "kube-proxy", "coredns"):
            record.stop(name)
    with progress_step("containers removed"):
        node.remove_containers()
        record.stop("containerd")
    with progress_step("control plane stopped"):  # after the pods: their watches would hold the API server back
        control_plane.stop(record)
    if before := record.get("before"):
        with progress_step("mounts, bridge, packet filter, kernel settings"):
            network.restore(before, record.run)


def memory_usage(record: RunRecord, cluster: RunningCluster) -> None:
    """Add metrics-server to a cluster that is up."""
    if not record.is_alive(addons.NAME):
        with progress_step("metrics-server"):
            addons.start(record, cluster, ControlPlane(record, cluster.binaries, GATEWAY, PORT, whole=True))


def _node_ready(plane: ControlPlane) -> bool:
    told = plane.get_text("/api/v1/nodes/local")
    conditions = json.loads(told)["status"].get("conditions", []) if told else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
