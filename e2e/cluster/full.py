"""Level *full*, in order: bridge, container runtime, control plane, node, DNS, LeaderWorkerSet. And the way back."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import control_plane, leader_worker_set, metrics, network
from cluster.control_plane import ControlPlane
from cluster.network import GATEWAY
from cluster.node import Node, dns_manifests
from cluster.oci import Image, write_archive
from cluster.record import Record
from cluster.running import Cluster
from cluster.say import step

PORT = 6443
READY_SECONDS = 120.0


def start(record: Record, cluster: Cluster, given: Sequence[Image]) -> None:
    """Everything, until pods of the images ``given`` run and the controllers are available."""
    node = Node(record, cluster.binaries)
    plane = ControlPlane(record, cluster.binaries, GATEWAY, PORT, whole=True)
    record.keep(before=network.snapshot())
    with step("bridge, container runtime"):
        network.make_bridge()  # before the API server, which listens on its address
        node.start_runtime()
    with ThreadPoolExecutor(1) as beside:
        loaded = beside.submit(load, node, given)
        plane.start()
        with step("images, beside the above"):
            loaded.result()
    with step("node ready"):
        node.start()
        cluster.apply(*dns_manifests())
        record.wait("the node", READY_SECONDS, lambda: _node_ready(plane))
    with step("service accounts, DNS"):
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        record.wait("the first service account", READY_SECONDS, lambda: plane.ask(account) is not None)
        record.wait("DNS", READY_SECONDS, node.dns_ready)
    with step("LeaderWorkerSet"):
        leader_worker_set.install(cluster)


def load(node: Node, given: Sequence[Image]) -> None:
    """Give the node these images."""
    archive = node.run / "images.tar"
    write_archive(archive, given)
    node.load(archive)
    archive.unlink()


def stop(record: Record) -> None:
    """Back to what the machine was. Every step stands alone, so that half a cluster goes as well as a whole one."""
    node = Node(record, Path(record.told("binaries")))
    with step("kubelet, kube-proxy, DNS stopped"):
        for name in (metrics.NAME, "kubelet", "kube-proxy", "coredns"):
            record.stop(name)
    with step("containers removed"):
        node.remove_containers()
        record.stop("containerd")
    with step("control plane stopped"):  # after the pods: their watches would hold the API server back
        control_plane.stop(record)
    if before := record.told("before"):
        with step("mounts, bridge, packet filter, kernel settings"):
            network.restore(before, record.run)


def measure(record: Record, cluster: Cluster) -> None:
    """Add metrics-server to a cluster that is up."""
    if not record.alive(metrics.NAME):
        with step("metrics-server"):
            metrics.start(record, cluster, ControlPlane(record, cluster.binaries, GATEWAY, PORT, whole=True))


def _node_ready(plane: ControlPlane) -> bool:
    told = plane.ask("/api/v1/nodes/local")
    conditions = json.loads(told)["status"].get("conditions", []) if told else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
