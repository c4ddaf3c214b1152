"""Plain requests that wait in the gateway: no task waits for them, and every way out is exact."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fairlead.fleet.model import Fleet, Instance, InstanceState, Role, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.proxy.fast_path import FastPathExchange
from fairlead_gateway.telemetry import counters as at
from fairlead_testing.engines.scripted import ScriptedEngine, SilentEngine, scripted_engine
from fairlead_testing.gateway.running_gateway import (
    ALIKE,
    GROWING,
    MODEL_KEY,
    RunningGateway,
    chat,
    count_queued,
    fleet_of,
    gateway_before_busy_engine,
    queue_exits,
    running_gateway,
    slow_fleet,
)
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

SHORT = chat(2) | {"stream": False}
BOTH_QUEUES = pytest.mark.parametrize("objectives", [ALIKE, GROWING], ids=["late-binding", "admission"])
Task = asyncio.Task[RawResponse]


class Scene:
    """A gateway whose only engine is busy with the request `first`."""

    def __init__(self, running: RunningGateway, engine: ScriptedEngine, silent: SilentEngine, first: Task) -> None:
        self.running = running
        self.gateway = running.gateway
        self.engine = engine
        self.silent = silent
        self.first = first

    async def send_queued(self) -> Task:
        """Sends a plain request, which waits without a task."""
        before = count_queued(self.running)
        task = asyncio.get_running_loop().create_task(request(self.running.url, SHORT))
        await wait_until(lambda: count_queued(self.running) == before + 1)
        exchanges = [entry for entry in self.gateway._inflight.values() if isinstance(entry, FastPathExchange)]
        assert len(exchanges) == before + 1
        return task

    async def finish_first(self) -> None:
        self.silent.go_on.set()
        assert (await self.first).status == 200

    def has_no_timeouts(self) -> bool:
        return self.gateway._fast_path.timeouts._oldest is None


@asynccontextmanager
async def busy_scene(objectives: SloTargets = GROWING, limits: Limits | None = None) -> AsyncIterator[Scene]:
    async with gateway_before_busy_engine(limits, objectives=objectives) as parts:
        scene = Scene(*parts)
        yield scene
        await scene.finish_first()
        assert scene.has_no_timeouts()


@BOTH_QUEUES
async def test_plain_request_waits_without_a_task_and_is_sent_in_its_turn(objectives: SloTargets) -> None:
    async with busy_scene(objectives) as scene:
        waiting = await scene.send_queued()
        assert len(scene.engine.calls) == 1
        await scene.finish_first()
        answer = await waiting
        assert answer.status == 200
        assert len(scene.engine.calls) == 2
        logged = scene.gateway.decisions.find(answer.fields["x-fairlead-decision"])[0]
        assert logged.queued_seconds > 0.0
        assert "queue;dur=" in answer.fields["server-timing"]
        is_admission = objectives is GROWING
        assert logged.latest.decision.reason.startswith("queued for 0.") is is_admission
        assert queue_exits(scene.running) == {"deadline" if is_admission else "dispatch-queue": 1}


@BOTH_QUEUES
async def test_client_that_disconnects_takes_its_request_out_of_the_queue(objectives: SloTargets) -> None:
    async with busy_scene(objectives) as scene:
        connection = await RawConnection.connect(scene.running.url)
        await connection.send(post_request(SHORT))
        await wait_until(lambda: count_queued(scene.running) == 1)
        await connection.close()
        await wait_until(lambda: count_queued(scene.running) == 0)
        assert scene.gateway.inflight_count() == 1
        assert scene.has_no_timeouts()
        assert queue_exits(scene.running) == {"left": 1}
        assert scene.gateway.telemetry.models[MODEL_KEY].ints[at.ABANDONED] == 1
        await scene.finish_first()
        assert len(scene.engine.calls) == 1


@BOTH_QUEUES
async def test_timeout_of_plain_requests_covers_the_wait(objectives: SloTargets) -> None:
    async with busy_scene(objectives, replace(Limits(), response_seconds=0.2)) as scene:
        answer = await request(scene.running.url, SHORT)
        assert (answer.status, answer.error["code"]) == (504, "answer_timeout")
        assert scene.gateway.inflight_count() == 1
        assert queue_exits(scene.running) == {"left": 1}
        await scene.finish_first()
        assert len(scene.engine.calls) == 1


async def test_full_queue_refuses_a_plain_request() -> None:
    async with busy_scene(limits=replace(Limits(), queued_requests=1)) as scene:
        waiting = await scene.send_queued()
        refused = await request(scene.running.url, SHORT)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.fields["retry-after"]) >= 1
        assert queue_exits(scene.running) == {"line-full": 1}
        await scene.finish_first()
        assert (await waiting).status == 200


async def test_plain_request_that_waits_too_long_is_refused() -> None:
    async with busy_scene(limits=replace(Limits(), queue_seconds=0.05)) as scene:
        answer = await request(scene.running.url, SHORT)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert "no instance had room for it" in answer.error["message"]
        assert queue_exits(scene.running) == {"held-too-long": 1}
        assert scene.gateway.inflight_count() == 1


@BOTH_QUEUES
async def test_plain_request_goes_elsewhere_when_its_engine_is_lost(objectives: SloTargets) -> None:
    async with busy_scene(objectives) as scene, scripted_engine() as other:
        waiting = await scene.send_queued()
        states = [InstanceState.DRAINING, InstanceState.READY]
        urls = [scene.engine.url, other.url]
        scene.gateway.update_fleet(slow_fleet(urls, objectives, version=2, states=states))
        answer = await waiting
        assert (answer.status, answer.fields["x-fairlead-instance"]) == (200, "e-1/1/0")
        assert len(scene.engine.calls) == 1
        await scene.finish_first()


@BOTH_QUEUES
async def test_plain_request_is_refused_when_its_model_is_removed(objectives: SloTargets) -> None:
    async with busy_scene(objectives) as scene:
        waiting = [await scene.send_queued(), await scene.send_queued()]
        scene.gateway.update_fleet(Fleet(2, 2, {}, {}))
        answers = [await task for task in waiting]
        assert [(answer.status, answer.error["code"]) for answer in answers] == [(503, "no_ready_instance")] * 2
        assert scene.gateway.inflight_count() == 1


@BOTH_QUEUES
async def test_end_of_the_drain_answers_plain_requests_that_wait(objectives: SloTargets) -> None:
    silent = SilentEngine()
    async with (
        scripted_engine(silent.script) as engine,
        running_gateway(slow_fleet([engine.url], objectives)) as running,
    ):
        loop = asyncio.get_running_loop()
        first = loop.create_task(request(running.url, chat(400) | {"stream": False}))
        await wait_until(lambda: len(engine.calls) == 1)
        waiting = loop.create_task(request(running.url, SHORT))
        await wait_until(lambda: count_queued(running) == 1)
        running.gateway.drain()
        running.gateway.end_drain()
        answers = [await first, await waiting]
        assert [(answer.status, answer.error["code"]) for answer in answers] == [(503, "gateway_draining")] * 2
        assert count_queued(running) == running.gateway.inflight_count() == 0
        assert {load.inflight for load in running.loads().values()} == {0}


@BOTH_QUEUES
async def test_closing_the_gateway_ends_plain_requests_that_wait(objectives: SloTargets) -> None:
    async with scripted_engine(SilentEngine().script) as engine:
        connection = None
        async with running_gateway(slow_fleet([engine.url], objectives)) as running:
            first = await RawConnection.connect(running.url)
            await first.send(post_request(chat(400) | {"stream": False}))
            await wait_until(lambda: len(engine.calls) == 1)
            connection = await RawConnection.connect(running.url)
            await connection.send(post_request(SHORT))
            await wait_until(lambda: count_queued(running) == 1)
        assert count_queued(running) == 0
        assert {load.inflight for load in running.loads().values()} == {0}
        await first.close()
        await connection.close()


@BOTH_QUEUES
async def test_plain_request_without_an_idle_connection_goes_on_as_a_task(
    objectives: SloTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with busy_scene(objectives) as scene:
        waiting = await scene.send_queued()
        monkeypatch.setattr(scene.gateway.stages.pool, "take_idle", lambda address: None)
        await scene.finish_first()
        answer = await waiting
        assert (answer.status, answer.fields["x-fairlead-instance"]) == (200, "e-0/0/0")
        assert sum(queue_exits(scene.running).values()) == 1


@BOTH_QUEUES
async def test_client_that_disconnects_as_its_request_becomes_a_task_leaves_no_load(
    objectives: SloTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with busy_scene(objectives) as scene:
        connection = await RawConnection.connect(scene.running.url)
        await connection.send(post_request(SHORT))
        await wait_until(lambda: count_queued(scene.running) == 1)
        (exchange,) = [entry for entry in scene.gateway._inflight.values() if isinstance(entry, FastPathExchange)]

        def take_idle(address: str) -> None:
            # Right after the queue lets it go, before the first step of its task.
            asyncio.get_running_loop().call_soon(exchange.context.response.on_connection_lost)

        monkeypatch.setattr(scene.gateway.stages.pool, "take_idle", take_idle)
        await scene.finish_first()
        await wait_until(lambda: scene.gateway.inflight_count() == 0)
        await wait_until(lambda: {load.inflight for load in scene.running.loads().values()} == {0})
        await connection.close()


async def test_plain_request_whose_model_gets_prefill_instances_goes_on_as_a_task() -> None:
    async with scripted_engine() as engine, scripted_engine() as prefill:
        fleet = fleet_of([engine.url], states=[InstanceState.STARTING])
        async with running_gateway(fleet) as running:
            waiting = asyncio.get_running_loop().create_task(request(running.url, SHORT))
            await wait_until(lambda: count_queued(running) == 1)
            ready = fleet_of([engine.url], version=2)
            instance = Instance("p-0/0/0", "default", "tiny", "prefill", prefill.url, role=Role.PREFILL)
            instances = (*ready.instances[MODEL_KEY], instance)
            running.gateway.update_fleet(replace(ready, instances={MODEL_KEY: instances}))
            answer = await waiting
            assert (answer.status, answer.fields["x-fairlead-instance"]) == (200, "e-0/0/0")
            logged = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])[0]
            assert "no hand-off" in logged.latest.decision.reason


async def test_requests_that_are_sent_behind_a_refused_one_are_served() -> None:
    """A refusal answers a client, whose next request is handled at once."""
    async with busy_scene(limits=replace(Limits(), queue_seconds=0.05)) as scene:
        connection = await RawConnection.connect(scene.running.url)
        await connection.send(post_request(SHORT, close=False) + post_request(SHORT))
        await wait_until(lambda: queue_exits(scene.running) == {"held-too-long": 1})
        await wait_until(lambda: count_queued(scene.running) == 1)
        await connection.close()
        await wait_until(lambda: count_queued(scene.running) == 0)
