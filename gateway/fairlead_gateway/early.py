"""The first thing that a gateway does: start its workers. Kept light, since everything else waits for it."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.compiled import worker_environment
from fairlead.limits import Limits

_MODULE = "fairlead_gateway.worker"
_LEAVE_SECONDS = 10.0
ROWS_EACH = 2
"""Rows of shared memory for each worker: one for it, one for whoever replaces it while it drains."""


@dataclass(slots=True)
class Spawned:
    """A process that was started, and our end of its channel."""

    process: subprocess.Popen[bytes]
    sock: socket.socket


def spawn(number: int, rows: int | None, environ: Mapping[str, str], *, talks: bool = False) -> Spawned:
    """Start worker ``number``; ``rows`` is the descriptor of the shared memory, ``environ`` its environment.
    Standard output is ours too where it ``talks`` there; else nobody who reads ours should wait for the worker's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", _MODULE, "--number", str(number), "--channel", str(theirs.fileno())]
        handed = [theirs.fileno()]
        if rows is not None:
            command += ["--rows", str(rows)]
            handed.append(rows)
        try:
            stdout = None if talks else subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=handed, env=environ)
        except OSError:
            ours.close()
            raise
    return Spawned(process, ours)


class Early:
    """Workers that were started before anything else was done: they import their modules while the helper does. ``shares``: there
    are other gateways, of whose load they read."""

    def __init__(self, count: int, limits: Limits, *, talk: bool = False, shares: bool = False) -> None:
        self.count = count
        self.shares = shares
        self.talk = talk
        self.rows: int | None = None
        self.environ = worker_environment(os.environ)  # once: it looks at every source
        self.spawned: list[Spawned] = []
        if count > 1 or shares:
            from fairlead_gateway.routing.shared import bytes_of

            self.rows = _shared_memory(bytes_of(rows_of(count), limits.shared_slots))
        try:
            self.spawned.extend(spawn(number, self.rows, self.environ, talks=talk) for number in range(1, count + 1))
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        """Workers that were given no work leave when their channels end. Does nothing about those that a crew has taken."""
        waiting, self.spawned = self.spawned, []
        for one in waiting:
            one.sock.close()
        for one in waiting:
            try:
                one.process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        if self.rows is not None:
            os.close(self.rows)
            self.rows = None


def rows_of(count: int) -> int:
    """Rows of the memory that so many workers share; the last is for what other gateways have in flight."""
    return count * ROWS_EACH + 1


def _shared_memory(size: int) -> int:
    """A descriptor of so many zero bytes that processes can share."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("fairlead-rows")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            made = os.dup(file.fileno())
    os.ftruncate(made, size)
    return made
