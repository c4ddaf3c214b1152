"""Starts worker processes.

Why: this is the first thing that a gateway does, so the module imports little.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead.runtime.compiled_build import worker_environment
from fairlead.settings import VARIABLE_PREFIX, variable_name

_MODULE = "fairlead_gateway.worker.__main__"
_EXIT_SECONDS = 10.0
ROWS_PER_WORKER = 2
"""Rows of the shared load table per worker: its own, and its replacement's while it drains."""
_WORKER_VARIABLES = frozenset(
    map(
        variable_name,
        (
            *("access_log", "access_log_clients", "compiled", "drain_timeout", "log_level", "memory_limit"),
            *("trace_endpoint", "trace_headers", "trace_sample"),
        ),
    )
)
"""The settings that workers read. Others come over the channel, or are the supervisor's alone."""
_CLUSTER_PREFIXES = ("KUBERNETES_", "KUBECONFIG")


@dataclass(slots=True)
class SpawnedWorker:
    """A process that was started, and the supervisor's end of its IPC channel."""

    process: subprocess.Popen[bytes]
    channel_socket: socket.socket


def spawn_worker(
    number: int, shared_memory_fd: int | None, environ: Mapping[str, str], *, inherits_stdout: bool = False
) -> SpawnedWorker:
    """Starts a worker process.

    number: the worker's number, from 1.
    shared_memory_fd: the shared load table; None for a single worker without peers.
    inherits_stdout: if False, the worker's standard output is the null device. Then a reader of the
        gateway's output does not wait for the workers' end.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", _MODULE, "--number", str(number), "--channel", str(theirs.fileno())]
        fds = [theirs.fileno()]
        if shared_memory_fd is not None:
            command += ["--rows", str(shared_memory_fd)]
            fds.append(shared_memory_fd)
        try:
            stdout = None if inherits_stdout else subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=fds, env=environ)
        except OSError:
            ours.close()
            raise
    return SpawnedWorker(process, ours)


class PreforkedWorkers:
    """Workers that start before anything else, and import their modules while the supervisor does.

    has_peers: the shared load table has a row for the load from other gateways.
    """

    def __init__(self, count: int, limits: Limits, *, inherits_stdout: bool = False, has_peers: bool = False) -> None:
        self.count = count
        self.has_peers = has_peers
        self.inherits_stdout = inherits_stdout
        self.shared_memory_fd: int | None = None
        self.environ = narrow_environment(worker_environment(os.environ))  # once: it reads every source file
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
        """Ends the workers that no pool has taken, and closes the shared memory's descriptor.

        Closes their channels, and kills a worker that still runs after `_EXIT_SECONDS`.
        """
        waiting, self.spawned = self.spawned, []
        for worker in waiting:
            worker.channel_socket.close()
        for worker in waiting:
            try:
                worker.process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        if self.shared_memory_fd is not None:
            os.close(self.shared_memory_fd)
            self.shared_memory_fd = None


def narrow_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns a worker's environment, without the supervisor's secrets and the way to a cluster.

    Variables of other programs stay, since a fleet may name any of them as an engine's token.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_CLUSTER_PREFIXES)
        and (name in _WORKER_VARIABLES or not name.startswith(VARIABLE_PREFIX))
    }


def shared_row_count(count: int) -> int:
    """Returns the number of rows of the shared load table; the last is for other gateways' load."""
    return count * ROWS_PER_WORKER + 1


def _create_shared_memory(size: int) -> int:
    """Returns the file descriptor of shared memory of `size` zero bytes.

    On Linux, its size is sealed.

    Why: a process that reads memory beyond the end of its file is killed. So a worker that shortens
    the file would end the supervisor and its siblings.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fairlead-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        with contextlib.suppress(OSError):  # a sandbox without seals
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor
    import tempfile

    with tempfile.TemporaryFile() as file:
        descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
