"""The Prometheus server of the dashboards' test: Debian's, unpacked into the cache, not installed.

Why Debian's: the modules of Prometheus' own release lack the server's user interface, without which
it does not compile.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.progress import ClusterError, progress_step
from scripts.release.images.layers import build_lock

_PACKAGE = "prometheus"


def prometheus_program() -> Path:
    """Returns the path of the server, which is downloaded the first time.

    Raises ClusterError when it cannot be.
    """
    folder = pinned_versions.cache_folder() / "prometheus-server"
    program = folder / "prometheus"
    with build_lock("cluster-prometheus-server"):
        if not program.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with progress_step("Prometheus from Debian"), tempfile.TemporaryDirectory(dir=folder) as work:
                _download(Path(work), program)
    return program


def _download(work: Path, program: Path) -> None:
    work.chmod(0o755)  # apt downloads as a user of its own
    if _run(work, "apt-get", "-qq", "download", _PACKAGE).returncode:
        _run(work, "apt-get", "-qq", "update")
        done = _run(work, "apt-get", "-qq", "download", _PACKAGE)
        if done.returncode:
            raise ClusterError(f"Debian's package {_PACKAGE} cannot be downloaded:\n{done.stderr[-2_000:]}")
    archive = next(work.glob("*.deb"))
    unpacked = _run(work, "dpkg-deb", "-x", archive.name, "unpacked")
    if unpacked.returncode:
        raise ClusterError(f"{archive.name} cannot be unpacked:\n{unpacked.stderr[-2_000:]}")
    partial = program.with_suffix(".partial")
    shutil.move(work / "unpacked" / "usr" / "bin" / "prometheus", partial)
    partial.replace(program)


def _run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
