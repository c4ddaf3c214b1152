"""The operator before a real API server: latency alone, a thousand models, steady state, a restart.

No controller manager runs, so that what is measured is the operator and the API server: children are made, and no pod follows.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from fairlead.clock import SystemClock
from fairlead.kube.client import KubeApi
from fairlead.kube.resource import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest
from fairlead.testing.kube import ApiServer, started

ROOT = Path(__file__).parents[2]
NAMESPACE, PORT, AT_ONCE = "bench", 18_099, 50
PATIENCE_SECONDS = 300.0


class Process:
    """One operator. CPU in seconds, memory in MiB, as the kernel counts them."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "FAIRLEAD_ENGINE_IMAGES": "sim=fairlead.io/sim:1",
            "FAIRLEAD_LEASE": "60s",
        }
        command = [sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", str(PORT)]
        with log.open("ab") as opened:
            self._process = subprocess.Popen(command, env=environment, stdout=opened, stderr=opened)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, name: str) -> float:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    def metrics(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10.0) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        pairs = [line.rsplit(" ", 1) for line in lines if line and line[0] != "#"]
        return {name.removeprefix("fairlead_operator_"): float(value) for name, value in pairs}

    def writes(self) -> float:
        found = self.metrics()
        return sum(found.get(f"{name}_total", 0.0) for name in ("applied", "pruned", "statuses"))

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60.0)


async def wait(what: str, done: Any) -> None:
    """Until ``done()`` holds."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not await asyncio.to_thread(done):
        if time.monotonic() > end:
            raise SystemExit(f"waited {PATIENCE_SECONDS:g} s in vain: {what}")
        await asyncio.sleep(0.05)


def model(name: str, *args: str) -> Manifest:
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen3-8B"},
            "engine": {"kind": "sim", "args": list(args)},
            "pools": [{"accelerator": "cpu"}],
        },
    }


async def alone(api: KubeApi, prefix: str, count: int) -> list[float]:
    """Seconds from asking for one model until its Deployment is there, one after the other; by a watch, not by asking."""
    found: list[float] = []
    version = (await api.list(DEPLOYMENTS, NAMESPACE)).resource_version
    arrived: dict[str, asyncio.Event] = {f"{prefix}{number:03d}-main": asyncio.Event() for number in range(count)}

    async def watch() -> None:
        async for change in api.watch(DEPLOYMENTS, NAMESPACE, resource_version=version):
            event = arrived.get(change.object["metadata"].get("name", ""))
            if event is not None:
                event.set()

    watching = asyncio.ensure_future(watch())
    try:
        for number in range(count):
            began = time.monotonic()
            await api.apply(model(f"{prefix}{number:03d}"), "kubectl")
            await asyncio.wait_for(arrived[f"{prefix}{number:03d}-main"].wait(), 30.0)
            found.append(time.monotonic() - began)
    finally:
        watching.cancel()
    return found


async def crowd(api: KubeApi, process: Process, names: list[str], *args: str) -> dict[str, float]:
    """Apply all of them, and wait until the operator has said something of each and rests."""
    before, cpu, began = process.metrics(), process.cpu_seconds(), time.monotonic()
    room = asyncio.Semaphore(AT_ONCE)

    async def put(name: str) -> None:
        async with room:
            await api.apply(model(name, *args), "kubectl")

    await asyncio.gather(*(put(name) for name in names))
    submitted = time.monotonic() - began
    statuses = before.get("statuses_total", 0.0) + len(names)

    def rested() -> bool:
        now = process.metrics()
        idle = now.get("queue_waiting") == 0.0 == now.get("queue_running")
        return idle and now.get("statuses_total", 0.0) >= statuses

    await wait("all models have a status", rested)
    after = process.metrics()
    names_of = ("reconciles", "applied", "statuses", "reconcile_failures")
    counts = {name: after[f"{name}_total"] - before.get(f"{name}_total", 0.0) for name in names_of}
    spent = process.cpu_seconds() - cpu
    return {
        "submitted_seconds": round(submitted, 2),
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(spent, 2),
        "cpu_ms_per_model": round(1000 * spent / len(names), 2),
        "cpu_ms_per_write": round(1000 * spent / (counts["applied"] + counts["statuses"]), 2),
        **counts,
        "rss_mib": round(process.memory("VmRSS"), 1),
    }


async def measure(server: ApiServer, count: int, rest_seconds: float, log: Path) -> dict[str, Any]:
    async with KubeApi(server.access(), SystemClock(), random.random) as api:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            await api.apply(yaml.safe_load(path.read_text()), "bench")
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, "bench")
        process = Process(server.kubeconfig, log)
        try:
            await wait("the operator leads", lambda: process.metrics().get("leading") == 1.0)
            found: dict[str, Any] = {"models": count, "rss_mib_idle": round(process.memory("VmRSS"), 1)}
            await alone(api, "warm", 3)
            seconds = sorted(await alone(api, "one", 20))
            found["alone_ms"] = {
                "p50": round(1000 * statistics.median(seconds), 1),
                "worst": round(1000 * seconds[-1], 1),
            }
            names = [f"m{number:04d}" for number in range(count)]
            found["create"] = await crowd(api, process, names)
            found["update"] = await crowd(api, process, names, "--max-num-seqs=3")
            writes, cpu = process.writes(), process.cpu_seconds()
            await asyncio.sleep(rest_seconds)
            found["rest"] = {
                "seconds": rest_seconds,
                "writes": process.writes() - writes,
                "cpu_seconds": round(process.cpu_seconds() - cpu, 2),
            }
        finally:
            process.end()
        process = Process(server.kubeconfig, log)
        try:
            began = time.monotonic()
            await wait(
                "the second operator has looked", lambda: process.metrics().get("reconciles_total", 0.0) >= count
            )
            found["restart"] = {
                "seconds": round(time.monotonic() - began, 2),
                "writes": process.writes(),
                "rss_mib": round(process.memory("VmRSS"), 1),
                "rss_mib_most": round(process.memory("VmHWM"), 1),
            }
        finally:
            process.end()
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds of steady state")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "operator.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder) / "run") as server:
        log = Path(folder) / "operator.log"
        try:
            found = asyncio.run(measure(server, options.models, options.rest, log))
        except BaseException:
            print(log.read_text()[-4_000:], file=sys.stderr)
            raise
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
