"""Streams that leave an engine so that a waiting request fits there, in one worker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import CANARY_POOL_SUFFIX, InstanceState
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.proxy.stream_defragmenter import REST_SECONDS
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, scripted_engine
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RunningGateway,
    count_queued,
    fleet_of,
    running_gateway,
    with_profile,
)
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

PROFILE = EngineProfile("small", 1e-6, step_seconds=0.05, kv_tokens=1_000)
STREAM: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me a story " * 20}],
    "max_tokens": 300,
    "stream": True,
}
LONG: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a long text " * 254}],
    "max_tokens": 100,
}
PROMPT = list(range(100, 180))


@dataclass
class Scene:
    """Two engines of 1,000 tokens, each with a stream that does not end by itself."""

    running: RunningGateway
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    met: list[list[int]] = field(default_factory=list)
    refused: int = 0

    async def send(self, body: dict[str, Any]) -> RawResponse:
        return await request(self.running.url, body, more="authorization: Bearer key\r\n")

    def streams(self) -> list[RelayedStream]:
        return self.running.gateway._relayed_streams()


def chunk(text: str, token: int, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "token_ids": [token]}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}


@asynccontextmanager
async def scene(*, defragments: bool = True, has_keys: bool = False) -> AsyncIterator[Scene]:
    async def script(call: EngineCall) -> None:
        if not call.json.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
            await call.respond({"choices": [choice], "usage": {"prompt_tokens": 700, "completion_tokens": 1}})
            return
        prompt = call.json.get("kv_transfer_params", {}).get("prompt_token_ids", PROMPT)
        on.met.append(prompt)
        if len(prompt) > len(PROMPT) and on.refused:
            on.refused -= 1
            await call.respond({"error": {"message": "full"}}, status="503 Service Unavailable")
            return
        await call.start_stream()
        opening = chunk("", 0) | {"prompt_token_ids": prompt}
        await call.event(opening | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if prompt == PROMPT:
            await call.event(chunk("one ", 11))
            await call.event(chunk("two ", 12))
        await on.go_on.wait()
        with contextlib.suppress(ConnectionError):  # a stream that has moved
            await call.event(chunk("end", 13, "stop"))
            await call.finish()

    async with scripted_engine(script) as first, scripted_engine(script) as second:
        fleet = with_profile(fleet_of([first.url, second.url]), PROFILE)
        models = {key: replace(model, defragments=defragments) for key, model in fleet.models.items()}
        keys = ApiKeys(b"pepper", {key_digest(b"key", b"pepper"): "caller"}) if has_keys else None
        async with running_gateway(replace(fleet, models=models), api_keys=keys) as running:
            on = Scene(running)
            yield on
            assert running.gateway.stack.relay._token_memory.used_bytes == 0


async def begin_streams(
    on: Scene, tasks: asyncio.TaskGroup, body: dict[str, Any] = STREAM
) -> list[asyncio.Task[RawResponse]]:
    """Starts one stream at each engine."""
    answers = [tasks.create_task(on.send(body))]
    await wait_until(lambda: len(on.streams()) == 1)
    used = on.streams()[0].instance_id
    while len({stream.instance_id for stream in on.streams()}) < 2:
        count = len(on.met)
        answers.append(tasks.create_task(on.send(body)))
        await wait_until(lambda: len(on.met) > count and len(on.streams()) == len(answers))  # noqa: B023
        assert len(answers) < 4, used
    await wait_until(
        lambda: all(stream._stream is not None and stream._stream.generated == 2 for stream in on.streams())
    )
    return answers


def texts(answer: RawResponse) -> list[str]:
    assert answer.events[-1] == "[DONE]"
    return [part for part in ("one ", "two ", "end") for data in answer.events if f'"{part}"' in data]


@pytest.mark.parametrize("has_keys", [False, True], ids=["any engine", "the chosen engine"])
async def test_a_stream_makes_room_for_a_long_request_and_goes_on_elsewhere(has_keys: bool) -> None:
    async with scene(has_keys=has_keys) as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        long = await on.send(LONG)
        assert long.status == 200, long.body
        assert on.met[-1] == [*PROMPT, 11, 12]
        moved = {stream.instance_id for stream in on.streams()}
        assert len(moved) == 1
        on.go_on.set()
        for answer in answers:
            assert texts(await answer) == ["one ", "two ", "end"]
        reasons = [outcome.latest.decision.reason for outcome in on.running.gateway.decisions.latest(10)]
        (reason,) = [text for text in reasons if "continued after defragmentation" in text]
        assert "behind 2 tokens of the answer (it makes room for a request that waits: " in reason
        counted = on.running.gateway.telemetry.models[MODEL_KEY]
        assert (counted.continued, counted.moved) == ({"whole": 1}, {"defragmentation": 1})


async def test_without_the_setting_the_request_waits_for_a_stream_to_end() -> None:
    async with scene(defragments=False) as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        long = tasks.create_task(on.send(LONG))
        await wait_until(lambda: count_queued(on.running) == 1)
        on.running.gateway._defragmenter.defragment(MODEL_KEY)
        assert len({stream.instance_id for stream in on.streams()}) == 2
        on.go_on.set()
        assert (await long).status == 200
        for answer in answers:
            await answer
        assert len(on.met) == len(answers)


async def test_no_stream_moves_just_after_one_has_broken() -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        maker = on.running.gateway._defragmenter
        maker.on_broken(MODEL_KEY)
        long = tasks.create_task(on.send(LONG))
        await wait_until(lambda: count_queued(on.running) == 1)
        maker._looked_at.clear()
        maker.defragment(MODEL_KEY)
        assert len(on.met) == len(answers)
        maker._broken_at[MODEL_KEY] -= REST_SECONDS
        maker._looked_at.clear()
        assert (await long).status == 200
        assert len(on.met) == len(answers) + 1
        on.go_on.set()
        for answer in answers:
            assert texts(await answer) == ["one ", "two ", "end"]


async def test_a_stream_goes_back_if_its_destination_refuses_it_and_no_retry_is_left() -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        budget, now = on.running.gateway.stack.relay._stream_resume._retry_budget, on.running.gateway._now()
        caller = on.streams()[0].context.caller
        while budget.take(caller, now):
            pass
        before, on.refused = {stream.context.id: stream.instance_id for stream in on.streams()}, 1
        long = tasks.create_task(on.send(LONG))
        await wait_until(lambda: len(on.met) == len(answers) + 2 and len(on.streams()) == len(answers))
        assert {stream.context.id: stream.instance_id for stream in on.streams()} == before
        assert on.met[-2:] == [[*PROMPT, 11, 12]] * 2
        on.go_on.set()
        for answer in answers:
            assert texts(await answer) == ["one ", "two ", "end"]
        assert (await long).status == 200


async def test_a_stream_that_no_engine_takes_back_names_the_last_cause() -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        on.refused = 9
        long = tasks.create_task(on.send(LONG))
        ended, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        error = next(iter(ended)).result().events[-1]
        assert "stream_defragmentation" not in error
        assert "no engine could continue it (no-instance)" in error
        on.refused = 0
        on.go_on.set()
        assert (await long).status == 200


async def test_no_stream_goes_to_an_ejected_instance() -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        gateway = on.running.gateway
        ready = sorted({stream.instance_id for stream in on.streams()})
        for _ in range(3):
            gateway.stack.failures.outlier_detector.on_failure(ready[0], "reset", gateway._now(), ready)
        long = tasks.create_task(on.send(LONG))
        await wait_until(lambda: count_queued(on.running) == 1)
        gateway._defragmenter._looked_at.clear()
        gateway._defragmenter.defragment(MODEL_KEY)
        assert len(on.streams()) == len(answers) == len(on.met)
        places = gateway.stack.admission.instance_memory(MODEL_KEY, gateway._now())
        assert {place.id: place.free_sequences > 0.0 for place in places} == {ready[0]: False, ready[1]: True}
        on.go_on.set()
        assert (await long).status == 200


@pytest.mark.parametrize(
    "change", [{"pool": f"main{CANARY_POOL_SUFFIX}"}, {"engine": "sglang"}, {"state": InstanceState.DRAINING}]
)
async def test_streams_go_only_to_ready_engines_of_their_revision_that_read_tokens(change: dict[str, Any]) -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        gateway, (stream, *_) = on.running.gateway, on.streams()
        fleet = gateway.stack.routers.fleet
        own, other = sorted(fleet.instances[MODEL_KEY], key=lambda one: one.id != stream.instance_id)
        assert stream.may_go(other.id)
        on.running.gateway.update_fleet(replace(fleet, instances={MODEL_KEY: (own, replace(other, **change))}))
        assert not stream.may_go(other.id)
        on.go_on.set()
        for answer in answers:
            assert texts(await answer) == ["one ", "two ", "end"]


async def test_the_plan_counts_what_a_moved_stream_has_generated_before() -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks)
        assert (await on.send(LONG)).status == 200
        moved = next(stream for stream in on.streams() if stream._stream is not None and stream._stream.moves)
        planned = on.running.gateway.stack.admission.models[MODEL_KEY].policy.kv_capacity
        assert planned._sequences[moved.context.route_request.id].earlier == 2
        on.go_on.set()
        for answer in answers:
            await answer


@pytest.mark.parametrize(("max_tokens", "stays"), [(34, True), (35, False)])
async def test_a_stream_that_ends_soon_stays(max_tokens: int, stays: bool) -> None:
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks, STREAM | {"max_tokens": max_tokens})
        now = on.running.gateway._now()
        assert {stream.movable(now, REST_SECONDS) is None for stream in on.streams()} == {stays}
        on.go_on.set()
        for answer in answers:
            await answer


async def test_a_stream_with_tools_stays_since_its_text_may_end_within_a_token() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    async with scene() as on, asyncio.TaskGroup() as tasks:
        answers = await begin_streams(on, tasks, {**STREAM, "tools": [tool]})
        assert [stream.movable(REST_SECONDS, REST_SECONDS) for stream in on.streams()] == [None] * len(answers)
        on.go_on.set()
