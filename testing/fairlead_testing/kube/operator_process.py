"""An asynchronous operator process for tests, with its health and metrics over HTTP.

Operator processes on a real API server, and a stand-in for the cluster's controllers.
"""

import asyncio
import os
import signal
import subprocess
import sys
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

ROOT = Path(__file__).parents[3]
OPERATOR_MODULE = ("-m", "fairlead_operator")
_PORT_TAKEN_MESSAGE = "address already in use"


@dataclass(slots=True)
class OperatorProcess:
    """A started operator on a port of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def read(self, path: str) -> str:
        """Returns what the path answers with 200, else an empty text."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10.0) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    async def get(self, path: str) -> str:
        return await asyncio.to_thread(self.read, path)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60.0)

    def close(self) -> None:
        """Ends it, also when it is frozen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(30.0)


def start_operator(
    kubeconfig: Path, log: Path, *options: str, command: Sequence[str] = OPERATOR_MODULE, **variables: str
) -> OperatorProcess:
    """Starts an operator.

    variables: of the environment, without `FAIRLEAD_` and in lower case.
    """
    port = unused_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    environ |= {"KUBECONFIG": str(kubeconfig), "FAIRLEAD_ENGINE_IMAGES": "sim=fairlead.io/sim:1"}
    environ |= {f"FAIRLEAD_{name.upper()}": value for name, value in variables.items()}
    whole = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("ab") as out:  # of all starts
        return OperatorProcess(subprocess.Popen(whole, env=environ, stdout=out, stderr=out), port, log)


@asynccontextmanager
async def operator_process(
    kubeconfig: Path, log: Path, *options: str, **variables: str
) -> AsyncIterator[OperatorProcess]:
    """Runs an operator until the block ends. A port that was taken meanwhile is changed."""
    operator = start_operator(kubeconfig, log, *options, **variables)

    async def answers() -> bool:
        nonlocal operator
        if operator.process.poll() is not None:
            assert _PORT_TAKEN_MESSAGE in await asyncio.to_thread(log.read_text), f"it ended: see {log}"
            operator = start_operator(kubeconfig, log, *options, **variables)
        return bool(await operator.get("/healthz"))

    try:
        await wait_until(answers)
        yield operator
    finally:
        operator.close()


class OperatorProcesses:
    """Operators of one namespace, by number."""

    def __init__(self, kubeconfig: Path, namespace: str, logs: Path, more: Mapping[str, str] | None = None) -> None:
        self.running: list[OperatorProcess] = []
        self._kubeconfig, self._namespace, self._logs = kubeconfig, namespace, logs
        self._more = {"watch_namespaces": namespace, "lease": "6s"} | dict(more or {})

    def start(self, *, lease_namespace: str | None = None, command: Sequence[str] = OPERATOR_MODULE) -> int:
        """Returns the number of the started operator."""
        log = self._logs / f"{self._namespace}-{len(self.running)}.log"
        lease = ("--lease-namespace", lease_namespace or self._namespace)
        self.running.append(start_operator(self._kubeconfig, log, *lease, command=command, **self._more))
        return len(self.running) - 1

    def is_leading(self, which: int) -> bool:
        return "leading" in self.running[which].read("/readyz")

    def is_alive(self, which: int) -> bool:
        return self.running[which].process.poll() is None

    def is_idle(self, which: int) -> bool:
        found = self.metrics(which)
        return found.get("reconciles_total", 0) >= 1 and found.get("queue_waiting") == 0 == found.get("queue_running")

    def metrics(self, which: int) -> dict[str, float]:
        """Returns its metrics without labels' meaning: whole names, without the common prefix."""
        page = self.running[which].read("/metrics")
        lines = (line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
        return {name.removeprefix("fairlead_operator_"): float(value) for name, value in lines}

    def close(self) -> None:
        for one in self.running:
            one.close()

    def logs(self) -> str:
        return "\n".join(one.log.read_text()[-3_000:] for one in self.running)


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
