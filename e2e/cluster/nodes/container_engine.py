"""The engine that runs kind's nodes as containers: docker where there is one, else podman with a
runtime of ours."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import ClusterError

NETWORK = "kind"
_RUNTIME = Path(__file__).with_name("oci_runtime.py")


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """docker or podman, as a command."""

    program: str

    @property
    def makes_images(self) -> bool:
        # for podman, which then needs no registry
        return self.program == "podman"

    def environ(self) -> dict[str, str]:
        """For this engine, and for kind with it."""
        if not self.makes_images:
            return dict(os.environ)
        return os.environ | {"KIND_EXPERIMENTAL_PROVIDER": "podman", "CONTAINERS_CONF": str(_settings())}

    def run(self, *words: str, given: str | None = None) -> str:
        """Runs one of its commands and returns what it prints. Raises ClusterError."""
        done = subprocess.run(
            [self.program, *words], env=self.environ(), input=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"{self.program} {' '.join(words[:2])} failed:\n{done.stderr[-2_000:]}")
        return done.stdout

    def shell(self, node: str, script: str, given: str) -> None:
        self.run("exec", "--interactive", node, "sh", "-c", script, given=given)

    def address(self, node: str) -> str:
        return self.run("inspect", "--format", f"{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}", node).strip()

    def is_running(self, node: str) -> bool:
        return self.run("inspect", "--format", "{{.State.Running}}", node).strip() == "true"


def find_engine() -> ContainerEngine:
    """docker where its engine answers, else podman, which is installed.

    Raises ClusterError where neither can be.
    """
    try:
        answered = subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        answered = False
    if answered:
        return ContainerEngine("docker")
    if os.geteuid() != 0:
        raise ClusterError("level kind needs a docker engine, or root for podman; there is neither")
    pinned_versions.install(pinned_versions.DEBIAN_OF_KIND)
    Path("/lib/modules").mkdir(exist_ok=True)  # kind mounts it into its nodes
    return ContainerEngine("podman")


def _settings() -> Path:
    """podman's settings, which make it call our runtime."""
    path = pinned_versions.cache_folder() / "kind-node" / "containers.conf"
    text = (
        '[engine]\nruntime = "fairlead"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'[engine.runtimes]\nfairlead = ["{_RUNTIME}"]\n'
    )
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path
