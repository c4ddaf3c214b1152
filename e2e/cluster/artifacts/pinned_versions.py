"""Pinned parts of the cluster: versions, modules and build flags.

The versions are in the ``go.mod`` of each module, and every byte is in its ``go.sum``. This module
lists what to build. Kubernetes 1.36 is the last line for Debian 12's containerd 1.6 and Go 1.26.

LeaderWorkerSet has a module of its own: it does not compile together with client-go 0.36. So has
kind's provisioner of volumes. Prometheus and the registry have one each, since they are for tests
and no part of a cluster. Programs of kind's nodes share one module, and all others another.

Debian packages of level *full*: container runtime, network plugins, and the few commands that
are called.

The Prometheus server of the dashboards' test: Debian's, unpacked into the cache, not installed.

Why Debian's: the modules of Prometheus' own release lack the server's user interface, without which
it does not compile.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from e2e.cluster.run_record import ClusterError, print_progress, progress_step
from fairlead.runtime import compiled_build
from scripts.release.images.layers import build_lock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

KUBERNETES = "v1.36.3"
HELM = "v4.2.4"
LWS = "v0.8.0"
PROMETHEUS = "v0.313.0"
REGISTRY = "v3.1.2"
KIND = "v0.33.0"
CONTAINERD = "v2.3.4"
CRICTL = "v1.36.0"
LOCAL_PATH = "v0.0.30"
NEEDS_GO = (1, 21)
"""An older Go does not fetch the one that go.mod asks for."""

PAUSE_SOURCE = "pause.c"
LWS_CHART = "lws-chart"
KIND_FILES = "kind-files"
"""The folder of kind's own files for its nodes."""
VOLUMES_MANIFEST = "local-path.yaml"

DEBIAN = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "nftables",
    "iproute2",
    "openssl",
    "gcc",
    "libc6-dev",
)
"""Debian packages of level *full*."""
DEBIAN_OF_KIND = (
    "podman",
    "runc",
    "netavark",
    "aardvark-dns",
    "mmdebstrap",
    "iptables",
    "nftables",
    "gcc",
    "libc6-dev",
)
"""Debian packages of level *kind* where there is no docker engine."""

_POLICY = Path("/usr/sbin/policy-rc.d")

_PACKAGE = "prometheus"

_CONTAINERD = "github.com/containerd/containerd/v2"
_NETWORK_PLUGINS = "github.com/containernetworking/plugins/plugins"


@dataclass(frozen=True, slots=True)
class Program:
    """One program to compile: its package, the module folder that pins it, linker flags other than
    versions, and further files of its module: name there, module, path inside."""

    name: str
    package: str
    module: str = "kubernetes"
    link: str = ""
    brings: tuple[str, str, str] | None = None


def _kubernetes(name: str, brings: tuple[str, str, str] | None = None) -> Program:
    return Program(name, f"k8s.io/kubernetes/cmd/{name}", brings=brings)


