"""Operator processes on a real API server, and a stand-in for the cluster's controllers."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, metadata_of, name_of
from fairlead_testing.kube.installed_chart import apply_crds, apply_namespace
from fairlead_testing.ports import unused_port

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
