"""The same cluster where there is docker: kind's node instead of ours, with the same images and LeaderWorkerSet on it."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster import leader_worker_set, pins
from cluster.oci import Image, write_archive
from cluster.running import Cluster
from cluster.say import ClusterError, step

NAME = "fairlead-e2e"
CONFIG = pins.ROOT / "e2e" / "kind.yaml"


def check() -> None:
    """Raises ClusterError where there is no kind."""
    if shutil.which("kind") is None:
        raise ClusterError(
            "level kind needs the kind command and docker; without them, level full does the same on Linux"
        )


def start(cluster: Cluster, given: Sequence[Image]) -> None:
    """A cluster of kind's that has these images. kind and docker are the user's own."""
    if shutil.which("kind") is None:
        raise ClusterError(
            "level kind needs the kind command and docker; without them, level full does the same on Linux"
        )
    with step("kind create cluster"):
        _kind(
            "create",
            "cluster",
            "--name",
            NAME,
            "--config",
            str(CONFIG),
            "--kubeconfig",
            str(cluster.kubeconfig),
            "--wait",
            "180s",
        )
    with step("images"):
        load(cluster.run, given)
    with step("LeaderWorkerSet"):
        leader_worker_set.install(cluster)


def load(run: Path, given: Sequence[Image]) -> None:
    """Give its node these images."""
    archive = run / "images.tar"
    write_archive(archive, given)
    _kind("load", "image-archive", str(archive), "--name", NAME)
    archive.unlink()


def stop() -> None:
    """Remove it."""
    _kind("delete", "cluster", "--name", NAME)


def _kind(*words: str) -> None:
    done = subprocess.run(["kind", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kind {' '.join(words[:2])} failed:\n{done.stderr[-2_000:]}")
