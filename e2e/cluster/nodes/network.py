"""Changes that a node makes to this machine outside its run folder, and their removal: bridge,
kernel settings, packet filter, folders."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from e2e.cluster.run_record import print_progress

BRIDGE = "fairlead0"
NETWORK = "10.244.0"
GATEWAY = f"{NETWORK}.1"
"""The machine as pods see it. API server, kubelet and DNS listen here and nowhere else."""

MAX_MEMORY_BYTES = "4g"
"""For the images (0.4 GB), and for what containers write."""

_CGROUPS = Path("/sys/fs/cgroup")
_OUTSIDE = (
    *("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/var/log/pods", "/run/containerd", "/run/netns"),
    *("/opt/containerd", "/opt/cni", "/usr/libexec/kubernetes", "/run/xtables.lock", "/run/mount"),
)
"""Paths that kubelet, CNI plugins, runc and mount create wherever they run."""
_SYSCTLS = (
    *(
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.route_localnet",
        "vm.overcommit_memory",
        "vm.panic_on_oom",
        "kernel.panic",
    ),
    *("kernel.panic_on_oops", "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes"),
    *("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"),
)
"""Kernel settings that kubelet and kube-proxy change, and the one that we do."""
FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}
"""Command → its family's name in nftables."""


def snapshot() -> dict[str, Any]:
    """Returns the state of the machine before a start; ``restore`` goes back to it."""
    groups = [path for path in (_CGROUPS, *sorted(_CGROUPS.glob("*/"))) if (path / "cgroup.procs").exists()]
    candidates = [Path(path) for path in _OUTSIDE] + [path / "kubepods" for path in groups]
    settings = {name: _sysctl(name).read_text().strip() for name in _SYSCTLS if _sysctl(name).exists()}
    rules = {command: _saved(command) for command in FAMILIES}
    return {"absent": [str(path) for path in candidates if not path.exists()], "sysctls": settings, "rules": rules}


def bridge_exists() -> bool:
    return Path("/sys/class/net", BRIDGE).exists()


def make_bridge() -> None:
    """The bridge that pods are plugged into, with the machine's address on it."""
    _sysctl("net.ipv4.ip_forward").write_text("1")
    for words in (f"link add {BRIDGE} type bridge", f"addr add {GATEWAY}/24 dev {BRIDGE}", f"link set {BRIDGE} up"):
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def mount_memory(folder: Path) -> None:
    """Images and containers into memory: unpacking and removing thousands of small files takes
    seconds there, not tens."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MAX_MEMORY_BYTES},mode=0711", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )


def make_cgroup(name: str) -> None:
    for root in _hierarchies():
        (root / name).mkdir(exist_ok=True)


def remove_cgroup(name: str) -> None:
    """Removes a control group that ``make_cgroup`` made, with all below it. Its processes have
    ended."""
    for root in _hierarchies():
        _remove_cgroup(root / name)


def _hierarchies() -> list[Path]:
    """Returns the root of control groups of version 2, or one root for each controller of version
    1."""
    roots = [_CGROUPS] if (_CGROUPS / "cgroup.procs").exists() else sorted(_CGROUPS.glob("*/"))
    return [root for root in roots if (root / "cgroup.procs").exists()]


def unmount(folder: Path) -> None:
    """Removes the mounts below a folder, and links of kubelet to logs in it."""
    for point in mounts_below(folder):
        if subprocess.run(["umount", point], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    for path in Path("/var/log/containers").glob("*"):
        if path.is_symlink() and str(path.readlink()).startswith(f"{folder}/"):
            path.unlink()


def restore(before: Mapping[str, Any], run: Path) -> None:
    """Undo what the node has done, and that alone. Its processes have ended."""
    unmount(run)
    subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)
    for command in FAMILIES:
        _remove_chains(command, before["rules"][command])
    for path in map(Path, before["absent"]):
        if path.exists():
            _remove(path)
    for name, value in before["sysctls"].items():
        if _sysctl(name).exists() and _sysctl(name).read_text().strip() != value:
            _sysctl(name).write_text(value)


def undo_chains(table: str, rules: Iterable[str]) -> str:
    """Returns the input of ``iptables-restore --noflush`` that removes every KUBE- chain of
    ``table``, whose rules are given as ``-S`` prints them; empty where there is none."""
    lines = list(rules)
    chains = [words[1] for line in lines if (words := line.split())[0] == "-N" and words[1].startswith("KUBE-")]
    if not chains:
        return ""
    # Rules of other chains that lead into ours; ours are emptied as a whole.
    outer = [
        re.sub("^-A", "-D", line) for line in lines if line.startswith("-A ") and "KUBE-" in line.split(maxsplit=2)[2]
    ]
    ours = set(chains)
    outer = [line for line in outer if line.split()[1] not in ours]
    return "\n".join(
        [f"*{table}", *outer, *(f"-F {name}" for name in chains), *(f"-X {name}" for name in chains), "COMMIT", ""]
    )


def _remove_chains(command: str, before: str) -> None:
    if ":KUBE-" in before:
        print_progress(f"  {command}: there were KUBE- chains before, so they are left alone")
        return
    for table in ("raw", "mangle", "nat", "filter"):
        listed = _listed(command, table)
        if undo := undo_chains(table, listed):
            done = subprocess.run(
                [f"{command}-restore", "-w", "5", "--noflush"], input=undo, text=True, capture_output=True, check=False
            )
            if done.returncode:
                print_progress(f"  {command}, table {table}: {done.stderr.strip()}")
        # A table that was not there before stays behind empty, and only nft can take it away.
        if f"*{table}\n" not in before and not any(line.startswith(("-A", "-N")) for line in _listed(command, table)):
            subprocess.run(["nft", "delete", "table", FAMILIES[command], table], check=False, capture_output=True)


def _listed(command: str, table: str) -> list[str]:
    done = subprocess.run([command, "-w", "5", "-t", table, "-S"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _saved(command: str) -> str:
    done = subprocess.run([f"{command}-save"], capture_output=True, text=True, check=False)
    return done.stdout


def mounts_below(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point == str(folder) or point.startswith(f"{folder}/")), reverse=True)


def _remove(path: Path) -> None:
    if path.is_relative_to(_CGROUPS):
        _remove_cgroup(path)
    elif mounts_below(path):
        print_progress(f"  something is still mounted below {path}, so it is left")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_cgroup(path: Path) -> None:
    """From the leaves; the kernel takes a moment to let go of one whose last process has just
    ended."""
    end = time.monotonic() + 5.0
    while path.exists() and time.monotonic() < end:
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                time.sleep(0.02)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")
