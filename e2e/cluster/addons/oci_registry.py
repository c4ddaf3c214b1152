"""A registry on this machine, from which the nodes of test clusters pull: Distribution's, with its
data in a folder.

It listens on loopback, where containerd, helm and Fairlead's own client do without TLS.
"""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.artifacts.go_builds import compile_missing, path_of
from e2e.cluster.nodes.control_plane import LOOPBACK
from e2e.cluster.progress import ClusterError
from fairlead_testing.ports import unused_port

READY_SECONDS = 30.0


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
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ClusterError(f"the registry does not answer:\n{log.read_text(errors='replace')[-2_000:]}")
