"""A stream under `/v1/responses` that breaks ends with the error event that its clients know."""

import asyncio
import json

import pytest

from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, hang_up, streams
from fairlead_testing.gateway.running_gateway import gateway_before
from fairlead_testing.http.raw_client import RawConnection, post_request, send

pytestmark = pytest.mark.simulated
PATH = "/v1/responses"
STREAM = {"model": "tiny", "input": "hi", "stream": True}


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


START = event("response.created", response={"id": "r", "status": "in_progress"}, sequence_number=0)
DELTA = event("response.output_text.delta", delta='"sequence_number":70}', sequence_number=7)


after_start = streams(START + DELTA, end=None)


async def breaks_off(call: EngineCall) -> None:
    await after_start(call)
    raise HangUp


async def breaks_off_in_an_event(call: EngineCall) -> None:
    await after_start(call)
    await call.chunk(DELTA[:50])
    raise HangUp


breaks_off_without_numbers = streams(event("response.output_text.delta"), end=hang_up)


async def falls_silent(call: EngineCall) -> None:
    await after_start(call)
    await call.wait_closed()


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        (breaks_off, "stream_cut", 9),
        (breaks_off_in_an_event, "stream_cut", 9),
        (breaks_off_without_numbers, "stream_cut", 1),
        (falls_silent, "deadline_exceeded", 9),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(script: Script, code: str, number: int) -> None:
    async with gateway_before([script]) as running:
        data = post_request(STREAM, path=PATH, more="x-request-timeout: 1\r\n" if script is falls_silent else "")
        (answer,) = await send(running.url, data)
        assert (answer.status, answer.complete) == (200, True)
        kind, _, text = answer.body.decode().rsplit("\n\n", 2)[-2].partition("\n")
        last = json.loads(text.removeprefix("data: "))
        assert (kind, last["type"], last["param"]) == ("event: error", "error", None)
        assert (last["code"], last["sequence_number"]) == (code, number)
        assert last["message"] == last["error"]["message"]
        assert last["message"].endswith("the answer is incomplete")
        assert last["request_id"] == answer.fields["x-request-id"]


async def test_an_error_event_of_the_engine_passes_as_it_is() -> None:
    own = event("response.failed", response={"error": {"code": "server_error", "message": "no"}}, sequence_number=8)
    is_read = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await after_start(call)
        await is_read.wait()
        await call.chunk(own)
        await call.chunk(b"")

    async with gateway_before([script]) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM, path=PATH))
        await connection.reader.readuntil(b"output_text.delta")
        is_read.set()
        rest = await connection.reader.readuntil(b"0\r\n\r\n")
        await connection.close()
        assert own in rest
        assert b"event: error" not in rest


async def test_a_plain_answer_that_breaks_has_no_event() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id":')
        raise HangUp

    async with gateway_before([script] * 3) as running:
        (answer,) = await send(running.url, post_request(STREAM, path=PATH))
        assert b"event:" not in answer.body
