"""Target processes: started on a free port, checked to reach the mock engines, stopped."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairlead_bench.gateway.mock_engine import CountedEngines
from fairlead_bench.gateway.peer_installation import PeerUnavailable
from fairlead_bench.gateway.process_usage import ProcessUsage, listening_inodes, owns_sockets, process_tree, tree_usage
from fairlead_bench.gateway.targets import KEY, Target, TargetLocation, gateway_environment
from fairlead_testing.ports import unused_ports

_START_SECONDS = 60.0
_LITELLM_START_SECONDS = 180.0
_STOP_SECONDS = 3.0
_SETTLE_SECONDS = 1.0


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
        """Returns the end of its log."""
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
