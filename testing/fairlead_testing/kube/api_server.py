"""A real Kubernetes API server for tests, which can be killed, frozen and brought back: ``e2e/cluster`` at its level *api*.

Always one of our own, started in seconds on free ports of loopback: what ``KUBECONFIG`` names may be somebody's production, and
nobody may kill that one.
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
from fairlead_testing.processes import is_alive, wait_until

CLUSTER_TOOL = Path(__file__).parents[3] / "e2e" / "cluster"
MISSING_API_SERVER_MESSAGE = "no kube-apiserver: `make test-tools` compiles it, or KUBEBUILDER_ASSETS names a folder"


def binaries_folder() -> Path | None:
    """The folder with etcd and kube-apiserver: that of KUBEBUILDER_ASSETS, else what was compiled into the cache, else None."""
    if not CLUSTER_TOOL.exists():
        return None
    asked = subprocess.run([sys.executable, str(CLUSTER_TOOL), "assets"], capture_output=True, text=True, check=False)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


class ApiServer:
    """One that runs, with its etcd, in the folder ``run``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.kubeconfig = run / "admin.kubeconfig"
        self._again: subprocess.Popen[bytes] | None = None
        self._pid = int(loads((run / "record.json").read_text())["processes"]["apiserver"][0])
        self._command = Path(f"/proc/{self._pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")

    def config(self) -> ClusterConfig:
        """As its administrator."""
        return config_from_kubeconfig([self.kubeconfig])

    def kill(self) -> None:
        """SIGKILL to the API server; what it stored stays in etcd."""
        os.kill(self._pid, signal.SIGKILL)
        if self._again is not None:
            self._again.wait()
            self._again = None
        wait_until(lambda: not is_alive(self._pid), "the API server is dead")

    def start(self) -> None:
        """Bring it back on its port; returns when it is ready.

        While it was away somebody's connection may have got its port as the local end: then it ends at once, and is started anew.
        """

        def ready() -> bool:
            if self._again is None or self._again.poll() is not None:
                self._run()
            return self._ready()

        wait_until(ready, "the API server is ready again")

    def _run(self) -> None:
        with (self.run / "apiserver-again.log").open("ab") as log:
            self._again = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pid = self._again.pid

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is said."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """End one that ``start`` brought back, since nobody else knows of it."""
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
    """``started``, for tests: where there are no binaries the test is skipped and says what would make them."""
    if binaries_folder() is None:
        raise SkipTest(MISSING_API_SERVER_MESSAGE)
    with running_api_server(run) as server:
        yield server


@contextmanager
def running_api_server(run: Path) -> Iterator[ApiServer]:
    """A fresh one in the folder ``run``, which is removed at the end. Raises AssertionError when it does not come up."""
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
    done = subprocess.run([sys.executable, str(CLUSTER_TOOL), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"e2e/cluster {arguments[0]}: {done.stderr[-4_000:]}")
