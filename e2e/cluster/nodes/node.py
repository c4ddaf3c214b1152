"""A node: containerd and kubelet, as processes of the machine. The first node also has kube-proxy
and the cluster's DNS. These serve the second node too, since both are on the same bridge.

Each unusual setting was found by a failure without it; its comment names the failure.

Ends containers that outlive their containerd.

Each has a shim, a process of its own, and none of them is in the record. A shim names the socket of
its containerd, so those of another containerd stay. A killed shim leaves its container running;
therefore its children go first.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.artifacts.image_set import PAUSE
from e2e.cluster.nodes.control_plane import fetch
from e2e.cluster.nodes.network import (
    BRIDGE,
    GATEWAY,
    NETWORK,
    make_cgroup,
    mount_memory,
    remove_cgroup,
    unmount,
)
from e2e.cluster.run_record import ClusterError, RunRecord, print_progress, start_time

_SHIM = "containerd-shim"
STOP_SECONDS = 10.0

DNS = "10.96.0.10"
DNS_PORT = 5353
_READY_PORT = 18181

NODES = ("local", "second")
"""Names of the nodes, by number. Only the first is there without a request."""
SECOND_TAINT = "fairlead-e2e/second"
"""Taint of the second node. Other tests do not notice it, since their pods do not tolerate this."""
_ADDRESSES = ((2, 199), (200, 254))
"""First and last address of each node's pods on the bridge."""
_PORTS_APART = 1_000
_PROGRAMS = ("kubelet", "containerd")

_CONTAINERD = """
version = 2
root = "{folder}/cri/data"
state = "{folder}/cri/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
[grpc]
  address = "{folder}/cri/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE no sandbox starts otherwise, and runc says only "can't get final
  # child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  # Network namespaces go with the run folder.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cri/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{folder}/cri/runc"
"""
_COREFILE = """
.:{port} {{
  bind {gateway}
  errors
  health {gateway}:18080
  ready {gateway}:{ready}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {run}/admin.kubeconfig
    pods insecure
    ttl 5
  }}
  cache 5
}}
"""


def end_shims(socket: Path) -> int:
    """Kill the shims of the containerd that listened on ``socket``, and all that they started. How
    many shims there were.

    Nothing of them runs any more when this returns, or ``STOP_SECONDS`` have passed.
    """
    named = {pid for pid in _pids() if _belongs(_words(pid), socket)}
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    # What a shim has just forked still carries its words.
    shims = [pid for pid in named if parents.get(pid) not in named]
    doomed = [*descendants(shims, parents), *shims]
    moments = {pid: start_time(pid) for pid in doomed}
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + STOP_SECONDS
    while any(at is not None and start_time(pid) == at for pid, at in moments.items()) and time.monotonic() < until:
        time.sleep(0.02)
    return len(shims)


def descendants(roots: Iterable[int], parents: Mapping[int, int]) -> list[int]:
    """The descendants of ``roots``, without these, parents first; ``parents`` by child."""
    found = list(roots)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in found if pid not in set(roots)]


