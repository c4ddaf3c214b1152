"""The same cluster by kind: three nodes in containers, with the same images and LeaderWorkerSet on
them. It is made here, or is the user's own.

With docker, kind's own node image and network are taken. Without, podman runs an image of ours, and
the network is ours too.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import addons
from e2e.cluster.artifacts import node_image, pinned_versions
from e2e.cluster.artifacts.go_builds import path_of
from e2e.cluster.nodes import kind_network
from e2e.cluster.nodes.container_engine import NETWORK, ContainerEngine, find_engine
from e2e.cluster.nodes.node import SECOND_TAINT
from e2e.cluster.run_record import ClusterError, RunningCluster, progress_step
from scripts.release.images.layers import OciImage, write_archive

NAME = "fairlead-e2e"
CONTROL_PLANE = f"{NAME}-control-plane"
WORKERS = (f"{NAME}-worker", f"{NAME}-worker2")
CONFIG = pinned_versions.ROOT / "e2e" / "kind.yaml"
_CGROUPS = Path("/sys/fs/cgroup/cgroup.controllers")
"""A file that only control groups of version 2 have."""


def prepare() -> None:
    """Makes the node image where docker does not bring one."""
    engine = find_engine()
    if engine.makes_images:
        node_image.build(engine.environ())


def start(cluster: RunningCluster, given: Sequence[OciImage]) -> None:
    """A cluster of kind's that has these images."""
    engine = find_engine()
    config = cluster.run / "kind.yaml"
    config.write_text(yaml.safe_dump(cluster_config(engine, has_new_cgroups=_CGROUPS.exists())))
    words = ["--name", NAME, "--config", str(config), "--kubeconfig", str(cluster.kubeconfig)]
    if engine.makes_images:
        words += ["--image", node_image.build(engine.environ())]
    else:
        words += ["--wait", "180s"]
    with progress_step("kind create cluster"):
        _kind(engine, "create", "cluster", *words)
    if engine.makes_images:
        with progress_step("network, until all nodes are Ready"):
            kind_network.install(cluster, engine)
    with progress_step("images"):
        load_images(cluster.run, given)
    with progress_step("LeaderWorkerSet"):
        addons.install(cluster)


def equip(cluster: RunningCluster, name: str, given: Sequence[OciImage]) -> None:
    """Gives a user's cluster of kind's these images, and LeaderWorkerSet if it has none."""
    with progress_step(f"images of kind's cluster {name}"):
        load_images(cluster.run, given, name)
    if not addons.is_installed(cluster):
        with progress_step("LeaderWorkerSet"):
            addons.install(cluster)


def load_images(run: Path, given: Sequence[OciImage], name: str = NAME) -> None:
    """Give its nodes these images."""
    archive = run / "images.tar"
    write_archive(archive, given)
    _kind(find_engine(), "load", "image-archive", str(archive), "--name", name)
    archive.unlink()


def stop_node(node: str) -> None:
    find_engine().run("stop", "--time", "0", node)


def start_node(cluster: RunningCluster, node: str) -> None:
    """Switches it on again, and the other nodes' routes to it."""
    engine = find_engine()
    engine.run("start", node)
    words = ("kubectl", "wait", "--for=condition=Ready", f"node/{node}", "--timeout=5s")
    # The API server is not there at first, where the node is its own.
    cluster.command_eventually(*words, seconds=kind_network.READY_SECONDS)
    if engine.makes_images:
        kind_network.connect(cluster, engine)


@contextmanager
def reserved_node(cluster: RunningCluster) -> Iterator[str]:
    """A worker to which meanwhile no pod comes that does not tolerate the taint of second nodes.
    It takes pods again afterwards, also where it was drained."""
    node = WORKERS[1]
    cluster.command("kubectl", "taint", "node", node, f"{SECOND_TAINT}=:NoSchedule")
    try:
        yield node
    finally:
        cluster.command("kubectl", "taint", "node", node, f"{SECOND_TAINT}-")
        cluster.command("kubectl", "uncordon", node)


def stop() -> None:
    engine = find_engine()
    if nodes := engine.run("ps", "--quiet", "--filter", f"label=io.x-k8s.kind.cluster={NAME}").split():
        engine.run("stop", "--time", "0", *nodes)  # kind would wait for each
    _kind(engine, "delete", "cluster", "--name", NAME)
    if engine.makes_images and not engine.run("ps", "--all", "--quiet", "--filter", f"network={NETWORK}").strip():
        engine.run("network", "rm", "--force", NETWORK)


def cluster_config(engine: ContainerEngine, *, has_new_cgroups: bool) -> dict[str, Any]:
    """Returns kind's configuration of a cluster.

    has_new_cgroups: whether the machine has control groups of version 2.
    """
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    if engine.makes_images:
        config["networking"] = {"disableDefaultCNI": True, "kubeProxyMode": "nftables"}
    if not has_new_cgroups:
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
        }
        config["kubeadmConfigPatches"] = [yaml.safe_dump(kubelet)]
    return config


def _kind(engine: ContainerEngine, *words: str) -> None:
    program = str(path_of(pinned_versions.KIND_PROGRAM))
    done = subprocess.run([program, *words], env=engine.environ(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kind {' '.join(words[:2])} failed:\n{done.stderr[-2_000:]}")