API = (Program("etcd", "go.etcd.io/etcd/server/v3"), _kubernetes("kube-apiserver"), _kubernetes("kubectl"))
"""Programs of level *api*; the names are those that KUBEBUILDER_ASSETS holds."""
HELM_PROGRAM = Program("helm", "helm.sh/helm/v4/cmd/helm", link=f"-X helm.sh/helm/v4/internal/version.version={HELM}")
NODE = (
    *(_kubernetes(name) for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy")),
    _kubernetes("kubelet", brings=(PAUSE_SOURCE, "k8s.io/kubernetes", "build/pause/linux/pause.c")),
    Program("coredns", "./coredns"),
    HELM_PROGRAM,
    Program("lws", "sigs.k8s.io/lws/cmd", module="lws", brings=(LWS_CHART, "sigs.k8s.io/lws", "charts/lws")),
)
"""Further programs of level *full*."""


def _kind_node(name: str, package: str, link: str = "", brings: tuple[str, str, str] | None = None) -> Program:
    return Program(name, package, "kind_node", link, brings)


KIND_PROGRAM = _kind_node("kind", "sigs.k8s.io/kind", brings=(KIND_FILES, "sigs.k8s.io/kind", "images/base/files"))
LEVELS = {"api": API, "full": (*API, *NODE), "kind": (API[2], *NODE[-2:], KIND_PROGRAM)}
"""Level → its programs. ``KIND_NODE`` has those inside of kind's nodes, for podman."""
KIND_NODE = (
    *(API[0], API[1], API[2], *NODE[:4]),
    _kind_node("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
    _kind_node("coredns", "./coredns"),
    *(
        _kind_node(name, f"{_CONTAINERD}/cmd/{name}", f"-X {_CONTAINERD}/version.Version={CONTAINERD}")
        for name in ("containerd", "ctr", "containerd-shim-runc-v2")
    ),
    *(
        _kind_node(place.rpartition("/")[2], f"{_NETWORK_PLUGINS}/{place}")
        for place in ("ipam/host-local", "main/loopback", "main/ptp", "meta/portmap")
    ),
    _kind_node("crictl", "sigs.k8s.io/cri-tools/cmd/crictl", f"-X sigs.k8s.io/cri-tools/pkg/version.Version={CRICTL}"),
    Program(
        "local-path-provisioner",
        "github.com/rancher/local-path-provisioner",
        "storage",
        f"-X main.VERSION={LOCAL_PATH}",
        (VOLUMES_MANIFEST, "github.com/rancher/local-path-provisioner", "deploy/local-path-storage.yaml"),
    ),
)
"""Programs of a node image of kind's."""

PROMTOOL = Program("promtool", "github.com/prometheus/prometheus/cmd/promtool", module="prometheus")
"""For tests of alert rules."""
REGISTRY_PROGRAM = Program("registry", ".", module="registry")
"""The registry from which clusters of tests pull a release."""
METRICS = Program("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server")
"""Only on request."""


def tags(module: str) -> tuple[str, ...]:
    """Returns the build tags of a module.

    promtool needs none of the clouds in which Prometheus can find targets, and containerd one file
    system.
    """
    chosen = {
        "prometheus": "remove_all_sd",
        "kind_node": "no_aufs,no_zfs,no_btrfs,no_devmapper,netgo,osusergo",
    }
    return ("-tags", chosen[module]) if module in chosen else ()


def linker_flags(program: Program) -> str:
    """Small, and with the versions that Kubernetes' own release build stamps: server and kubelet
    report them."""
    if program.module not in ("kubernetes", "kind_node"):
        return f"-s -w {program.link}".rstrip()
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    stamps = {
        f"{version}.gitVersion": KUBERNETES,
        f"{version}.gitMajor": major,
        f"{version}.gitMinor": minor,
        f"{version}.gitTreeState": "clean",
        f"{version}.buildDate": "1970-01-01T00:00:00Z",
        "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES,
    }
    return " ".join(["-s -w", program.link, *(f"-X {name}={value}" for name, value in stamps.items())]).replace(
        "  ", " "
    )


@cache
def digest(module: str) -> str:
    """Names what is built of one module: its pins, its sources, the flags. Another compiler's
    result is as good."""
    seen = hashlib.sha256()
    for path in sorted((HERE / module).rglob("*")):
        if path.is_file():
            seen.update(f"{path.relative_to(HERE)}\n".encode() + path.read_bytes())
    seen.update("".join(tags(module)).encode())
    for program in dict.fromkeys((*LEVELS["full"], *LEVELS["kind"], *KIND_NODE)):
        if program.module == module:
            seen.update(f"{program}{linker_flags(program)}\n".encode())
    return seen.hexdigest()[:12]


def cache_folder() -> Path:
    return compiled_build.cache_folder(os.environ)


def binaries(module: str = "kubernetes") -> Path:
    """The folder of a module's programs."""
    versions = {
        "kubernetes": KUBERNETES,
        "lws": LWS,
        "prometheus": PROMETHEUS,
        "registry": REGISTRY,
        "kind_node": KIND,
        "storage": LOCAL_PATH,
    }
    name = f"{'k8s' if module == 'kubernetes' else module}-{versions[module]}"
    return cache_folder() / f"{name}-{digest(module)}"


def install(packages: Sequence[str]) -> None:
    """Install what is missing of these; nothing that comes with it is started."""
    missing = [name for name in packages if not _installed(name)]
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
            "clusters of our own need Linux; elsewhere kind does the same in docker, see docs/contributing/cluster-from-source.md"
        )
    asked = ["dpkg-query", "-W", "-f", "${db:Status-Status}", name]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClusterError(
            "without docker, the container runtime is taken from Debian's packages, and this is no Debian"
        ) from None
    return done.stdout == "installed"


def prometheus_program() -> Path:
    """Returns the path of the server, which is downloaded the first time.

    Raises ClusterError when it cannot be.
    """
    folder = cache_folder() / "prometheus-server"
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
