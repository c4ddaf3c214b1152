"""Answers that are whole although their streams are not: each ends once, without an error."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, RequestPolicy
from fairlead.limits import Limits
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    ends_without_done,
    event,
    hang_up,
    named_event,
    reset,
    scripted_engine,
    silent,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request

pytestmark = pytest.mark.simulated

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
MESSAGE = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


def choice(part: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """Returns a chunk of a chat or of a completion."""
    own = {"index": index, **part, "logprobs": None, "finish_reason": finish, **more}
    return event({"id": "x", "object": "o", "created": 1, "model": "tiny", "choices": [own]})


def with_ids() -> bytes:
    """Returns a chat as vLLM sends it to a gateway that has asked for token ids."""
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
    start = event({"id": "x", "object": "o", "created": 1, "model": "tiny", "prompt_token_ids": [1, 2, 3], **opening})
    last = choice({"delta": {"content": "b"}}, "stop", token_ids=[8])
    return start + choice({"delta": {"content": "a"}}, token_ids=[7]) + last


CALL = {
    "delta": {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
}
"""A tool call in one piece."""
ANSWERS: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "chat": ("/v1/chat/completions", CHAT, choice({"delta": {"content": "a"}}) + choice({"delta": {}}, "stop")),
    "call": ("/v1/chat/completions", CHAT, choice(CALL) + choice({"delta": {}}, "tool_calls")),
    "length": ("/v1/chat/completions", CHAT, choice({"delta": {"content": "a"}}, "length")),
    "ids": ("/v1/chat/completions", CHAT, with_ids()),
    "two choices": (
        "/v1/chat/completions",
        CHAT | {"n": 2},
        choice({"delta": {"content": "a"}}, "stop") + choice({"delta": {"content": "b"}}, "stop", 1),
    ),
    "completion": ("/v1/completions", {"prompt": "hi"}, choice({"text": "a"}) + choice({"text": ""}, "stop")),
    "message": (
        "/v1/messages",
        MESSAGE,
        named_event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}})
        + named_event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + named_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
        + named_event("content_block_stop", index=0)
        + named_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
    ),
}
"""Answers of engines by name: path, request, and all of it but the end of its stream."""
ENDS: dict[bool, bytes] = {False: b"[DONE]", True: b'"message_stop"'}


async def _cuts_an_event(call: EngineCall) -> None:
    await call.chunk(b'data: {"choices": [], "us')
    raise HangUp


async def _sends_no_json(call: EngineCall) -> None:
    await call.send(b"zz\r\n")
    await call.wait_closed()


BREAKS = [reset, hang_up, _cuts_an_event, _sends_no_json, ends_without_done, silent]


def _fleet(urls: list[str], engine: str, *, resumes: bool = True) -> Fleet:
    fleet = fleet_of(urls)
    instances = tuple(replace(instance, engine=engine) for instance in fleet.instances[MODEL_KEY])
    model = fleet.models[MODEL_KEY]
    if not resumes:
        model = replace(model, requests=replace(model.requests or RequestPolicy(), resumes=False))
    return replace(fleet, models={MODEL_KEY: model}, instances={MODEL_KEY: instances})


async def _answer(
    name: str,
    engine: str,
    end: Callable[[EngineCall], Any],
    *,
    more: str = "",
    when_sent: Callable[[RunningGateway], None] | None = None,
    **fields: Any,
) -> tuple[RawResponse, RunningGateway, int]:
    """Returns the answer of a gateway whose two engines stop behind the finish reason."""
    path, body, whole = ANSWERS[name]
    calls, sent = 0, asyncio.Event()

    async def script(call: EngineCall) -> None:
        nonlocal calls
        calls += call.path == path
        await call.start_stream()
        await call.chunk(whole)
        sent.set()
        await asyncio.sleep(0.1)  # of simulated time: a reset takes away what is not read
        await end(call)

    limits = Limits(stream_idle_seconds=4.0, stream_silence_seconds=4.0)
    async with (
        scripted_engine(script) as first,
        scripted_engine(script) as second,
        running_gateway(_fleet([first.url, second.url], engine), limits) as running,
    ):
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny", "stream": True, **body, **fields}, path=path, more=more))
        await sent.wait()
        if when_sent is not None:
            await asyncio.sleep(1.0)  # of simulated time: the gateway has passed on what came
            when_sent(running)
        answer = await connection.read_response()
        await connection.close()
        return answer, running, calls


def check_whole(name: str, answer: RawResponse, running: RunningGateway) -> None:
    """Checks that a client got a whole answer, once, and that no engine is blamed."""
    text, is_message = answer.body, ANSWERS[name][0] == "/v1/messages"
    assert (answer.status, answer.complete) == (200, True)
    assert b'"error"' not in text, text
    assert text.rstrip().endswith(ENDS[is_message] if not is_message else ENDS[True] + b"}"), text
    assert text.count(b'"content":"a"') + text.count(b'"text": "a"') + text.count(b'"text":"a"') <= 1
    outcome = running.gateway.decisions.latest(1)[0]
    assert (outcome.status, outcome.error, outcome.client_disconnected) == (200, None, False)


@pytest.mark.parametrize("end", BREAKS, ids=lambda end: end.__name__.strip("_"))
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "trtllm"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_connection_that_ends_behind_the_finish_reason(name: str, engine: str, end: Any) -> None:
    answer, running, calls = await _answer(name, engine, end)
    check_whole(name, answer, running)
    assert calls == 1


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_gateway_that_ends_a_drain_behind_the_finish_reason(name: str, engine: str) -> None:
    answer, running, _ = await _answer(name, engine, silent, when_sent=lambda running: running.gateway.end_drain())
    check_whole(name, answer, running)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_deadline_of_a_client_behind_the_finish_reason(name: str, engine: str) -> None:
    answer, running, _ = await _answer(name, engine, silent, more="x-request-timeout: 2\r\n")
    check_whole(name, answer, running)


async def test_usage_that_the_client_wants_is_counted_by_the_tokens() -> None:
    answer, running, _ = await _answer("ids", "vllm", reset, stream_options={"include_usage": True})
    check_whole("ids", answer, running)
    (usage,) = [found for found in map(json.loads, answer.events[:-1]) if not found["choices"]]
    assert usage["usage"] == {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}
    outcome = running.gateway.decisions.latest(1)[0]
    assert (outcome.prompt_tokens, outcome.output_tokens) == (3, 2)
