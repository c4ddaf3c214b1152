"""The same cluster where there is docker: kind's node instead of ours, with the same images and
LeaderWorkerSet on it. It is made here, or is the user's own."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import addons
from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import ClusterError, RunningCluster, progress_step
from scripts.release.images.layers import OciImage, write_archive

NAME = "fairlead-e2e"
CONFIG = pinned_versions.ROOT / "e2e" / "kind.yaml"


def check() -> None:
    """Raises ClusterError where there is no kind."""
    if shutil.which("kind") is None:
        raise ClusterError(
            "level kind needs the kind command and docker; without them, level full does the same on Linux"
        )


def start(cluster: RunningCluster, given: Sequence[OciImage]) -> None:
    """A cluster of kind's that has these images. kind and docker are the user's own."""
    if shutil.which("kind") is None:
        raise ClusterError(
            "level kind needs the kind command and docker; without them, level full does the same on Linux"
        )
    with progress_step("kind create cluster"):
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
    """Give its node these images."""
    archive = run / "images.tar"
    write_archive(archive, given)
    _kind("load", "image-archive", str(archive), "--name", name)
    archive.unlink()


def stop() -> None:
    _kind("delete", "cluster", "--name", NAME)


def _kind(*words: str) -> None:
    done = subprocess.run(["kind", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kind {' '.join(words[:2])} failed:\n{done.stderr[-2_000:]}")
