"""A real Kubernetes API server for tests, which can be killed, frozen and restarted.

It is always a new one on free loopback ports (`e2e/cluster`, level *api*), started within seconds.
`KUBECONFIG` is never used: it may name a production cluster.
"""

import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from json import loads
from pathlib import Path
from unittest import SkipTest

from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import ClusterConfig, config_from_kubeconfig
from fairlead.runtime.clock import SystemClock
from fairlead_testing.processes import block_until, is_alive

CLUSTER_TOOL = Path(__file__).parents[3] / "e2e" / "cluster"
_QUICK = {"GOGC": "400"}
"""A sixth less processor time for etcd and API server: Go collects its garbage less often."""
NO_CLUSTER_PROGRAMS = "no etcd, kube-apiserver, helm or promtool: `make test CLUSTER=1` compiles them"


def binaries_folder() -> Path | None:
    """Returns the folder with etcd and kube-apiserver: KUBEBUILDER_ASSETS, else the cache, else
    None.
    """
    if not CLUSTER_TOOL.exists():
        return None
    asked = subprocess.run([sys.executable, str(CLUSTER_TOOL), "assets"], capture_output=True, text=True, check=False)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


class ApiServer:
    """A running API server with its etcd, in the folder `run`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.kubeconfig = run / "admin.kubeconfig"
        self._again: subprocess.Popen[bytes] | None = None
        self._pid = int(loads((run / "record.json").read_text())["processes"]["apiserver"][0])
        self._command = Path(f"/proc/{self._pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")

    def config(self) -> ClusterConfig:
        """Returns the administrator's configuration."""
        return config_from_kubeconfig([self.kubeconfig])

    def kill(self) -> None:
        """Sends SIGKILL to the API server. Its data stays in etcd."""
        os.kill(self._pid, signal.SIGKILL)
        if self._again is not None:
            self._again.wait()
            self._again = None
        block_until(lambda: not is_alive(self._pid), "the API server is dead")

    def start(self) -> None:
        """Restarts it on its port and waits until it is ready.

        If a connection took its port as a local end meanwhile, it ends at once and is started
        again.
        """

        def ready() -> bool:
            if self._again is None or self._again.poll() is not None:
                self._run()
            return self._ready()

        block_until(ready, "the API server is ready again")

    def _run(self) -> None:
        with (self.run / "apiserver-again.log").open("ab") as log:
            self._again = subprocess.Popen(
                self._command,
                env=os.environ | _QUICK,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = self._again.pid

    def freeze(self) -> None:
        """Sends SIGSTOP: connections stay open without any response."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Sends SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends a process that `start` created."""
        if self._again is not None:
            self.thaw()
            self.kill()

    def _ready(self) -> bool:
        access = self.config()
        context = ClusterCredentials(access, SystemClock(), 0.0).tls_context()
        assert isinstance(context, ssl.SSLContext)
        try:
            with urllib.request.urlopen(f"{access.server}/readyz", context=context, timeout=5.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def api_server_for_test(run: Path) -> Iterator[ApiServer]:
    """Like `running_api_server`, but skips the test if the binaries are missing."""
    if binaries_folder() is None:
        raise SkipTest(NO_CLUSTER_PROGRAMS)
    with running_api_server(run) as server:
        yield server


@contextmanager
def running_api_server(run: Path) -> Iterator[ApiServer]:
    """Runs a new API server in `run`, which is removed at the end. Raises AssertionError if it
    fails.
    """
    try:
        _cluster("up", "--level", "api", "--run", str(run))
        server = ApiServer(run)
        try:
            yield server
        finally:
            server.stop()
    finally:
        _cluster("down", "--run", str(run))


def _cluster(*arguments: str) -> None:
    command = [sys.executable, str(CLUSTER_TOOL), *arguments]
    done = subprocess.run(command, env=os.environ | _QUICK, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"e2e/cluster {arguments[0]}: {done.stderr[-4_000:]}")
