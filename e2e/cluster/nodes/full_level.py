"""Level *full*, in order: bridge, container runtime, control plane, node, DNS, LeaderWorkerSet. And
the way back. On request, metrics-server and a second node."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import addons
from e2e.cluster.nodes import control_plane, network
from e2e.cluster.nodes.control_plane import ControlPlane
from e2e.cluster.nodes.network import GATEWAY
from e2e.cluster.nodes.node import NODES, ClusterNode, dns_manifests
from e2e.cluster.run_record import RunningCluster, RunRecord, progress_step
from scripts.release.images.layers import OciImage, write_archive

PORT = 6443
READY_SECONDS = 120.0


def start(record: RunRecord, cluster: RunningCluster, given: Sequence[OciImage]) -> None:
    """Everything, until pods of the images ``given`` run and the controllers are available."""
    node = ClusterNode(record, cluster.binaries)
    plane = _control_plane(record, cluster)
    record.update(before=network.snapshot())
    with progress_step("bridge, container runtime"):
        network.make_bridge()  # before the API server, which listens on its address
        node.start_runtime()
    with ThreadPoolExecutor(1) as beside:
        loaded = beside.submit(load_images, record, given)
        plane.start()
        with progress_step("images, at the same time"):
            loaded.result()
    with progress_step("node ready"):
        node.start()
        node.start_network()
        cluster.apply(*dns_manifests())
        record.wait("the node", READY_SECONDS, lambda: _is_ready(plane, node))
    with progress_step("service accounts, DNS"):
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        record.wait("the first service account", READY_SECONDS, lambda: plane.get_text(account) is not None)
        record.wait("DNS", READY_SECONDS, node.is_dns_ready)
    with progress_step("LeaderWorkerSet"):
        addons.install(cluster)


def load_images(record: RunRecord, given: Sequence[OciImage]) -> None:
    """Give all nodes these images."""
    archive = record.run / "images.tar"
    write_archive(archive, given)
    for node in _nodes(record):
        if record.is_alive(node.process("containerd")):
            node.load(archive)
    archive.unlink()


def stop(record: RunRecord) -> None:
    """Back to what the machine was. Every step stands alone, so that half a cluster goes as well as
    a whole one."""
    first, second = _nodes(record)
    with progress_step("kube-proxy, DNS, kubelet, containers stopped"):
        for name in (addons.NAME, "kube-proxy", "coredns"):
            record.stop(name)
        second.remove()
        first.stop()
    with progress_step("control plane stopped"):  # after the pods: their watches would hold the API server back
        control_plane.stop(record)
    if before := record.get("before"):
        with progress_step("mounts, bridge, packet filter, kernel settings"):
            network.restore(before, record.run)


def memory_usage(record: RunRecord, cluster: RunningCluster) -> None:
    """Add metrics-server to a cluster that is up."""
    if not record.is_alive(addons.NAME):
        with progress_step("metrics-server"):
            addons.start(record, cluster, _control_plane(record, cluster))


def add_node(record: RunRecord, cluster: RunningCluster) -> None:
    """Adds the second node to a cluster that is up, with the images of the first."""
    first, second = _nodes(record)
    if second.is_alive():
        return
    plane = _control_plane(record, cluster)
    remove_node(record, cluster)
    with progress_step("container runtime of the second node"):
        second.start_runtime()
    with progress_step("its images"):
        archive = second.folder / "images.tar"
        first.save(archive)
        second.load(archive)
        archive.unlink()
    with progress_step("second node ready"):
        client = f"node-{second.name}"
        plane.pki.issue_client(client, "system:nodes", f"system:node:{second.name}")
        plane.pki.kubeconfig(client, plane.url, second.kubeconfig)
        second.start()
        record.wait("the second node", READY_SECONDS, lambda: _is_ready(plane, second))


def remove_node(record: RunRecord, cluster: RunningCluster) -> None:
    """Removes the second node, also half of it."""
    _, second = _nodes(record)
    second.remove()
    cluster.command("kubectl", "delete", "node", second.name, "--ignore-not-found")


def _nodes(record: RunRecord) -> list[ClusterNode]:
    return [ClusterNode(record, Path(record.get("binaries")), number) for number in range(len(NODES))]


def _control_plane(record: RunRecord, cluster: RunningCluster) -> ControlPlane:
    return ControlPlane(record, cluster.binaries, GATEWAY, PORT, whole=True)


def _is_ready(plane: ControlPlane, node: ClusterNode) -> bool:
    told = plane.get_text(f"/api/v1/nodes/{node.name}")
    conditions = json.loads(told)["status"].get("conditions", []) if told else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
