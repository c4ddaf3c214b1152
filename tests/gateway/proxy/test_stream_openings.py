"""Streams that are passed on: how they begin, and comments while they are silent."""

import asyncio

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, HangUp, streams
from fairlead_testing.engines.scripted import named_event as event
from fairlead_testing.gateway.running_gateway import gateway_before
from fairlead_testing.http.raw_client import RawConnection, post_request, send

pytestmark = pytest.mark.simulated


CREATED = event("response.created", response={"id": "r"}) + event("response.in_progress", response={"id": "r"})
MESSAGE = event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}})
TEXT = event("content_block_start", index=0) + event("content_block_delta", delta={"text": "a"})
RESPONSES = ("/v1/responses", {"model": "tiny", "input": "hi", "stream": True})
MESSAGES = ("/v1/messages", {"model": "tiny", "max_tokens": 9, "messages": [], "stream": True})
ANSWERS = {
    "responses": (*RESPONSES, CREATED, event("response.output_text.delta", delta="a") + event("response.completed")),
    "messages": (*MESSAGES, MESSAGE, TEXT + event("message_stop")),
    "a ping": (*MESSAGES, MESSAGE + event("ping"), TEXT + event("message_stop")),
    "queued": (
        *RESPONSES,
        event("response.queued"),
        event("response.output_text.delta", delta="a") + event("response.completed"),
    ),
}
FAILURE = event("error", error={"type": "overloaded_error", "message": "Overloaded"})


@pytest.mark.parametrize("failure", [b"", FAILURE], ids=["cut", "error event"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_engine_that_fails_after_the_opening_is_replaced(name: str, failure: bytes) -> None:
    path, body, opening, rest = ANSWERS[name]
    calls = 0

    async def script(call: EngineCall) -> None:
        nonlocal calls
        calls += 1
        is_first = calls == 1
        await call.start_stream()
        await call.chunk(opening)
        if is_first and failure:
            await call.chunk(failure)
        elif is_first:
            raise HangUp
        await call.chunk(rest)
        await call.chunk(b"")

    async with gateway_before([script] * 2) as running:
        (answer,) = await send(running.url, post_request(body, path=path))
    assert (answer.status, answer.body, calls) == (200, opening + rest, 2)


async def test_client_that_leaves_during_the_opening_ends_the_attempt() -> None:
    is_opened, is_closed = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.chunk(CREATED)
        is_opened.set()
        await call.wait_closed()
        is_closed.set()

    path, body = RESPONSES
    async with gateway_before([script], Limits(keep_alive_seconds=0.05)) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(body, path=path))
        await is_opened.wait()
        await connection.close()
        await is_closed.wait()


async def test_answer_that_ends_after_its_opening_is_one_that_failed() -> None:
    path, body = RESPONSES
    async with gateway_before([streams(CREATED, b"", end=None)] * 2) as running:
        (answer,) = await send(running.url, post_request(body, path=path))
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("cut", [0, 9])
async def test_silent_stream_gets_comments_between_whole_events(name: str, cut: int) -> None:
    path, body, opening, rest = ANSWERS[name]
    is_read = asyncio.Event()
    first = rest.index(b"delta")

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.chunk(opening + rest[: rest.index(b"\n\n", first) + 2 + cut])
        await is_read.wait()
        await call.chunk(rest[rest.index(b"\n\n", first) + 2 + cut :])
        await call.chunk(b"")

    async with gateway_before([script], Limits(keep_alive_seconds=0.05)) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(body, path=path))
        for _ in range(3):
            await connection.reader.readuntil(b": keep-alive\n\n")
        is_read.set()
        left = await connection.reader.readuntil(b"0\r\n\r\n")
        assert rest[rest.index(b"\n\n", first) + 2 :] in left
        await connection.close()
