"""A stream of messages or responses that breaks ends with the error event that its clients know."""

import asyncio
import json
from typing import Any

import pytest

from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, hang_up, streams, token
from fairlead_testing.engines.scripted import named_event as event
from fairlead_testing.gateway.broken_streams import answer_over_gate
from fairlead_testing.gateway.running_gateway import gateway_before
from fairlead_testing.http.raw_client import post_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated


MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    MESSAGES: {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True},
    RESPONSES: {"model": "tiny", "input": "hi", "stream": True},
}
STARTS = {
    MESSAGES: event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}})
    + event("content_block_delta", delta={"type": "text_delta", "text": "a"}),
    RESPONSES: event("response.created", response={"id": "r", "status": "in_progress"}, sequence_number=0)
    + event("response.output_text.delta", delta='"sequence_number":70}', sequence_number=7),
}
FAILURES = {
    MESSAGES: event("error", error={"type": "overloaded_error", "message": "Overloaded"}),
    RESPONSES: event(
        "response.failed", response={"error": {"code": "server_error", "message": "no"}}, sequence_number=8
    ),
}
EVERY = pytest.mark.parametrize("path", BODIES)


async def start(call: EngineCall) -> None:
    await streams(STARTS[call.path], end=None)(call)


async def breaks_off(call: EngineCall) -> None:
    await start(call)
    raise HangUp


async def breaks_off_in_an_event(call: EngineCall) -> None:
    await start(call)
    await call.chunk(STARTS[call.path].split(b"\n\n")[1][:50])
    raise HangUp


async def falls_silent(call: EngineCall) -> None:
    await start(call)
    await call.wait_closed()


async def last_event(path: str, script: Script) -> dict[str, Any]:
    """Returns the last event of a stream, after checks that hold for every dialect."""
    async with gateway_before([script]) as running:
        data = post_request(BODIES[path], path=path, more="x-request-timeout: 1\r\n" if script is falls_silent else "")
        (answer,) = await send(running.url, data)
        assert (answer.status, answer.complete) == (200, True)
        assert running.gateway.decisions.latest(1)[0].error is not None
        kind, _, text = answer.body.decode().rsplit("\n\n", 2)[-2].partition("\n")
        last: dict[str, Any] = json.loads(text.removeprefix("data: "))
        assert (kind, last["type"]) == ("event: error", "error")
        assert last["request_id"] == answer.fields["x-request-id"]
        assert answer.fields.get("request-id") == (last["request_id"] if path == "/v1/messages" else None)
        return last


@EVERY
@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (breaks_off, "stream_cut", "; the answer is incomplete, and no engine could continue it (not-text)"),
        (breaks_off_in_an_event, "stream_cut", "is incomplete, and no engine could continue it (not-text)"),
        (falls_silent, "deadline_exceeded", "deadline (1s); the answer is incomplete"),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(path: str, script: Script, code: str, words: str) -> None:
    last = await last_event(path, script)
    error = last["error"]
    assert (error["code"], error["message"].endswith(words)) == (code, True)
    if path == MESSAGES:
        assert (list(last)[:2], next(iter(error)), error["type"]) == (["type", "error"], "type", "api_error")
    else:
        flat = (last["code"], last["message"], last["param"], last["sequence_number"])
        assert flat == (code, error["message"], None, 9)


@pytest.mark.parametrize(
    ("path", "last_name"),
    [(MESSAGES, "message_stop"), (RESPONSES, "response.completed"), ("/v1/chat/completions", "its last event")],
)
@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_that_ends_without_its_last_event_is_not_said_to_break(
    path: str, last_name: str, ends: bool
) -> None:
    is_read = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await (start(call) if path in BODIES else streams(token("a"), end=None)(call))
        await is_read.wait()
        await (call.chunk(b"") if ends else hang_up(call))

    body = BODIES.get(path) or {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with gateway_before([script]) as running:
        rest = (await answer_over_gate(running, body, path, b"\n\n", is_read)).body
    cause = b"the engine ended the stream without " + last_name.encode() if ends else b"the engine broke off"
    assert b'"message":"%b; the answer is incomplete' % cause in rest
    assert b'"code":"stream_cut"' in rest


async def test_an_error_event_has_a_number_where_others_have_none() -> None:
    last = await last_event(RESPONSES, streams(event("response.output_text.delta"), end=hang_up))
    assert (last["code"], last["sequence_number"]) == ("stream_cut", 1)


@EVERY
async def test_an_error_event_of_the_engine_counts_as_a_failure_and_passes_as_it_is(path: str) -> None:
    is_read = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await start(call)
        await is_read.wait()
        await call.chunk(FAILURES[path])
        await call.chunk(b"")

    async with gateway_before([script] * 2) as running:
        rest = (await answer_over_gate(running, BODIES[path], path, STARTS[path], is_read)).body
        assert FAILURES[path] in rest
        assert rest.count(b"event: error") == (path == MESSAGES)
        await wait_until(lambda: running.gateway.inflight_count() == 0)
        assert running.gateway.decisions.latest(1)[0].error == "error-event"


@EVERY
async def test_a_plain_answer_that_breaks_has_no_event(path: str) -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id":')
        raise HangUp

    async with gateway_before([script] * 3) as running:
        (answer,) = await send(running.url, post_request(BODIES[path], path=path))
        assert b"event:" not in answer.body
