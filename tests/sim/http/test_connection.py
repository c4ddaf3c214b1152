"""The HTTP layer: framing, keep-alive, pipelining, and malformed requests."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse, RecordedRequest
from fairlead_testing.transcripts.replay import ClientConnection, get_request, open_client, post_request, send_request

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def engine_connection(
    settings: EngineSettings | None = None,
) -> AsyncIterator[tuple[ClientConnection, RunningEngine]]:
    async with running_engine(settings) as engine, open_client(engine.url.removeprefix("http://")) as connection:
        yield connection, engine


def response_to(request: RecordedRequest, settings: EngineSettings | None = None) -> HttpResponse:
    async def scenario() -> HttpResponse:
        async with running_engine(settings) as engine:
            return await send_request(engine.url.removeprefix("http://"), request)

    return asyncio.run(scenario())


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    async with engine_connection() as (connection, _):
        generating = post_request("/v1/completions", {"prompt": "x", "max_tokens": 5}).to_bytes("sim")
        await connection.send(
            generating + get_request("/version").to_bytes("sim") + get_request("/ping").to_bytes("sim")
        )
        await connection.read_until(b"HTTP/1.1 200 OK\r\ndate")
        while connection.received.count(b"HTTP/1.1 200 OK") < 3:
            assert await connection.read_more()
        output = bytes(connection.received)
        assert output.index(b"text_completion") < output.index(b'{"version"') < output.rindex(b"content-length: 0")


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_many_requests_sent_ahead_are_all_answered_once_and_in_order(factory: Any) -> None:
    async def scenario() -> None:
        async with running_engine() as engine, open_client(engine.url.removeprefix("http://")) as connection:
            numbers = range(100)
            response_to = [
                post_request("/v1/completions", {"prompt": "x", "max_tokens": 2, "request_id": str(n)}) for n in numbers
            ]
            await connection.send(b"".join(request.to_bytes("sim") for request in response_to))
            while connection.received.count(b'"id":"cmpl-') < 100:
                assert await connection.read_more()
            ids = re.findall(rb'"id":"cmpl-(\d+)"', bytes(connection.received))
            assert [int(request_id) for request_id in ids] == list(numbers)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(scenario())


async def test_a_request_may_come_byte_by_byte() -> None:
    async with engine_connection() as (connection, _):
        for byte in post_request("/tokenize", {"prompt": "hello"}).to_bytes("sim"):
            await connection.send(bytes([byte]))
        assert (await connection.read_response()).json()["count"] == 2


async def test_a_chunked_body_is_read_like_any_other() -> None:
    async with engine_connection() as (connection, _):
        head = b"POST /tokenize HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        await connection.send(head + b'9\r\n{"prompt"\r\n4\r\n:"x"\r\n1\r\n}\r\n0\r\n\r\n')
        assert (await connection.read_response()).json()["tokens"] != []


async def test_a_client_that_waits_for_continue_receives_it() -> None:
    async with engine_connection() as (connection, _):
        head = b"POST /tokenize HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
        await connection.send(head + b"content-length: 14\r\n\r\n")
        await connection.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.received.clear()
        await connection.send(b'{"prompt":"x"}')
        assert (await connection.read_response()).status == 200


async def test_malformed_http_gets_a_plain_400_and_a_closed_connection() -> None:
    async with engine_connection() as (connection, _):
        await connection.send(b"hello there\r\n\r\n")
        while await connection.read_more():
            pass
        assert connection.received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert connection.received.endswith(b"Invalid HTTP request received.")


async def test_endless_headers_are_refused() -> None:
    async with engine_connection() as (connection, _):
        await connection.send(b"GET / HTTP/1.1\r\n" + b"x-a: " + b"a" * 70_000 + b"\r\n\r\n")
        while await connection.read_more():
            pass
        assert connection.received.startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_body_over_the_limit_gets_413_and_costs_no_memory() -> None:
    async with engine_connection() as (connection, engine):
        engine.app.body_bytes = 1_000
        head = (
            b"POST /tokenize HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\ncontent-length: 50000\r\n\r\n"
        )
        await connection.send(head + b"x" * 50_000)
        assert (await connection.read_response()).status == 413


async def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async with engine_connection(EngineSettings(keep_alive_seconds=0.05)) as (connection, engine):
        await connection.send(get_request("/health").to_bytes("sim"))
        await connection.read_response()
        assert await connection.read_more() == b""
        assert engine.app.connections == set()


async def test_connection_close_is_echoed_and_done() -> None:
    async with engine_connection() as (connection, _):
        await connection.send(b"GET /version HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n")
        assert (await connection.read_response()).fields["connection"] == "close"
        assert await connection.read_more() == b""


def test_a_clients_request_id_comes_back_in_header_and_body() -> None:
    request = post_request("/v1/completions", {"prompt": "x", "max_tokens": 1})
    named = RecordedRequest(request.method, request.target, (*request.headers, ("X-Request-Id", "mine")), request.body)
    answer = response_to(named)
    assert (answer.fields["x-request-id"], answer.json()["id"]) == ("mine", "cmpl-mine")


def test_without_the_switch_there_is_no_request_id() -> None:
    answer = response_to(get_request("/version"), EngineSettings(surface=ApiSurface(request_id_headers=False)))
    assert "x-request-id" not in answer.fields


def test_switched_off_parts_of_the_surface_are_not_there() -> None:
    off = EngineSettings(surface=ApiSurface(dev_mode=False, scale_out=False, runtime_lora=False, tokenizer_info=False))
    assert response_to(get_request("/is_sleeping"), off).status == 404
    assert response_to(get_request("/tokenizer_info"), off).status == 404
    assert response_to(post_request("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/a"}), off).status == 404
    refused = response_to(post_request("/inference/v1/generate", {"token_ids": [9], "sampling_params": {}}), off)
    assert (refused.status, refused.json()["error"]["type"]) == (403, "PermissionDeniedError")


async def test_a_crash_of_a_handler_is_a_500_and_the_engine_lives(monkeypatch: Any) -> None:
    async with engine_connection() as (connection, engine):
        monkeypatch.setattr(engine.engine.tokenizer, "encode", lambda _text: 1 // 0)
        await connection.send(post_request("/tokenize", {"prompt": "x"}).to_bytes("sim"))
        assert (await connection.read_response()).status == 500
        await connection.send(get_request("/health").to_bytes("sim"))
        assert (await connection.read_response()).status == 200
