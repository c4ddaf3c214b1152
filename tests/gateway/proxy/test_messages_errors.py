"""Errors of the gateway itself under `/v1/messages` are those of Anthropic."""

import pytest

from fairlead.tenants.model import Tenant
from fairlead_testing.engines.scripted import EngineCall, responds
from fairlead_testing.gateway.running_gateway import fleet_of, gateway_before, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, get_request, post_request, send

pytestmark = pytest.mark.simulated
PATH = "/v1/messages"
BODY = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


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
