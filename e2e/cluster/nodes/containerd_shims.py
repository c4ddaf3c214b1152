"""Ends containers that outlive their containerd.

Each has a shim, a process of its own, and none of them is in the record. A shim names the socket of
its containerd, so those of another containerd stay. A killed shim leaves its container running;
therefore its children go first.
"""

import itertools
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from e2e.cluster.run_record import start_time

_SHIM = "containerd-shim"
STOP_SECONDS = 10.0


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
