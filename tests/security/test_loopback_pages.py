"""Ports on loopback that ask for no key answer no web page of another site."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiohttp import web
from prometheus_client.registry import Collector

from fairlead import http_access
from fairlead.runtime.aiohttp_server import ProbeResult, add_probes, refuse_foreign_pages, serve
from fairlead_downloader.__main__ import make_application as downloader_app
from fairlead_kvstore.indexer.service import create_app as indexer_app
from fairlead_operator.http_server import make_application as operator_app
from fairlead_testing.http.raw_client import send
from fairlead_testing.sim.engines import running_engine

pytestmark = pytest.mark.sockets
FOREIGN = [
    "host: evil.example\r\n",
    "host: evil.example:8000\r\n",
    "host: 127.0.0.1\r\norigin: https://evil.example\r\n",
    "host: localhost\r\norigin: null\r\n",
    "host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
]
OWN = [
    "host: 127.0.0.1\r\n",
    "host: [::1]:8000\r\n",
    "host: sim\r\n",
    "host: engine.chat.svc\r\n",
    "host: localhost:80\r\norigin: http://localhost:80\r\n",
    "host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n",
]


class _NoMetrics(Collector):
    def collect(self) -> list[object]:  # type: ignore[override]  # none
        return []


async def _statuses(url: str, heads: list[str], path: str, method: str = "GET") -> list[int]:
    more = "connection: close\r\ncontent-length: 0\r\n\r\n"
    return [(await send(url, f"{method} {path} HTTP/1.1\r\n{head}{more}".encode()))[0].status for head in heads]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/sleep"), ("OPTIONS", "/v1/models")],
)
async def test_a_simulated_engine_refuses_pages_of_other_sites_on_every_path(method: str, path: str) -> None:
    async with running_engine() as engine:
        assert set(await _statuses(engine.url, FOREIGN, path, method)) == {403}
        assert 403 not in await _statuses(engine.url, OWN, "/health")
        (answer,) = await send(engine.url, b"GET /health HTTP/1.0\r\n\r\n")
        assert answer.status == 200


async def test_a_port_with_probes_refuses_pages_of_other_sites() -> None:
    app = web.Application(middlewares=[refuse_foreign_pages])
    add_probes(app, _NoMetrics(), lambda: ProbeResult(True, "well"), lambda: ProbeResult(True, "well"))
    async with serve(app, "127.0.0.1", 0) as address:
        for path in ("/healthz", "/readyz", "/metrics", "/nowhere"):
            assert set(await _statuses(f"http://{address}", FOREIGN, path)) == {403}
        assert set(await _statuses(f"http://{address}", OWN, "/healthz")) == {200}


def test_each_port_without_rules_of_its_own_has_these() -> None:
    nothing = cast(Any, None)
    apps = [indexer_app(cast(Any, _NoMetrics())), operator_app(nothing, nothing), downloader_app(nothing)]
    assert [app for app in apps if refuse_foreign_pages not in app.middlewares] == []


@pytest.mark.parametrize(("address", "expected"), [("127.0.0.1", True), ("::1", True), ("10.0.0.7", False)])
def test_ports_that_others_reach_are_left_to_the_network(address: str, expected: bool) -> None:
    class Transport(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: object = None) -> object:
            return (address, 8000) if name == "sockname" else default

    assert http_access.is_loopback_socket(Transport()) is expected


@pytest.mark.parametrize("address", [None, "/run/engine.sock", b""])
def test_a_socket_without_an_address_is_no_loopback_port(address: object) -> None:
    transport = asyncio.BaseTransport({"sockname": address})
    assert not http_access.is_loopback_socket(transport)
    assert not http_access.is_loopback_socket(None)


def _header(**fields: str) -> Callable[[str], str | None]:
    return {name.replace("_", "-"): value for name, value in fields.items()}.get


def test_a_request_without_host_is_of_no_browser() -> None:
    assert not http_access.is_foreign_page(_header(origin="https://evil.example"))
    assert http_access.is_foreign_page(_header(host="x", origin="https://evil.example"))
