"""The HTTP client for control traffic over real sockets: no response costs more than its limit."""

import asyncio
import gc
import socket
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.engines.sleep_mode import send_request
from fairlead.errors import Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.http_client import ConnectionRules, HttpReply, fetch, send
from fairlead_autoscaler.collector.gateway_scraper import fetch_page
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.http.certificates import CertificateAuthority
from fairlead_testing.http.gzip_bomb import MEBIBYTE, nested_gzip_bomb, nested_gzip_response, one_response_server

MAX_ALLOCATED_BYTES = 5 * MEBIBYTE
Request = Callable[[str], Awaitable[object]]


def _allocated_bytes(response: bytes, request: Request, why: str) -> int:
    """Returns the peak of allocated bytes while `request` refuses `response`, with reason `why`."""
    with one_response_server(response) as (url, _):
        tracemalloc.start()
        try:
            with pytest.raises(Unavailable, match=why):
                asyncio.run(_awaited(request(url)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


async def _awaited(reply: Awaitable[object]) -> object:
    return await reply


async def _query_engine(url: str) -> object:
    instance = Instance("main-0/8000/0", "default", "tiny", "main", url, "vllm")
    return await HttpEngineQuery(EngineCredentials({}, lambda: 0.0))(instance, "/kv_event_sources")


async def _query_sleep_mode(url: str) -> object:
    return await send_request("GET", f"{url}/is_sleeping", None, 5.0)


async def _fetch_gateway_page(url: str) -> object:
    return await fetch_page(f"{url}/metrics")


async def _fetch_at_most_a_mebibyte(url: str) -> object:
    return await fetch(url, timeout_seconds=20, max_bytes=MEBIBYTE)


REQUESTS = [_query_engine, _query_sleep_mode, _fetch_gateway_page]


def test_the_bomb_of_these_tests_explodes() -> None:
    once = zlib.decompressobj(wbits=31).decompress(nested_gzip_bomb())
    twice = zlib.decompressobj(wbits=31).decompress(once, 16 * MEBIBYTE)
    assert len(twice) == 16 * MEBIBYTE


@pytest.mark.parametrize("request_", REQUESTS)
def test_nested_gzip_bomb_is_refused_without_decompression(request_: Request) -> None:
    allocated = _allocated_bytes(nested_gzip_response(), request_, "content-encoding")
    assert allocated < MAX_ALLOCATED_BYTES


@pytest.mark.parametrize("request_", REQUESTS)
async def test_control_requests_ask_for_an_unencoded_response(request_: Request) -> None:
    body = b'{"is_sleeping": false}'
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: Identity\r\ncontent-length: %d\r\n\r\n"
    with one_response_server(head % len(body) + body) as (url, requests):
        await _awaited(request_(url))
    assert b"\r\naccept-encoding: identity\r\n" in requests[0].lower()


def test_endless_header_is_refused_at_its_limit() -> None:
    response = b"HTTP/1.1 200 OK\r\nx-filler: " + b"a" * (16 * MEBIBYTE) + b"\r\ncontent-length: 0\r\n\r\n"
    allocated = _allocated_bytes(response, _fetch_at_most_a_mebibyte, "head of the answer")
    assert allocated < MAX_ALLOCATED_BYTES


def test_endless_trailer_is_refused_at_the_limit_of_the_body() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    response = head + b"2\r\n{}\r\n0\r\nx-filler: " + b"a" * (16 * MEBIBYTE) + b"\r\n\r\n"
    allocated = _allocated_bytes(response, _fetch_at_most_a_mebibyte, "longer than 1048576 bytes")
    assert allocated < MAX_ALLOCATED_BYTES


def test_tiny_chunks_cost_no_more_memory_than_large_ones() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    response = head + b"2\r\nab\r\n" * (2 * MEBIBYTE)
    allocated = _allocated_bytes(response, _fetch_at_most_a_mebibyte, "longer than 1048576 bytes")
    assert allocated < MAX_ALLOCATED_BYTES


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = b"x" * MEBIBYTE
    with one_response_server(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as (url, _):
        assert await _awaited(_fetch_at_most_a_mebibyte(url)) == body


async def test_a_server_that_does_not_end_tls_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = CertificateAuthority(tmp_path)
    context, done = authority.issue("server").server_context(), threading.Event()

    def answer(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with context.wrap_socket(raw, server_side=True) as connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            done.wait()

    rules = ConnectionRules(tls_context=partial(ssl.create_default_context, cafile=str(authority.ca_file)))
    errors = collected_errors(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        reply = await send("GET", url, timeout_seconds=20, max_bytes=MEBIBYTE, rules=rules)
        gc.collect()
        done.set()
        thread.join()
    assert reply == HttpReply(200, b"ok")
    assert errors == []
