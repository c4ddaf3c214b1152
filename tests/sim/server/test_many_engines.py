"""Many engines in one process, the official SDK against one, and KV events over a real socket."""

import asyncio
import json
from typing import Any

import msgspec
import openai
import pytest
import zmq
import zmq.asyncio

from fairlead_sim.engine.kv_event_publisher import KvEventsSettings
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.sim.engines import running_engine, running_engines
from fairlead_testing.transcripts.replay import get_request, post_request, send_request, wait_for_value

pytestmark = pytest.mark.sockets

HELLO: Any = [{"role": "user", "content": "Hello"}]


async def test_eight_engines_stream_200_answers_at_once_with_separate_caches() -> None:
    async with running_engines(8) as engines:
        authorities = [served.url.removeprefix("http://") for served in engines]
        body = {"prompt": [9] * 64, "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
        answers = await asyncio.gather(
            *(send_request(authorities[number % 8], post_request("/v1/completions", body)) for number in range(200))
        )
        assert {len(answer.events()) for answer in answers} == {22}
        texts = {"".join(event["choices"][0]["text"] for event in answer.events()[:-2]) for answer in answers}
        assert len(texts) == 1
        assert [served.app.requests_seen for served in engines] == [25] * 8
        for served in engines:
            assert served.engine.drivers[0].core.stats.resident_blocks >= 4


async def test_the_sdk_streams_and_an_abandoned_stream_frees_the_slot() -> None:
    async with (
        running_engine() as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["sim"]
        chat = await client.chat.completions.create(model="sim", messages=HELLO, max_tokens=5)
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 5
        stream = await client.chat.completions.create(model="sim", messages=HELLO, max_tokens=8_000, stream=True)
        async for event in stream:
            if event.choices[0].delta.content:
                break
        assert served.engine.drivers[0].core.stats.running == 1
        await stream.close()

        async def running() -> float:
            return served.engine.drivers[0].core.stats.running

        await wait_for_value(running, lambda count: count == 0, "running")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=HELLO)
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="sim", prompt="x", max_tokens=0)


async def test_embeddings_are_unit_vectors_of_their_text_in_both_encodings() -> None:
    async with (
        running_engine() as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        packed = await client.embeddings.create(model="sim", input=["one", "two", "one"], dimensions=16)
        plain = await client.embeddings.create(model="sim", input="one", dimensions=16, encoding_format="float")
        first, two, again = (item.embedding for item in packed.data)
        assert first == again
        assert first != two
        assert plain.data[0].embedding == pytest.approx(first)
        assert sum(number * number for number in first) == pytest.approx(1)
        assert packed.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("task", "embeddings", "chat"), [("generate", 404, 200), ("embed", 200, 404), ("both", 200, 200)]
)
async def test_the_task_says_which_endpoints_there_are(task: str, embeddings: int, chat: int) -> None:
    async with running_engine(EngineSettings(task=task)) as served:
        authority = served.url.removeprefix("http://")
        response = await send_request(authority, post_request("/v1/embeddings", {"input": "x"}))
        assert response.status == embeddings
        response = await send_request(
            authority, post_request("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
        )
        assert response.status == chat


@pytest.mark.parametrize("encoding", ["map", "array"])
async def test_kv_events_of_a_request_arrive_with_true_token_ids(encoding: Any) -> None:
    events = KvEventsSettings("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", encoding=encoding)
    async with running_engine(EngineSettings(kv_events=events)) as served:
        authority = served.url.removeprefix("http://")
        source = (await send_request(authority, get_request("/kv_event_sources"))).json()["0"]
        context = zmq.asyncio.Context()
        replay = context.socket(zmq.DEALER)
        replay.connect(source["replay_endpoint"])
        body = {"prompt": list(range(9, 49)), "max_tokens": 9, "return_token_ids": True}
        choice = (await send_request(authority, post_request("/v1/completions", body))).json()["choices"][0]
        await replay.send_multipart([b"", (0).to_bytes(8, "big")])
        batches = []
        while (frames := await asyncio.wait_for(replay.recv_multipart(), 30))[2] != b"\xff" * 8:
            batches.append(msgspec.msgpack.decode(frames[3]))
        replay.close(linger=0)
        context.term()
        assert source["topic"] == f"kv@{authority}@sim"
        stored = [event for batch in batches for event in batch[1]]
        ids = [token for event in stored for token in _token_ids(event)]
        assert ids == [*range(9, 49), *choice["token_ids"]][:48]


def _token_ids(event: Any) -> list[int]:
    ids: list[int] = event["token_ids"] if isinstance(event, dict) else event[3]
    return ids


async def test_messages_and_responses_have_their_own_streams() -> None:
    async with running_engine() as served:
        authority = served.url.removeprefix("http://")
        turn = {"model": "sim", "messages": HELLO, "max_tokens": 3, "system": "Be brief.", "stream": True}
        kinds = _kinds((await send_request(authority, post_request("/v1/messages", turn))).body)
        assert kinds == [
            "message_start",
            "content_block_start",
            *["content_block_delta"] * 3,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        whole = await send_request(authority, post_request("/v1/messages", turn | {"stream": False}))
        del turn["max_tokens"]
        counted = await send_request(authority, post_request("/v1/messages/count_tokens", turn))
        usage = whole.json()["usage"]
        assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
        asked = {"input": "Hello", "max_output_tokens": 3, "stream": True}
        answer = await send_request(authority, post_request("/v1/responses", asked))
        kinds = _kinds(answer.body)
        assert kinds[4:7] == ["response.output_text.delta"] * 3
        assert kinds[-1] == "response.completed"
        assert _data(answer.body)[-1]["response"]["status"] == "incomplete"
        numbers = [event["sequence_number"] for event in _data(answer.body)]
        assert numbers == list(range(len(kinds)))


def _kinds(body: bytes) -> list[str]:
    return [line.removeprefix("event: ") for line in body.decode().splitlines() if line.startswith("event: ")]


def _data(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
