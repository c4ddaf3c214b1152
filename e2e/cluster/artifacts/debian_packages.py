"""Debian packages of level *full*: container runtime, network plugins, and the few commands that
are called."""

import os
import subprocess
import sys
from pathlib import Path

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.progress import ClusterError, print_progress, progress_step

_POLICY = Path("/usr/sbin/policy-rc.d")


def install() -> None:
    """Install what is missing; nothing that comes with it is started."""
    missing = [name for name in pinned_versions.DEBIAN if not _installed(name)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise ClusterError(f"not root, and missing: {' '.join(missing)}")
    print_progress(f"installing from Debian: {' '.join(missing)}")
    # On a machine with an init system, the package's own containerd must not start, too.
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        with progress_step("packages"):
            environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
            for command in (["apt-get", "update", "-qq"], install):
                done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise ClusterError(f"{' '.join(command[:2])} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
    finally:
        if ours:
            _POLICY.unlink()


def _installed(name: str) -> bool:
    if sys.platform != "linux":
        raise ClusterError(
            "level full needs Linux; elsewhere kind does the same in docker, see docs/contributing/cluster-from-source.md"
        )
    asked = ["dpkg-query", "-W", "-f", "${db:Status-Status}", name]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClusterError(
            "level full takes its container runtime from Debian's packages, and this is no Debian"
        ) from None
    return done.stdout == "installed"
