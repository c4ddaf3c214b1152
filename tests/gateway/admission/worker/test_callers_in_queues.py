"""Callers in the queues of a running gateway: credit, and bounds of each caller."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet, Instance, Model, Role, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, token, usage, well_behaved
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

SLOW = EngineProfile("slow", 1.0, kv_tokens=1_000_000, step_tokens=8)
"""A second a token: the engine works nothing off while a test runs."""
HANDOFF = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1]],
    "remote_engine_id": "an-engine",
    "remote_host": "127.0.0.1",
    "remote_port": 5801,
}
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
        if call.json.get("kv_transfer_params"):
            await call.respond({"choices": [{"index": 0}], "kv_transfer_params": HANDOFF})
        else:
            await well_behaved(call)


class Scene:
    def __init__(self, running: RunningGateway, engine: ScriptedEngine, steps: StepwiseEngine) -> None:
        self.running = running
        self.engine = engine
        self.steps = steps

    def send(self, caller: str, name: str, **fields: Any) -> Task:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "w " * 40}], "stream": True, "user": name}
        body |= fields
        more = f"authorization: Bearer {caller}\r\n"
        return asyncio.get_running_loop().create_task(request(self.running.url, body, more=more))

    def queued(self) -> int:
        return self.running.gateway.stages.admission.queued().get(MODEL_KEY, 0)

    async def send_queued(self, caller: str, name: str, **fields: Any) -> Task:
        before = self.queued()
        task = self.send(caller, name, **fields)
        await wait_until(lambda: self.queued() == before + 1)
        return task

    async def finish(self) -> None:
        for _ in range(100):
            self.steps.turns.release()


@asynccontextmanager
async def with_scene(limits: Limits | None = None, **more: Any) -> AsyncIterator[Scene]:
    steps = StepwiseEngine()
    async with (
        scripted_engine(steps.script) as engine,
        running_gateway(slow_fleet([engine.url], **more), limits, api_keys=accepted_keys()) as running,
    ):
        yield Scene(running, engine, steps)


BOTH_KINDS = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])


@BOTH_KINDS
async def test_full_queue_refuses_the_newest_request_of_the_caller_that_has_most(stream: bool) -> None:
    async with with_scene(replace(Limits(), queued_requests=4)) as scene:
        first = scene.send("flood", "f0")
        await wait_until(lambda: len(scene.steps.order) == 1)
        steady = [await scene.send_queued("steady", "s0", stream=stream)]
        flood = [await scene.send_queued("flood", f"f{number}", stream=stream) for number in (1, 2, 3)]
        steady.append(scene.send("steady", "s1", stream=stream))
        refused = await flood[2]
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert "3 of them of this caller" in refused.error["message"]
        assert int(refused.fields["retry-after"]) >= 1
        await wait_until(lambda: scene.queued() == 4)
        await scene.finish()
        assert [(await task).status for task in (first, *flood[:2], *steady)] == [200] * 5


@BOTH_KINDS
async def test_queued_requests_go_by_credit_between_callers(stream: bool) -> None:
    async with with_scene() as scene:
        tasks = [scene.send("flood", "f0")]
        await wait_until(lambda: len(scene.steps.order) == 1)
        tasks.append(await scene.send_queued("steady", "s0", stream=stream))
        tasks += [await scene.send_queued("flood", f"f{number}", stream=stream) for number in (1, 2, 3)]
        tasks.append(await scene.send_queued("steady", "s1", stream=stream))
        await scene.finish()
        assert {(await task).status for task in tasks} == {200}
        order = scene.steps.order
        assert (order[:2], order[-1]) == (["f0", "s0"], "f3")  # in order of arrival, `s1` would be the last


async def test_service_elsewhere_counts_here_and_service_here_is_reported() -> None:
    async with with_scene() as scene:
        admission = scene.running.gateway.stages.admission
        tasks = [scene.send("steady", "s0")]
        await wait_until(lambda: len(scene.steps.order) == 1)
        for number in (1, 2, 3):
            tasks.append(await scene.send_queued("flood", f"f{number}"))
            tasks.append(await scene.send_queued("steady", f"s{number}"))
        admission.add_peer_service({MODEL_KEY: {"flood": 1_000_000.0}, "default/unknown": {"flood": 1.0}})
        await scene.finish()
        assert {(await task).status for task in tasks} == {200}
        assert scene.steps.order == ["s0", "s1", "s2", "s3", "f1", "f2", "f3"]
        served = admission.take_service()[MODEL_KEY]
        assert served["steady"] > served["flood"] > 0.0
        assert admission.take_service() == {}


@BOTH_KINDS
async def test_answers_are_charged_as_expected_and_then_as_they_were(stream: bool) -> None:
    async with with_scene(preset="least-request") as scene:
        tasks = [scene.send("flood", "f0")]
        await wait_until(lambda: len(scene.steps.order) == 1)
        tasks.append(await scene.send_queued("steady", "s0", max_tokens=100, stream=stream))
        tasks.append(await scene.send_queued("flood", "f1", max_tokens=100, n=4, stream=stream))
        queue = scene.running.gateway.stages.admission.models[MODEL_KEY].policy._queue
        single, fourfold = queue.requests()
        assert (single.decode_seconds, fourfold.decode_seconds) == (100.0, 400.0)
        await scene.finish()
        assert [(await task).status for task in tasks] == [200] * 3
        await wait_until(lambda: fourfold.decode_seconds != 400.0)
        assert 0.0 < single.decode_seconds < 100.0
        assert fourfold.decode_seconds % 4.0 == 0.0


@pytest.mark.parametrize("tokens", [2**31, 2**31 + 1, 10**30])
async def test_engine_that_reports_billions_of_tokens_ruins_no_caller(tokens: int) -> None:
    async def script(call: EngineCall) -> None:
        await steps.turns.acquire()
        await call.start_stream()
        await call.event(token("a", "stop"))
        await call.event(usage(7, 4, tokens))
        await call.finish()

    steps = StepwiseEngine()
    async with (
        scripted_engine(script) as engine,
        running_gateway(slow_fleet([engine.url], preset="least-request"), api_keys=accepted_keys()) as running,
    ):
        scene = Scene(running, engine, steps)
        tasks = [scene.send("flood", "f0"), await scene.send_queued("steady", "s0", max_tokens=100)]
        policy = running.gateway.stages.admission.models[MODEL_KEY].policy
        (queued,) = policy._queue.requests()
        await scene.finish()
        assert [(await task).status for task in tasks] == [200, 200]
        await wait_until(lambda: running.gateway.inflight_count() == 0)
        assert queued.decode_seconds <= 100.0
        assert policy._queue._fair_share.served_seconds("steady") < 1_000.0


def disaggregated_fleet(prefill: str, decode: str) -> Fleet:
    """A model without an SLO: long prompts go to the prefill instance."""
    instances = (
        Instance("P0", "default", "tiny", "prefill", prefill, role=Role.PREFILL, transfer="nixl", profile=SLOW),
        Instance("D0", "default", "tiny", "decode", decode, role=Role.DECODE, transfer="nixl"),
    )
    return Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: instances})


@asynccontextmanager
async def before_prefill() -> AsyncIterator[Scene]:
    steps = StepwiseEngine()
    limits = replace(Limits(), handoff_min_tokens=16, handoff_prefill_seconds=60.0)
    async with (
        scripted_engine(steps.script) as prefill,
        scripted_engine() as decode,
        running_gateway(disaggregated_fleet(prefill.url, decode.url), limits, api_keys=accepted_keys()) as running,
    ):
        yield Scene(running, prefill, steps)


async def test_callers_share_prefill_instances_by_credit() -> None:
    async with before_prefill() as scene:
        tasks = [scene.send("flood", "f0")]
        await wait_until(lambda: len(scene.steps.order) == 1)
        tasks.append(await scene.send_queued("steady", "s0"))
        tasks += [await scene.send_queued("flood", f"f{number}") for number in (1, 2, 3)]
        tasks.append(await scene.send_queued("steady", "s1"))
        await scene.finish()
        assert {(await task).status for task in tasks} == {200}
        assert scene.steps.order == ["f0", "s0", "f1", "s1", "f2", "f3"]


async def test_prompts_of_the_only_caller_wait_at_the_prefill_instance() -> None:
    async with before_prefill() as scene:
        tasks = [scene.send("flood", f"f{number}") for number in range(4)]
        await wait_until(lambda: len(scene.steps.order) == 4)
        assert scene.queued() == 0
        await scene.finish()
        assert {(await task).status for task in tasks} == {200}


async def test_short_prompts_do_not_wait_for_prefill_instances() -> None:
    async with before_prefill() as scene:
        tasks = [scene.send("flood", "f0")]
        await wait_until(lambda: len(scene.steps.order) == 1)
        tasks.append(await scene.send_queued("steady", "s0"))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "user": "s1"}
        answer = await request(scene.running.url, body, more="authorization: Bearer steady\r\n")
        assert (answer.status, scene.queued()) == (200, 1)
        await scene.finish()
        assert {(await task).status for task in tasks} == {200}