def _belongs(words: list[str], socket: Path) -> bool:
    named = itertools.pairwise(words)
    return bool(words) and Path(words[0]).name.startswith(_SHIM) and ("-address", str(socket)) in named


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node of one run folder, with the Kubernetes programs of ``binaries``.

    number: its place in ``NODES``. The first one has its files in the run folder itself.
    """

    record: RunRecord
    binaries: Path
    number: int = 0

    @property
    def name(self) -> str:
        return NODES[self.number]

    @property
    def run(self) -> Path:
        return self.record.run

    @property
    def folder(self) -> Path:
        return self.run / self.name if self.number else self.run

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "node.kubeconfig"

    def process(self, program: str) -> str:
        return f"{program}-{self.name}" if self.number else program

    def is_alive(self) -> bool:
        return all(self.record.is_alive(self.process(program)) for program in _PROGRAMS)

    def start_runtime(self) -> None:
        """containerd, until it answers."""
        mount_memory(self.folder / "cri")
        networks = self.folder / "cri" / "cni"
        networks.mkdir()
        (networks / "10-bridge.conflist").write_text(json.dumps(self.network_config()))
        config = self.folder / "cri" / "containerd.toml"
        config.write_text(_CONTAINERD.format(folder=self.folder, pause=PAUSE))
        self.record.start(self.process("containerd"), ["containerd", "-c", config])
        self.record.wait("containerd", 30.0, lambda: self.ctr("version", check=False).returncode == 0)

    def load(self, archive: Path) -> None:
        self.ctr("images", "import", str(archive))

    def save(self, archive: Path) -> None:
        """Writes the images that the node was given to an archive."""
        # CRI names each image by its digest too, which is no name for an archive.
        names = [name for name in self.ctr("images", "ls", "-q").stdout.split() if not name.startswith("sha256:")]
        self.ctr("images", "export", str(archive), *names)

    def start(self) -> None:
        """kubelet, not yet ready when this returns."""
        config, root = self.folder / "kubelet.yaml", self.folder / "kubelet"
        config.write_text(yaml.safe_dump(self.kubelet_config()))
        if self.number:
            make_cgroup(self._cgroup)
        kubelet = {
            "config": config,
            "kubeconfig": self.kubeconfig,
            "hostname-override": self.name,
            "node-ip": GATEWAY,
            "root-dir": root,
            "cert-dir": root / "pki",
        }
        root.mkdir()
        flags = (f"--{name}={value}" for name, value in kubelet.items())
        self.record.start(self.process("kubelet"), [self.binaries / "kubelet", *flags])

    def start_network(self) -> None:
        """kube-proxy and DNS, which serve all nodes."""
        (self.run / "kube-proxy.yaml").write_text(yaml.safe_dump(self._proxy()))
        (self.run / "Corefile").write_text(
            _COREFILE.format(run=self.run, gateway=GATEWAY, port=DNS_PORT, ready=_READY_PORT)
        )
        self.record.start("kube-proxy", [self.binaries / "kube-proxy", "--config", self.run / "kube-proxy.yaml"])
        self.record.start("coredns", [self.binaries / "coredns", "-conf", self.run / "Corefile"])

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ask containerd, among Kubernetes' containers."""
        command = ["ctr", "-a", str(self._socket), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise ClusterError(f"ctr {' '.join(arguments[:2])}: {done.stderr.strip()}")
        return done

    def stop(self) -> None:
        """kubelet, all containers at once, and containerd. Works without an API server, and without
        containerd, which its containers outlive."""
        self.record.stop(self.process("kubelet"))
        self._remove_containers()
        self.record.stop(self.process("containerd"))

    def remove(self) -> None:
        """Stops it and removes its files, mounts and control groups: a node that was added."""
        self.stop()
        unmount(self.folder)
        remove_cgroup(self._cgroup)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        # The last address stays: one that another pod just had is not reached for seconds (ARP).
        for lease in self._addresses.glob(f"*/{NETWORK}.*"):
            lease.unlink()
        self.record.forget(*map(self.process, _PROGRAMS))

    def _remove_containers(self) -> None:
        containerd = self.process("containerd")
        if not self.record.is_alive(containerd) or self.ctr("version", check=False).returncode:
            self.record.stop(containerd)
            if left := end_shims(self._socket):
                print_progress(f"  shims that outlived containerd, ended with their containers: {left}")
            return
        for name in self.ctr("tasks", "ls", "-q").stdout.split():
            self.ctr("tasks", "kill", "-s", "SIGKILL", name, check=False)
        for name in self.ctr("containers", "ls", "-q").stdout.split():
            self.ctr("tasks", "rm", "-f", name, check=False)
            self.ctr("containers", "rm", name, check=False)

    def is_dns_ready(self) -> bool:
        return fetch(f"http://{GATEWAY}:{_READY_PORT}/ready") is not None

    @property
    def _socket(self) -> Path:
        return self.folder / "cri" / "containerd.sock"

    @property
    def _addresses(self) -> Path:
        return self.run / "addresses" / self.name

    @property
    def _cgroup(self) -> str:
        return f"fairlead-{self.name}"

    def network_config(self) -> dict[str, Any]:
        """Returns the network of its pods, for CNI."""
        first, last = (f"{NETWORK}.{number}" for number in _ADDRESSES[self.number])
        ipam = {
            "type": "host-local",
            "dataDir": str(self._addresses),
            "ranges": [[{"subnet": f"{NETWORK}.0/24", "rangeStart": first, "rangeEnd": last}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugin = {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": ipam,
        }
        return {"cniVersion": "0.4.0", "name": "fairlead", "plugins": [plugin]}

    def kubelet_config(self) -> dict[str, Any]:
        """Returns the configuration of its kubelet."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,  # machines with the first version of control groups are refused since 1.35
            "cgroupDriver": "cgroupfs",  # no systemd is assumed
            # Each kubelet removes the groups of pods that it does not know.
            "cgroupRoot": f"/{self._cgroup}" if self.number else "/",
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,  # the root file system's size is unknown on some machines
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{self.run}/pki/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "address": GATEWAY,
            "port": 10250 + _PORTS_APART * self.number,
            "healthzBindAddress": "127.0.0.1",
            "healthzPort": 10248 + _PORTS_APART * self.number,
            "registerWithTaints": [{"key": SECOND_TAINT, "effect": "NoSchedule"}] if self.number else [],
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,  # images that were loaded cannot be pulled again
            # A loaded image that was pulled under another name, too, is pulled again otherwise.
            "imagePullCredentialsVerificationPolicy": "NeverVerify",
            "maxPods": 250,
            "podLogsDir": f"{self.folder}/cri/podlogs",
            "volumePluginDir": f"{self.folder}/kubelet/plugins",
            "resolvConf": "/etc/resolv.conf",
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "5s",
        }

    def _proxy(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": f"{self.run}/kube-proxy.kubeconfig"},
            "bindAddress": "127.0.0.1",
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "hostnameOverride": "local",
            "clusterCIDR": f"{NETWORK}.0/24",
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"syncPeriod": "5s", "minSyncPeriod": "0.2s"},
        }


def dns_manifests() -> Sequence[dict[str, Any]]:
    """A service without selector whose endpoint is the process on this machine."""
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": DNS, "ports": ports},
    }
    labels = {"kubernetes.io/service-name": "kube-dns"}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-host", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": True}}],
        "ports": [{**port, "port": DNS_PORT} for port in ports],
    }
    return [service, endpoints]
