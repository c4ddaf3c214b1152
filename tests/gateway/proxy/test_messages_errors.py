"""Errors of the gateway itself under `/v1/messages` are those of Anthropic."""

import asyncio

import pytest

from fairlead.tenants.model import Tenant
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, responds, streams
from fairlead_testing.gateway.running_gateway import fleet_of, gateway_before, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated
PATH = "/v1/messages"
BODY = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
STREAM = BODY | {"stream": True}
START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
)
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}\n\n'


def error_of(answer: RawResponse) -> tuple[int, str]:
    """The status and the type of an error of Anthropic."""
    assert set(answer.json) == {"type", "error", "request_id"}
    assert answer.json["type"] == "error"
    assert answer.error["message"]
    assert answer.error["code"] == answer.fields["x-fairlead-reason"]
    return answer.status, answer.error["type"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (post_request(BODY, path=f"{PATH}/batches", more=authorization("acme")), (404, "not_found_error")),
        (post_request(BODY, path=f"{PATH}/", more=authorization("acme")), (503, "overloaded_error")),
        (post_request(BODY, path=PATH, more="content-encoding: gzip\r\n"), (415, "invalid_request_error")),
    ],
)
async def test_errors_of_other_paths_under_it_have_the_type_of_their_status(
    data: bytes, expected: tuple[int, str]
) -> None:
    async with running_gateway(fleet_of([]), api_keys=keys_of(Tenant("acme"))) as running:
        assert error_of((await send(running.url, data))[0]) == expected


async def test_a_path_that_begins_alike_keeps_the_errors_of_openai() -> None:
    async with running_gateway(fleet_of([])) as running:
        (answer,) = await send(running.url, post_request(BODY, path="/v1/messagesx"))
        assert answer.error["code"] == "unknown_url"


after_start = streams(START + DELTA, end=None)


async def breaks_off(call: EngineCall) -> None:
    await after_start(call)
    raise HangUp


async def breaks_off_in_an_event(call: EngineCall) -> None:
    await after_start(call)
    await call.chunk(DELTA[:50])
    raise HangUp


async def falls_silent(call: EngineCall) -> None:
    await after_start(call)
    await call.wait_closed()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (breaks_off, "the engine broke off; the answer is incomplete"),
        (breaks_off_in_an_event, "the engine broke off; the answer is incomplete"),
        (falls_silent, "deadline (1s); the answer is incomplete"),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(script: Script, words: str) -> None:
    async with gateway_before([script]) as running:
        data = post_request(STREAM, path=PATH, more="x-request-timeout: 1\r\n" if script is falls_silent else "")
        (answer,) = await send(running.url, data)
        assert (answer.status, answer.complete) == (200, True)
        last = answer.body.decode().removeprefix((START + DELTA).decode()).rsplit("\n\n", 2)[-2]
        assert last.startswith('event: error\ndata: {"type":"error","error":{"type":"api_error","message":"')
        assert words in last
        assert running.gateway.decisions.latest(1)[0].error is not None


async def test_an_error_event_in_a_stream_counts_as_a_failure_and_passes_as_it_is() -> None:
    event = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    is_read = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await after_start(call)
        await is_read.wait()
        await call.chunk(event)
        await call.chunk(b"")

    async with gateway_before([script] * 2) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM, path=PATH))
        start = await connection.reader.readuntil(b"text_delta")
        is_read.set()
        rest = await connection.reader.read()
        await connection.close()
        assert START in start
        assert rest.count(b"event: error") == 1
        assert event in rest
        await wait_until(lambda: running.gateway.inflight_count() == 0)
        assert running.gateway.decisions.latest(1)[0].error == "error-event"


async def test_a_refusal_with_a_field_that_is_no_text_keeps_its_words() -> None:
    body = b'{"error":{"type":"invalid_request_error","message":"too long"},"detail":"\xff"}'

    async def script(call: EngineCall) -> None:
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await call.send(head % len(body) + body)

    async with gateway_before([script] * 2) as running:
        for path in (PATH, "/v1/chat/completions"):
            (answer,) = await send(running.url, post_request(BODY, path=path))
            assert (answer.status, answer.error["message"]) == (400, "too long")


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":7,"error":{"message":"too long"}}',
        b'{"type":"oops","error":{"message":"too long","type":["x"]}}',
        b'{"type":"error","error":{"message":"too long","type":null}}',
        b'{"error":{"message":"too long","type":"BadRequestError"},"type":{"a":1},"type":null}',
    ],
)
async def test_a_refusal_with_other_types_has_those_of_anthropic(body: bytes) -> None:
    async with gateway_before([responds(body, status="400 Bad Request")]) as running:
        (answer,) = await send(running.url, post_request(BODY, path=PATH))
        assert (answer.status, answer.json["type"]) == (400, "error")
        assert answer.json["error"] == {"type": "invalid_request_error", "message": "too long"}


async def test_a_head_that_cannot_be_read_has_an_error_of_openai() -> None:
    async with running_gateway(fleet_of([])) as running:
        (answer,) = await send(running.url, get_request(PATH).replace(b"HTTP/1.1", b"HTTP/9.9"))
        assert answer.error["code"] == "http_version_not_supported"
