"""An asynchronous operator process for tests, with its health and metrics over HTTP.

Operator processes on a real API server, and a stand-in for the cluster's controllers.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, metadata_of, name_of
from fairlead_testing.kube.helm import apply_crds, apply_namespace
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

PATIENCE_SECONDS = 120.0
_PORT_TAKEN_MESSAGE = "address already in use"


@dataclass(slots=True)
class OperatorProcess:
    """A running operator. `log` is the file of its output."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def get(self, path: str) -> str:
        """Returns the response of a path, also for an error status. Raises OSError without a
        response.
        """
        return await asyncio.to_thread(self._get, path)

    async def is_leading(self) -> bool:
        """Returns True if it leads and has listed everything."""
        return "fairlead_operator_synced 1.0" in await self.get("/metrics")

    async def stop(self) -> int:
        """Stops the process and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10.0) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()


@asynccontextmanager
async def operator_process(
    kubeconfig: Path, log: Path, *options: str, **variables: str
) -> AsyncIterator[OperatorProcess]:
    """Runs an operator until the block ends, with simulated engines.

    variables: `FAIRLEAD_…` variables, named in lower case without the prefix.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    given = {f"FAIRLEAD_{name.upper()}": value for name, value in variables.items()}
    usual = {"KUBECONFIG": str(kubeconfig), "FAIRLEAD_ENGINE_IMAGES": "sim=example.com/sim:1"}
    environ = others | usual | given
    operator = await _start(log, options, environ)
    try:
        while not await _answers(operator):
            await operator.process.wait()
            assert _PORT_TAKEN_MESSAGE in await asyncio.to_thread(log.read_text), f"it ended: see {log}"
            operator = await _start(log, options, environ)
        yield operator
    finally:
        with contextlib.suppress(ProcessLookupError):
            operator.process.kill()
        await operator.process.wait()


async def _start(log: Path, options: tuple[str, ...], environ: dict[str, str]) -> OperatorProcess:
    """Starts it on a port that was free a moment ago; another process may take it first."""
    port = unused_port()
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", str(port), *options),
            env=environ,
            stdout=out,
            stderr=out,
        )
    return OperatorProcess(process, f"http://127.0.0.1:{port}", log)


async def _answers(operator: OperatorProcess) -> bool:
    """Returns True once it responds; False if it ends first."""
    found = False

    async def decided() -> bool:
        nonlocal found
        if operator.process.returncode is not None:
            return True
        with contextlib.suppress(OSError):
            found = bool(await operator.get("/healthz"))
        return found

    await wait_until(decided)
    return found


ROOT = Path(__file__).parents[3]
OPERATOR_MODULE = ("-m", "fairlead_operator")


@dataclass(slots=True)
class RunningOperator:
    """An operator process and its port."""

    process: "subprocess.Popen[bytes]"
    port: int


class OperatorProcesses:
    """Operator processes for one namespace, each with its own port. `more` are further settings."""

    def __init__(self, kubeconfig: Path, namespace: str, logs: Path, more: Mapping[str, str] | None = None) -> None:
        self.running: list[RunningOperator] = []
        self._kubeconfig, self._namespace, self._logs = kubeconfig, namespace, logs
        self._more = dict(more or {})

    def start(self, *, lease_namespace: str | None = None, command: Sequence[str] = OPERATOR_MODULE) -> int:
        """Starts a process and returns its index.

        With another `lease_namespace`, it is independent of the others.
        """
        port = unused_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")},
            "KUBECONFIG": str(self._kubeconfig),
            "FAIRLEAD_ENGINE_IMAGES": "sim=fairlead.io/sim:1",
            "FAIRLEAD_WATCH_NAMESPACES": self._namespace,
            "FAIRLEAD_LEASE": "6s",
            **self._more,
        }
        whole = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
        whole += ["--lease-namespace", lease_namespace or self._namespace]
        with (self._logs / f"{self._namespace}-{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen(whole, env=environment, stdout=log, stderr=log)
        self.running.append(RunningOperator(process, port))
        return len(self.running) - 1

    def get(self, which: int, path: str) -> str:
        """Returns the response of a path; empty on failure."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.running[which].port}{path}", timeout=5.0) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def is_leading(self, which: int) -> bool:
        """Returns True if this process leads."""
        return "leading" in self.get(which, "/readyz")

    def is_alive(self, which: int) -> bool:
        """Returns True if this process has not ended."""
        return self.running[which].process.poll() is None

    def send_signal(self, which: int, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        self.running[which].process.send_signal(number)

    def stop(self, which: int, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops a process and returns its exit code."""
        self.send_signal(which, number)
        return self.running[which].process.wait(60.0)

    def metrics(self, which: int) -> dict[str, float]:
        """Returns the metrics without labels; empty on failure."""
        lines = (line.rsplit(" ", 1) for line in self.get(which, "/metrics").splitlines() if line[:1] != "#")
        return {name.removeprefix("fairlead_operator_"): float(value) for name, value in lines}

    def is_idle(self, which: int) -> bool:
        """Returns True if it has reconciled and its queue is empty."""
        found = self.metrics(which)
        return found.get("reconciles_total", 0) >= 1 and found.get("queue_waiting") == 0 == found.get("queue_running")

    def close(self) -> None:
        """Kills the remaining processes."""
        for one in self.running:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGCONT)
                one.process.kill()
                one.process.wait(30.0)

    def logs(self) -> str:
        """Returns the ends of all logs."""
        return "\n".join(path.read_text()[-3_000:] for path in sorted(self._logs.glob(f"{self._namespace}-*.log")))


async def apply_crds_and_namespaces(api: KubeApi, *namespaces: str) -> None:
    """Applies the CRDs and creates namespaces."""
    await apply_crds(api, ROOT / "crds")
    for name in namespaces:
        await apply_namespace(api, name)


async def run_deployments(api: KubeApi, namespace: str) -> list[str]:
    """Acts once like kube-controller-manager: every Deployment gets its ready instances.

    Returns their names.
    """
    found = (await api.list(DEPLOYMENTS, namespace)).items
    for one in found:
        asked = one["spec"]["replicas"]
        status = {
            "replicas": asked,
            "readyReplicas": asked,
            "updatedReplicas": asked,
            "observedGeneration": metadata_of(one)["generation"],
        }
        if any((one.get("status") or {}).get(key, 0) != value for key, value in status.items()):
            patch = {"status": status}
            await api.patch_merge(DEPLOYMENTS, namespace, name_of(one), patch, "kcm", subresource="status")
    return [name_of(one) for one in found]
