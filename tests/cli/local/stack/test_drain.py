"""Scaling down under load, with the real gateway and real simulated engines: no engine gets a
request after Draining.
"""

import asyncio
import sys
from pathlib import Path

import httpx

from fairlead.fleet.file import parse_fleet_file
from fairlead.fleet.model import Instance, Model, ModelRouting
from fairlead.runtime.clock import SystemClock
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import wait_until
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.stack.engine_process import EnginePoolSpec
from fairlead_cli.local.stack.supervisor import StackSpec, StackSupervisor
from fairlead_cli.management.client import ManagementClient
from fairlead_testing.processes import unused_ports

PATIENCE = 120.0
KEY = "default/tiny"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}
ENDLESS = {"max_tokens": 100_000, "stream": True}


def engine(ports: tuple[int, ...], first: int) -> ProcessCommand:
    listen = f"127.0.0.1:{ports[0]}"
    command = (
        "-m",
        "fairlead_sim",
        "engine",
        "--listen",
        listen,
        "--model",
        "tiny",
        "--profile",
        "910b4",
        "--speed",
        "5",
    )
    return ProcessCommand((sys.executable, *command))


class Load:
    """Continuous requests of several clients until it is stopped; keeps every status.

    ``sent`` has, for each request, its start (the loop's time) and the instance that answered it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: list[int] = []
        self.sent: list[tuple[float, str]] = []
        self.answered = asyncio.Event()
        self._running = True
        self._tasks = [asyncio.ensure_future(self._client()) for _ in range(4)]

    async def wait_answers(self, count: int) -> None:
        """Waits for ``count`` more answers."""
        target = len(self.statuses) + count
        while len(self.statuses) < target:
            self.answered.clear()
            await self.answered.wait()

    async def stop(self) -> None:
        self._running = False
        await asyncio.gather(*self._tasks)

    async def _client(self) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            while self._running:
                started = asyncio.get_running_loop().time()
                answer = await client.post(f"{self.url}/v1/chat/completions", json=CHAT)
                self.sent.append((started, answer.headers["x-fairlead-instance"]))
                self.statuses.append(answer.status_code)
                self.answered.set()


class PatientClient(ManagementClient):
    """Lets no engine leave before it has been seen draining."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.has_seen = asyncio.Event()

    async def in_flight_requests(self, instance_id: str) -> int:
        await self.has_seen.wait()
        return await super().in_flight_requests(instance_id)


class LeavingEngine:
    """Observations of the engine that leaves: its id, the time at which the gateway noticed it, and
    its own metrics.
    """

    def __init__(self, instance_id: str, url: str) -> None:
        self.id = instance_id
        self.url = url
        self.noticed_at = float("inf")
        self.is_watched = asyncio.Event()
        self.states: list[dict[str, int]] = []

    async def watch(self, management: PatientClient) -> None:
        """Records the engine's state until it ends. A stream of its own keeps it until then."""
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            async with client.stream("POST", f"{self.url}/v1/chat/completions", json=CHAT | ENDLESS) as stream:
                await anext(stream.aiter_bytes())
                self.is_watched.set()
                await wait_until(lambda: management.has_stopped_routing(self.id), 0.0)
                self.noticed_at = asyncio.get_running_loop().time()
                self.states.append((await client.get(f"{self.url}/sim/state")).json())
                management.has_seen.set()
            while True:
                try:
                    self.states.append((await client.get(f"{self.url}/sim/state")).json())
                except httpx.HTTPError:
                    return
                await asyncio.sleep(0.005)


async def scale_down_under_load(directory: Path) -> tuple[Load, LeavingEngine]:
    """Scales three engines down to two while requests keep coming."""
    reaper = Reaper(None)
    listen, manage = unused_ports(2)
    file = directory / "fleet.yaml"
    arguments = ("--fleet", str(file), "--listen", f"127.0.0.1:{listen}", "--manage", f"127.0.0.1:{manage}")
    gateway = ProcessCommand((sys.executable, "-m", "fairlead_gateway", *arguments))
    template = Instance("", "default", "tiny", "main", "", engine="sim")
    pool = EnginePoolSpec(
        Model("default", "tiny", routing=ModelRouting("round-robin")), "main", 3, template, engine, "main"
    )
    url = f"http://127.0.0.1:{manage}"
    async with PatientClient(url) as management:
        spec = StackSpec((pool,), gateway, url, file)
        supervisor = StackSupervisor(
            spec, reaper=reaper, clock=SystemClock(), routing=management, on_event=lambda line: None
        )
        try:
            supervisor.start()
            async with asyncio.timeout(PATIENCE):
                await supervisor.wait_ready()
                load = Load(f"http://127.0.0.1:{listen}")
                await load.wait_answers(30)
                engine_process = supervisor.engines[-1]
                leaving = LeavingEngine(engine_process.instance_ids()[0], engine_process.urls()[0])
                watching = asyncio.ensure_future(leaving.watch(management))
                await leaving.is_watched.wait()
                await supervisor.scale(KEY, "main", 2)
                await watching
                await load.wait_answers(30)
                await load.stop()
                assert [
                    instance.id for instance in parse_fleet_file(file.read_text(), file=str(file)).instances[KEY]
                ] == [engine_process.instance_ids()[0] for engine_process in supervisor.engines]
        finally:
            await supervisor.stop(asyncio.Event())
            reaper.close()
    return load, leaving


async def test_scale_down_under_load_loses_no_request(tmp_path: Path) -> None:
    load, leaving = await scale_down_under_load(tmp_path)
    assert set(load.statuses) == {200}
    before = [instance for started, instance in load.sent if started < leaving.noticed_at]
    after = [instance for started, instance in load.sent if started >= leaving.noticed_at]
    assert leaving.id in before
    assert after
    assert leaving.id not in after
    assert leaving.states, "the engine was watched while it drained"
    assert {state["requests_while_draining"] for state in leaving.states} == {0}
