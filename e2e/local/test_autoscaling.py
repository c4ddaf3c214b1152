"""Local mode sizes a pool while it is used: from no engine at all, through five times what one
carries, and back; no request fails.

Time runs ten times as fast: what takes ten minutes takes one. The autoscaler is killed in the
middle of growing, and the gateway's metrics are away for a while.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.model import InstanceState
from fairlead_testing.http.raw_client import request
from fairlead_testing.local_stack import LocalStack
from fairlead_testing.processes import PATIENCE_SECONDS, block_until, find_process, is_alive

SPEED = 10
PER_SECOND = 0.5
"""Simulated requests a simulated second: what one engine carries."""
MANY = 5
"""Engines that only the full load needs."""
FEW = 3
"""Engines that the load of one does not need."""
MANIFEST = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://org/tiny"}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 0, maxReplicas: 12}]
  slo: {ttft: 10s, tpot: 1s}
  autoscaling: {mode: Auto, stabilizationWindow: 30s, zero: {after: 30s}}
"""


class LocalLoad:
    """Streams that begin at random moments, ``rate`` a second; what failed is kept in words."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rate = 0.0
        self.sent = 0
        self.failed: list[str] = []
        self._random = random.Random(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sends until cancelled. Requests have due times, so a late one delays no other."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if self.rate == 0.0:
                await asyncio.sleep(0.01)
                due = loop.time()
                continue
            due += self._random.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - loop.time()))
            task = asyncio.create_task(self.send_one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def send_one(self) -> None:
        """Sends one request, with a prompt that no engine has cached."""
        self.sent += 1
        words = " ".join(f"w{self._random.getrandbits(30):x}" for _ in range(400))
        body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": 60, "stream": True}
        try:
            answer = await request(self.url, body)
        except (OSError, TimeoutError, AssertionError) as error:
            self.failed.append(repr(error))
            return
        if answer.status != 200 or not answer.complete or "[DONE]" not in answer.events:
            self.failed.append(f"{answer.status}: {answer.body[-200:]!r}")

    async def finished(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)


def ready(up: LocalStack) -> int:
    fleet = httpx.get(f"{up.manage}/api/fleet", timeout=PATIENCE_SECONDS).json()
    return sum(instance["state"] == "Ready" for model in fleet["models"] for instance in model["instances"])


def served(up: LocalStack) -> int:
    """Engines that stay, as the local supervisor has them; also while the gateway is stopped."""
    file = Path(up.state()["fleet_file"])
    fleet = parse_fleet_file(file.read_text(), file=str(file))
    states = [instance.state for instances in fleet.instances.values() for instance in instances]
    return len(states) - states.count(InstanceState.DRAINING)


async def until(seen: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(block_until, seen, what)


async def until_planned(up: LocalStack, seen: Callable[[], bool], what: str) -> None:
    """Waits for a number of engines. Raises AssertionError with the autoscaler's reasons."""
    try:
        await until(seen, what)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{status_lines(up, 'explain', 'scaling', 'tiny')}") from None


def notes(up: LocalStack) -> str:
    """Returns the problems that the autoscaler reports; none while it starts."""
    try:
        return httpx.get(f"{up.state()['autoscaler']}/readyz", timeout=PATIENCE_SECONDS).text
    except httpx.ConnectError:
        return ""


def status_lines(up: LocalStack, *words: str) -> str:
    """Returns the output of a verb about this stack."""
    done = subprocess.run(
        [sys.executable, "-m", "fairlead_cli", *words], env=up.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.alone  # ten times as fast, engines that wait for a processor are slow engines: more are needed
def test_a_pool_follows_its_load_from_nothing_and_back_and_no_request_fails(tmp_path: Path) -> None:
    with LocalStack(tmp_path, "--speed", f"{SPEED}", manifest=MANIFEST) as up:
        up.wait_ready()
        assert ready(up) == 0
        asyncio.run(_story(up))


async def _story(up: LocalStack) -> None:
    load = LocalLoad(up.url)
    await load.send_one()
    assert load.failed == []
    running = asyncio.create_task(load.run())
    load.rate = PER_SECOND * SPEED
    await until(lambda: load.sent > 20, "one engine's load is served")
    load.rate *= 5
    await until_planned(up, lambda: ready(up) >= FEW, "the pool grows")
    gone = find_process(up.process.pid, "fairlead_autoscaler")
    os.kill(gone, signal.SIGKILL)
    await until_planned(up, lambda: ready(up) >= MANY, "the pool carries five times the load")
    await until(lambda: not is_alive(gone), "the autoscaler that was killed is gone")
    helper = find_process(up.process.pid, "fairlead_gateway")
    os.kill(helper, signal.SIGSTOP)  # its workers serve on, but arrivals are not reported
    await until(lambda: "is missing" in notes(up), "the autoscaler misses the gateway")
    before, sent = served(up), load.sent
    await until(lambda: load.sent >= sent + 20, "requests are sent while the metrics are missing")
    assert served(up) >= before  # no engine is removed on missing metrics
    os.kill(helper, signal.SIGCONT)
    await until(lambda: "is missing" not in notes(up), "the gateway is heard again")
    load.rate /= 15  # a third of what one carries, should engines be slower than simulated
    await until_planned(up, lambda: ready(up) < FEW, "the pool shrinks again")
    running.cancel()
    await load.finished()
    assert load.failed == []
    assert load.sent > 100
    explained = status_lines(up, "explain", "scaling", "tiny")
    assert "capacity" in explained
    assert "planned: " in explained
    assert "recorded settings" in status_lines(up, "replay-scaling")
