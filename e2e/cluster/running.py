"""A cluster that runs, as its users see it."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is in ``run``, and where its programs are."""

    run: Path
    binaries: Path

    @property
    def kubeconfig(self) -> Path:
        """Of its administrator."""
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
