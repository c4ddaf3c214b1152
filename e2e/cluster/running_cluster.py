"""A cluster that runs, as its users see it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.progress import ClusterError


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A running cluster in the folder ``run``, with its programs."""

    run: Path
    binaries: Path

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of its administrator."""
        return self.run / "admin.kubeconfig"

    def shell_line(self) -> str:
        """For ``eval``."""
        return f"export KUBECONFIG={self.kubeconfig} PATH={self.binaries}:$PATH"

    def environ(self) -> dict[str, str]:
        """For commands that talk to it; what they cache goes when the cluster goes."""
        names = ("KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        caches = {name: str(self.run / "cache") for name in names}
        path = f"{self.binaries}:{os.environ['PATH']}"
        return os.environ | caches | {"KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def command(self, *words: str, given: str | None = None) -> None:
        """Run a command that talks to it. Raises ClusterError with what it complains of."""
        self.output(*words, given=given)

    def output(self, *words: str, given: str | None = None) -> str:
        """Returns what such a command prints. Raises ClusterError with what it complains of."""
        done = subprocess.run(words, env=self.environ(), input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(words[:3])} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
        return done.stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        """``kubectl apply`` them."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.command("kubectl", "apply", "-f", "-", given=document)
