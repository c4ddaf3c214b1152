"""Callers in the queues of a running gateway: credit, and bounds of each caller."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, run_async, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

SLOW = EngineProfile("slow", 1.0, kv_tokens=1_000_000, step_tokens=8)
"""A second a token: the engine works nothing off while a test runs."""
Task = asyncio.Task[RawResponse]


def accepted_keys() -> ApiKeys:
    return ApiKeys(b"pepper", {key_digest(name.encode(), b"pepper"): name for name in ("flood", "steady")})


def slow_fleet(urls: list[str], **more: Any) -> Fleet:
    fleet = fleet_of(urls, objectives=SloTargets(ttft_seconds=10_000.0), **more)
    instances = tuple(replace(instance, profile=SLOW) for instance in fleet.instances[MODEL_KEY])
    return replace(fleet, instances={MODEL_KEY: instances})


class StepwiseEngine:
    """A script that answers one waiting request at a time."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.turns = asyncio.Semaphore(0)

    async def script(self, call: EngineCall) -> None:
        self.order.append(call.json["user"])
        await self.turns.acquire()
        await well_behaved(call)


class Scene:
    def __init__(self, running: RunningGateway, engine: ScriptedEngine, steps: StepwiseEngine) -> None:
        self.running = running
        self.engine = engine
        self.steps = steps

    def send(self, caller: str, name: str) -> Task:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "w " * 40}], "stream": True, "user": name}
        more = f"authorization: Bearer {caller}\r\n"
        return asyncio.get_running_loop().create_task(request(self.running.url, body, more=more))

    def queued(self) -> int:
        return self.running.gateway.stack.admission.queued().get(MODEL_KEY, 0)

    async def send_queued(self, caller: str, name: str) -> Task:
        before = self.queued()
        task = self.send(caller, name)
        await wait_until(lambda: self.queued() == before + 1)
        return task

    async def finish(self) -> None:
        for _ in range(100):
            self.steps.turns.release()


async def with_scene(use: Callable[[Scene], Awaitable[None]], limits: Limits | None = None, **more: Any) -> None:
    steps = StepwiseEngine()
    async with (
        scripted_engine(steps.script) as engine,
        running_gateway(slow_fleet([engine.url], **more), limits, api_keys=accepted_keys()) as running,
    ):
        await use(Scene(running, engine, steps))


def test_full_queue_refuses_the_newest_request_of_the_caller_that_has_most() -> None:
    async def use(scene: Scene) -> None:
        first = scene.send("flood", "f0")
        await wait_until(lambda: len(scene.steps.order) == 1)
        steady = [await scene.send_queued("steady", "s0")]
        flood = [await scene.send_queued("flood", f"f{number}") for number in (1, 2, 3)]
        steady.append(scene.send("steady", "s1"))
        refused = await flood[2]
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert "3 of them of this caller" in refused.error["message"]
        assert int(refused.fields["retry-after"]) >= 1
        await wait_until(lambda: scene.queued() == 4)
        await scene.finish()
        assert [(await task).status for task in (first, *flood[:2], *steady)] == [200] * 5

    run_async(with_scene(use, replace(Limits(), queued_requests=4)))
