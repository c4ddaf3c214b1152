"""A 200 without an answer is a fault of the engine: another one is asked."""

from typing import Any

import pytest

from fairlead_testing.engines.scripted import EngineCall, event, streams, token, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, gateway_of
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

EMPTY_BODIES = ['{"choices":[]}', '{"choices":null}', '{"id":"a", "choices" : [ ] , "usage":{}}', '{"choices":\n[\n]}']
FIRST = {"id": "a", "choices": [], "prompt_filter_results": []}
EMPTY_STREAMS: list[list[Any]] = [
    [],
    [FIRST],
    [{"choices": None}],
    [FIRST, {"choices": [], "usage": {"prompt_tokens": 3}}],
]


def plain(body: str) -> Any:
    async def script(call: EngineCall) -> None:
        await call.respond(body.encode())

    return script


@pytest.mark.parametrize("body", EMPTY_BODIES)
async def test_plain_answer_without_choices_comes_from_another_engine(body: str) -> None:
    async with gateway_of(plain(body), well_behaved) as (running, *_):
        for _ in range(3):
            answer = await request(running.url, GOOD)
            assert (answer.status, bool(answer.json["choices"])) == (200, True)


@pytest.mark.parametrize("body", EMPTY_BODIES)
async def test_the_only_engine_without_an_answer_is_an_error(body: str) -> None:
    async with gateway_of(plain(body)) as (running, *_):
        answer = await request(running.url, GOOD)
        assert (answer.status, "last: empty" in answer.error["message"]) == (502, True)


@pytest.mark.parametrize("events", EMPTY_STREAMS)
async def test_stream_without_an_answer_comes_from_another_engine(events: list[Any]) -> None:
    async with gateway_of(streams(*map(event, events)), well_behaved) as (running, *_):
        for _ in range(3):
            answer = await request(running.url, GOOD | {"stream": True})
            assert (answer.status, b'"content":' in answer.body) == (200, True)


async def test_opening_without_choices_reaches_the_client_before_the_answer() -> None:
    async with gateway_of(streams(event(FIRST), token("hi", "stop"))) as (running, *_):
        body = (await request(running.url, GOOD | {"stream": True})).body
        assert 0 < body.index(b"prompt_filter_results") < body.index(b'"hi"')


@pytest.mark.parametrize("size", [1, 2_000_000])
@pytest.mark.parametrize("choices", ["[]", " [ ]", "null"])
@pytest.mark.parametrize(
    ("path", "body", "head"),
    [
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}, '"content":[{"input":'),
        ("/v1/responses", {"input": "x"}, '"output":[{"arguments":'),
    ],
)
async def test_input_of_a_tool_with_the_name_of_choices_is_an_answer(
    path: str, body: dict[str, object], head: str, choices: str, size: int
) -> None:
    sent = f'{{"id":"a",{head}{{"choices":{choices},"x":"{"x" * size}"}}}}],"usage":{{"output_tokens":1}}}}'
    async with gateway_of(plain(sent)) as (running, *_):
        answer = await request(running.url, {"model": "tiny", **body}, path=path)
        assert answer.status == 200
        assert f'"choices":{choices}' in answer.body.decode()
