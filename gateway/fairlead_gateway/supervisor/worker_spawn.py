"""The first thing that a gateway does: start its workers. Kept light, since everything else waits for it."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead.runtime.compiled_build import worker_environment

_MODULE = "fairlead_gateway.worker.__main__"
_EXIT_SECONDS = 10.0
ROWS_PER_WORKER = 2
"""Rows of shared memory for each worker: one for it, one for whoever replaces it while it drains."""


@dataclass(slots=True)
class SpawnedWorker:
    """A process that was started, and our end of its channel."""

    process: subprocess.Popen[bytes]
    channel_socket: socket.socket


def spawn_worker(
    number: int, shared_memory_fd: int | None, environ: Mapping[str, str], *, inherits_stdout: bool = False
) -> SpawnedWorker:
    """Start worker ``number``; ``rows`` is the descriptor of the shared memory, ``environ`` its environment.
    Standard output is ours too where it ``talks`` there; else nobody who reads ours should wait for the worker's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", _MODULE, "--number", str(number), "--channel", str(theirs.fileno())]
        handed = [theirs.fileno()]
        if shared_memory_fd is not None:
            command += ["--rows", str(shared_memory_fd)]
            handed.append(shared_memory_fd)
        try:
            stdout = None if inherits_stdout else subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=handed, env=environ)
        except OSError:
            ours.close()
            raise
    return SpawnedWorker(process, ours)


class PreforkedWorkers:
    """Workers that were started before anything else was done: they import their modules while the helper does. ``shares``: there
    are other gateways, of whose load they read."""

    def __init__(self, count: int, limits: Limits, *, inherits_stdout: bool = False, has_peers: bool = False) -> None:
        self.count = count
        self.has_peers = has_peers
        self.inherits_stdout = inherits_stdout
        self.shared_memory_fd: int | None = None
        self.environ = worker_environment(os.environ)  # once: it looks at every source
        self.spawned: list[SpawnedWorker] = []
        if count > 1 or has_peers:
            from fairlead_gateway.routing.load.shared_memory import table_bytes

            self.shared_memory_fd = _create_shared_memory(table_bytes(shared_row_count(count), limits.shared_slots))
        try:
            self.spawned.extend(
                spawn_worker(number, self.shared_memory_fd, self.environ, inherits_stdout=inherits_stdout)
                for number in range(1, count + 1)
            )
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Workers that were given no work leave when their channels end. Does nothing about those that a crew has taken."""
        waiting, self.spawned = self.spawned, []
        for one in waiting:
            one.channel_socket.close()
        for one in waiting:
            try:
                one.process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        if self.shared_memory_fd is not None:
            os.close(self.shared_memory_fd)
            self.shared_memory_fd = None


def shared_row_count(count: int) -> int:
    """Rows of the memory that so many workers share; the last is for what other gateways have in flight."""
    return count * ROWS_PER_WORKER + 1


def _create_shared_memory(size: int) -> int:
    """A descriptor of so many zero bytes that processes can share."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("fairlead-rows")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            made = os.dup(file.fileno())
    os.ftruncate(made, size)
    return made
