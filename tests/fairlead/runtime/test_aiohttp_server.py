"""The port of a control-plane process: strangers who flood it keep no probe from its answer."""

import asyncio
import socket

import httpx
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.runtime.aiohttp_server import (
    MAX_CONNECTIONS,
    MAX_KERNEL_BYTES,
    MetricsPage,
    ProbeResult,
    add_probes,
    serve,
)


class Gauge(Collector):
    def collect(self) -> list[Metric]:
        return [GaugeMetricFamily("models", "known models", 3)]


async def test_connections_that_strangers_leave_open_are_bounded_and_probes_answered() -> None:
    app = web.Application()
    add_probes(app, Gauge(), lambda: ProbeResult(True, "well"), lambda: ProbeResult(False, "not yet"))
    async with serve(app, "127.0.0.1", 0) as address:
        host, _, port = address.rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(MAX_CONNECTIONS + 44)]
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            assert (await client.get("/healthz")).text == "well\n"
            assert (await client.get("/readyz")).status_code == 503
            assert "models 3.0" in (await client.get("/metrics")).text
        for reader, _ in idle[:45]:  # the oldest, for those that came later
            try:
                assert await asyncio.wait_for(reader.read(), 60.0) == b""
            except ConnectionResetError:
                pass
        assert not any(reader.at_eof() for reader, _ in idle[45:])
        for _, writer in idle:
            writer.close()


async def test_kernel_takes_few_bytes_for_a_client_that_never_reads() -> None:
    async def bound(request: web.Request) -> web.Response:
        assert request.transport is not None
        connected = request.transport.get_extra_info("socket")
        return web.Response(text=str(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)))

    app = web.Application()
    app.add_routes([web.get("/bound", bound)])
    async with serve(app, "127.0.0.1", 0) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert int((await client.get("/bound")).text) == MAX_KERNEL_BYTES


def test_metrics_page_is_rendered_once_a_second_however_often_it_is_requested() -> None:
    rendered: list[float] = []
    now = 100.0

    def render() -> bytes:
        rendered.append(now)
        return b"page %d" % len(rendered)

    page = MetricsPage(render, lambda: now)
    assert [page.body() for _ in range(1_000)] == [b"page 1"] * 1_000
    now = 101.0
    assert page.body() == b"page 2"
    assert rendered == [100.0, 101.0]


async def test_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        try:
            async with serve(web.Application(), "127.0.0.1", taken.getsockname()[1]):
                raise AssertionError("it listens")
        except OSError:
            return
