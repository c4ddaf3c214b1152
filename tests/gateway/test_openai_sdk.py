"""The official client works with the gateway as with the real service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import openai
import pytest

from fairlead.fleet.model import InstanceState
from fairlead.limits import Limits
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, hang_up, responds, scripted_engine, token
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, running_gateway
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.sim.engines import running_engines
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

SETTINGS = EngineSettings(model="tiny", served_names=("tiny",), speed=20.0)


@dataclass(slots=True)
class Stage:
    """A client, a gateway and two simulated engines."""

    client: openai.AsyncOpenAI
    running: RunningGateway
    engines: list[RunningEngine]


@asynccontextmanager
async def stage(settings: EngineSettings = SETTINGS) -> AsyncIterator[Stage]:
    async with (
        running_engines(2, settings) as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
        client_of(running) as client,
    ):
        yield Stage(client, running, engines)


def client_of(running: RunningGateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="sk-none", base_url=f"{running.url}/v1", max_retries=0, timeout=60)


async def test_chat() -> None:
    async with stage() as on:
        reply = await on.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello there"}], max_tokens=7
        )
        assert reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 7
        assert reply.id == f"chatcmpl-{reply._request_id}"


async def test_chat_twice_finds_its_prompt_in_the_cache() -> None:
    async with stage() as on:
        text = "what a long prompt this is " * 100
        cached = []
        for _ in range(2):
            reply = await on.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": text}], max_tokens=2
            )
            assert reply.usage.prompt_tokens_details is not None
            cached.append(reply.usage.prompt_tokens_details.cached_tokens or 0)
        assert cached[0] == 0
        assert cached[1] > 500


async def test_streaming_chat() -> None:
    async with stage() as on:
        stream = await on.client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert len([part for part in text if part]) == 50
        assert chunks[-1].usage.completion_tokens == 50
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


async def test_streaming_chat_without_usage_shows_none() -> None:
    async with stage() as on:
        stream = await on.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=5, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)
        outcome = on.running.gateway.decisions.latest(1)[0]
        assert outcome.output_tokens == 5
        assert outcome.cached_tokens == 0


async def test_completions_plain_and_streamed() -> None:
    async with stage() as on:
        reply = await on.client.completions.create(model="tiny", prompt="once upon", max_tokens=4, n=2)
        assert len(reply.choices) == 2
        stream = await on.client.completions.create(model="tiny", prompt="once upon", max_tokens=4, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream])


async def test_embeddings() -> None:
    async with stage() as on:
        reply = await on.client.embeddings.create(model="tiny", input=["one", "two", "three"])
        assert len(reply.data) == 3
        assert len(reply.data[0].embedding) == SETTINGS.embedding_dimensions
        assert reply.usage.prompt_tokens > 0


async def test_models() -> None:
    async with stage() as on:
        assert [model.id async for model in on.client.models.list()] == ["tiny"]
        assert (await on.client.models.retrieve("tiny")).id == "tiny"
        assert (await on.client.models.retrieve("default/tiny")).owned_by == "default"


async def test_leaving_in_mid_stream_frees_the_engine() -> None:
    async with stage(EngineSettings(model="tiny", served_names=("tiny",))) as on:
        stream = await on.client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=30_000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert sum(len(engine.engine.responses) for engine in on.engines) == 1
        await stream.close()
        await wait_until(lambda: sum(len(engine.engine.responses) for engine in on.engines) == 0)
        await wait_until(lambda: not on.running.gateway.inflight_count())


async def test_many_streams_at_once() -> None:
    count = shortened(200, 60)
    async with stage() as on:

        async def stream_tokens(number: int) -> int:
            stream = await on.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": f"{number}"}], max_tokens=20, stream=True
            )
            return len([chunk async for chunk in stream if chunk.choices and chunk.choices[0].delta.content])

        assert await asyncio.gather(*[stream_tokens(number) for number in range(count)]) == [20] * count


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "tinny"}, openai.NotFoundError, "model"),
        ({"messages": [{"role": "user", "content": 5}]}, openai.BadRequestError, "messages[0].content"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"n": 10**9}, openai.BadRequestError, "n"),
        ({"messages": [{"role": "user", "content": "x " * 80_000}]}, openai.BadRequestError, "input_tokens"),
    ],
)
async def test_what_the_client_did_wrong_raises_what_the_sdk_promises(
    fields: dict[str, object], error: type[openai.APIStatusError], param: str
) -> None:
    async with stage() as on:
        body: dict[str, object] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | fields
        with pytest.raises(error) as caught:
            await on.client.post("/chat/completions", cast_to=object, body=body)
        assert caught.value.param == param
        assert caught.value.request_id
        assert caught.value.body is not None


async def _full(call: EngineCall) -> None:
    error = {"error": {"message": "busy", "type": "Service Unavailable", "param": None, "code": 503}}
    if call.json.get("stream"):
        await call.start_stream()
        await call.event(error)
        await call.finish()
    else:
        await call.respond(error, "503 Service Unavailable")


_too_many = responds(
    {"error": {"message": "slow down", "type": "x", "param": None, "code": 429}}, "429 Too Many Requests"
)


_forbidden = responds({"error": {"message": "no", "type": "x", "param": None, "code": 403}}, "403 Forbidden")
_unprocessable = responds({"detail": [{"loc": ["body"]}]}, "422 Unprocessable Entity")


_conflict = responds({"error": {"message": "no", "type": "x", "param": None, "code": 409}}, "409 Conflict")
_unauthorized = responds({"error": {"message": "no", "type": "x", "param": None, "code": 401}}, "401 Unauthorized")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "error", "status"),
    [
        (_full, openai.InternalServerError, 503),
        (_too_many, openai.RateLimitError, 429),
        (_forbidden, openai.PermissionDeniedError, 403),
        (_unprocessable, openai.UnprocessableEntityError, 422),
        (_conflict, openai.ConflictError, 409),
        (_unauthorized, openai.AuthenticationError, 401),
        (hang_up, openai.InternalServerError, 502),
    ],
)
async def test_what_engines_answer_raises_what_the_sdk_promises(
    script: Script, error: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    async with (
        scripted_engine(script) as engine,
        running_gateway(fleet_of([engine.url])) as running,
        client_of(running) as client,
    ):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        with pytest.raises(error) as caught:
            await client.post("/chat/completions", cast_to=object, body=body)
        assert caught.value.status_code == status


async def test_no_ready_engine_raises_until_there_is_one() -> None:
    async with scripted_engine() as engine:
        starting = fleet_of([engine.url], states=[InstanceState.STARTING])
        limits = Limits(queue_starting_seconds=0.2)
        async with running_gateway(starting, limits) as running, client_of(running) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"]
            running.gateway.update_fleet(fleet_of([engine.url], version=2))
            await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])


async def test_a_stream_that_breaks_raises_and_never_ends_quietly() -> None:
    seen = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a") | {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"})
        await seen.wait()
        raise HangUp

    async with (
        scripted_engine(script) as engine,
        running_gateway(fleet_of([engine.url])) as running,
        client_of(running) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert (await anext(aiter(stream))).choices[0].delta.content == "a"
        seen.set()
        with pytest.raises(openai.APIError, match="incomplete"):
            await anext(aiter(stream))


async def test_a_gateway_that_is_not_there_raises_a_connection_error() -> None:
    async with openai.AsyncOpenAI(api_key="x", base_url="http://127.0.0.1:1/v1", max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
