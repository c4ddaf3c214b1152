"""Local mode lets idle engines sleep and wakes them with the next request: real processes, no loss.

Time runs ten times as fast. Simulated engines start so soon that sleep would not pay, so `after`
sets its length. The autoscaler is killed while all sleep, and so is a sleeping engine.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.model import Instance, InstanceState
from fairlead_testing.http.raw_client import request
from fairlead_testing.local_stack import LocalStack
from fairlead_testing.processes import PATIENCE_SECONDS, block_until, find_process, is_alive

MANIFEST = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://org/tiny"}
  engine: {type: Sim, args: ["--reload-seconds=5"]}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 0, maxReplicas: 3}]
  slo: {ttft: 30s, tpot: 1s}
  autoscaling: {mode: Auto, sleep: {max: 1, level: 2, after: 1h}}
"""


def instances(up: LocalStack) -> tuple[Instance, ...]:
    path = Path(up.state()["fleet_file"])
    return parse_fleet_file(path.read_text(), file=str(path)).instances["default/tiny"]


def sleeping_engines(up: LocalStack) -> bool:
    """There is one engine, and it sleeps by everybody's word."""
    found = instances(up)
    if [one.state for one in found] != [InstanceState.SLEEPING]:
        return False
    return bool(httpx.get(f"{found[0].url}/is_sleeping", timeout=PATIENCE_SECONDS).json()["is_sleeping"])


async def until(seen: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(block_until, seen, what)


async def send_one(up: LocalStack) -> str:
    """A request, answered whole."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "seed": 1}
    answer = await request(up.url, body)
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["message"]["content"])


def test_engines_sleep_where_nobody_asks_and_wake_with_the_next_request(tmp_path: Path) -> None:
    with LocalStack(tmp_path, "--speed", "10", manifest=MANIFEST) as up:
        up.wait_ready()
        assert instances(up) == ()
        asyncio.run(_story(up))


async def _story(up: LocalStack) -> None:
    before = await send_one(up)
    await until(lambda: sleeping_engines(up), "the engine sleeps")
    (engine,) = instances(up)
    autoscaler = find_process(up.process.pid, "fairlead_autoscaler")
    os.kill(autoscaler, signal.SIGKILL)
    assert await send_one(up) == before, "the weights were loaded anew before the first request"
    assert not is_alive(autoscaler)
    assert [found.id for found in instances(up)] == [engine.id], "it was woken, and nobody started"
    assert "main-0 is awake" in "".join(up.lines)
    await until(lambda: sleeping_engines(up), "it sleeps again")
    os.kill(find_process(up.process.pid, "fairlead_sim"), signal.SIGKILL)
    await until(lambda: "main-0 is ready again" in "".join(up.lines), "the engine that died is started")
    await until(lambda: sleeping_engines(up), "and sleeps")
    assert await send_one(up) == before
