"""Target processes: started on a free port, checked to reach the mock engines, stopped.

Processor time and memory of a process tree, read from /proc, and the owner of a listening port.

CPU is user plus system time of every process of the tree. It comes from the CPU clock of each
process, in nanoseconds. /proc has ticks of 10 ms, which only split it into user and system.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway.native_programs import CountedEngines
from fairlead_bench.gateway.targets import KEY, PeerUnavailable, Target, TargetLocation, gateway_environment
from fairlead_testing.processes import unused_ports

_PROC = Path("/proc")
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LISTENING = "0A"

_START_SECONDS = 60.0
_LITELLM_START_SECONDS = 180.0
_STOP_SECONDS = 3.0
_SETTLE_SECONDS = 1.0


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


class TargetDied(Exception):
    """Raised when a target has ended by itself."""


class TargetProcess:
    """One target that serves ``port``. ``idle_rss_bytes``: its memory before the first request."""

    def __init__(self, target: Target, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.target = target
        self.port = port
        self.idle_rss_bytes = 0
        self._process = process
        self._log = log

    def usage(self) -> ProcessUsage:
        """Returns CPU and memory of all its processes. Raises Died."""
        if self._process.poll() is not None:
            raise TargetDied(f"{self.target.name} ended with status {self._process.returncode}; {self.log_tail()}")
        return tree_usage(self._process.pid)

    def log_tail(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return text[-400:] or "its log is empty"

    def owns_its_port(self) -> bool:
        """Returns whether its own processes hold all listening sockets of its port.

        A foreign one would take connections.
        """
        inodes = listening_inodes(self.port)
        return bool(inodes) and owns_sockets(self._process.pid, inodes)

    def stop(self) -> None:
        """Ends its processes and those that it started."""
        pids = process_tree(self._process.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        for pid in pids if self._process.poll() is None else pids[1:]:
            if pid == self._process.pid or (os.path.exists(f"/proc/{pid}") and _session(pid) == self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


def start(
    target: Target, engine: CountedEngines, folder: Path, program: Path, *, prefix: Sequence[str] = ()
) -> TargetProcess:
    """Starts ``target`` and waits until it answers. Raises Absent when it does not."""
    port, side_port = unused_ports(2)
    place = TargetLocation(
        port, side_port, engine.ports, folder / target.name.replace(" ", "-").replace(",", ""), program
    )
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    if listening_inodes(port):
        raise PeerUnavailable(f"port {port} is in use")
    log = place.folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*prefix, *target.command(place)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment(os.environ),
            cwd=place.folder,
            start_new_session=True,
        )
    running = TargetProcess(target, process, port, log)
    try:
        _wait_until_it_answers(running, engine)
    except BaseException:
        running.stop()
        raise
    return running


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment without settings that change a target's behavior."""
    dropped = ("FAIRLEAD_", "RUST_LOG", "LITELLM_", "OTEL_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    kept = {name: value for name, value in given.items() if not name.startswith(dropped)}
    return {**kept, **gateway_environment()}


def _wait_until_it_answers(running: TargetProcess, engine: CountedEngines) -> None:
    """Waits until the target is ready and idle.

    It is ready when a request reaches an engine and all engines count as found.
    """
    patience = _LITELLM_START_SECONDS if running.target.asked_for else _START_SECONDS
    end = time.monotonic() + patience
    answered = 0
    while answered < 2 * len(engine.ports):
        before = engine.stats()["requests"]
        if _is_answering(running.port):
            if engine.stats()["requests"] == before:
                raise PeerUnavailable(f"something else answers on port {running.port}")
            answered += 1
            continue
        try:
            running.usage()
        except TargetDied as error:
            raise PeerUnavailable(str(error)) from None
        if time.monotonic() > end:
            raise PeerUnavailable(f"{running.target.name} does not answer; {running.log_tail()}")
        time.sleep(0.1)
    if not running.owns_its_port():
        raise PeerUnavailable(f"another program listens on port {running.port} too")
    time.sleep(_SETTLE_SECONDS)
    running.idle_rss_bytes = running.usage().rss_bytes


def _is_answering(port: int) -> bool:
    body = json.dumps({"model": "bench-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
    fields = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", "/v1/chat/completions", body, fields)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
