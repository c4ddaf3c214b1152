"""Processor time and memory of a process tree, read from /proc, and the owner of a listening port.

CPU is user plus system time of every process of the tree. It comes from the CPU clock of each
process, in nanoseconds. /proc has ticks of 10 ms, which only split it into user and system.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A tree at one moment. ``cpu_seconds`` counts from the start of each process."""

    cpu_seconds: float
    kernel_seconds: float
    rss_bytes: int
    processes: frozenset[int]


def process_tree(root: int) -> list[int]:
    """Returns ``root`` and all processes below it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def tree_usage(root: int) -> ProcessUsage:
    """Returns CPU and memory of the tree.

    Ended children count through the parent that waited for them.
    """
    cpu = kernel = 0.0
    rss = 0
    living: set[int] = set()
    for pid in process_tree(root):
        fields = _stat(pid)
        clock = _cpu_seconds(pid)
        if fields is None or clock is None:
            continue
        ended = (int(fields[13]) + int(fields[14])) * _TICK_SECONDS
        cpu += clock + ended
        kernel += (int(fields[12]) + int(fields[14])) * _TICK_SECONDS
        rss += int(fields[21]) * _PAGE_BYTES
        living.add(pid)
    return ProcessUsage(cpu, kernel, rss, frozenset(living))


def listening_inodes(port: int) -> set[str]:
    """Returns the inodes of the sockets that listen on ``port``, on any address."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = _PROC / "net" / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def owns_sockets(root: int, inodes: set[str]) -> bool:
    """Returns whether all of these sockets are open in the tree, so that no other process takes
    connections of that port."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in process_tree(root):
        try:
            for link in (_PROC / str(pid) / "fd").iterdir():
                wanted.discard(os.readlink(link))
        except OSError:
            continue
    return not wanted


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of /proc/PID/stat behind the command's name.

    [0] is the state, [1] the parent.
    """
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _cpu_seconds(pid: int) -> float | None:
    """Returns the process's CPU clock.

    Its id derives from the process id (clock_getcpuclockid in the C library).
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        return None
