"""The number of client connections: bounded, and within the limit of open files."""

import pytest

from fairlead.limits import Limits
from fairlead_gateway.http.listener import INSTANCE_DESCRIPTORS, max_connections
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import scripted_engine, silent, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

KEY_OF_ONE, KEY_OF_TWO = "x-api-key: one\r\n", "x-api-key: two\r\n"
KEYS = ApiKeys(b"pepper", {key_digest(name.encode(), b"pepper"): name for name in ("one", "two")})


@pytest.mark.parametrize(
    ("open_files", "instances", "connections"),
    [
        (None, 4_096, 20_000),
        (1_048_576, 4_096, 20_000),
        (20_480, 0, 20_000),
        (20_480, 100, 19_424),
        (4_096, 100, 3_040),
        (1_024, 8, 704),
        (1_024, 4_096, 64),
    ],
)
def test_connections_follow_the_limit_of_open_files(open_files: int | None, instances: int, connections: int) -> None:
    assert max_connections(Limits(), open_files, instances) == connections


async def test_a_worker_with_few_open_files_refuses_clients_before_it_runs_out_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(min_connections=1)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        gateway = running.gateway
        assert gateway.readiness() == (True, [])
        gateway.runtime.max_open_files = limits.reserved_descriptors + INSTANCE_DESCRIPTORS + 2
        gateway.update_fleet(fleet_of([engine.url], version=2))
        ready, (warning,) = gateway.readiness()
        assert ready
        assert "2 client connections, not 20000" in warning
        assert "`LimitNOFILE`" in warning
        gateway.update_fleet(fleet_of([engine.url], version=3))
        assert caplog.text.count("since it may have only 266 open files") == 1
        first, second = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        for connection in (first, second):
            await connection.send(post_request(GOOD, close=False)[:-1])
        await wait_until(lambda: gateway.listener.buffered_bytes > 0)
        assert [answer.status for answer in await send(running.url, b"")] == [503]
        gateway.update_fleet(fleet_of([engine.url, engine.url], version=4))
        assert gateway.listener.max_connections == 1
        await first.close()
        await second.close()


async def test_a_loss_of_few_connections_is_no_warning() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        gateway = running.gateway
        for open_files, connections, warnings in ((20_000, 19_736, 0), (19_264, 19_000, 0), (19_263, 18_999, 1)):
            gateway.runtime.max_open_files = open_files
            gateway.update_fleet(fleet_of([engine.url], version=open_files))
            assert gateway.listener.max_connections == connections
            assert len(gateway.readiness()[1]) == warnings


async def test_a_flood_of_connections_is_reset_so_that_refusals_are_bounded() -> None:
    limits = Limits(connections=1, reserved_descriptors=4)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connections = [await RawConnection.connect(running.url)]
        await connections[0].send(post_request(GOOD)[:-1])
        await wait_until(lambda: running.gateway.listener.buffered_bytes > 0)
        for _ in range(2):
            connections.append(await RawConnection.connect(running.url))
            assert (await connections[-1].read_response()).status == 503
        assert await send(running.url, b"") == []
        for connection in connections:
            await connection.close()


async def test_more_connections_than_the_limit_are_refused() -> None:
    async with gateway_of(well_behaved, limits=Limits(connections=2)) as (running, *_):
        first, second = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        for connection in (first, second):
            await connection.send(post_request(GOOD, close=False)[:-1])
        await wait_until(lambda: running.gateway.listener.count_busy() == 2)
        await wait_until(lambda: not any(connection.is_idle for connection in running.gateway.listener.connections))
        refused = await send(running.url, b"")
        assert [answer.status for answer in refused] == [503]
        assert refused[0].fields["retry-after"] == "1"
        await first.close()
        await second.close()


async def test_connections_of_strangers_keep_no_caller_out() -> None:
    async with gateway_of(well_behaved, limits=Limits(connections=4), api_keys=KEYS) as (running, *_):
        caller = await RawConnection.connect(running.url)
        await caller.send(post_request(GOOD, close=False, more=KEY_OF_ONE))
        assert (await caller.read_response()).status == 200
        strangers = [await RawConnection.connect(running.url) for _ in range(3)]
        await strangers[0].send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n")
        await strangers[1].send(get_request("/readyz", close=False))
        await wait_until(lambda: len(running.gateway.listener.connections) == 4)
        for _ in range(20):
            strangers.append(await RawConnection.connect(running.url))
            assert (await request(running.url, GOOD, more=KEY_OF_TWO)).status == 200
        await caller.send(post_request(GOOD, close=False, more=KEY_OF_ONE))
        assert (await caller.read_response()).status == 200
        for connection in (caller, *strangers):
            await connection.close()


async def test_idle_connections_of_one_caller_keep_no_other_out() -> None:
    async with gateway_of(well_behaved, limits=Limits(connections=4), api_keys=KEYS) as (running, *_):
        idle = [await RawConnection.connect(running.url) for _ in range(4)]
        for connection in idle:
            await connection.send(post_request(GOOD, close=False, more=KEY_OF_ONE))
            assert (await connection.read_response()).status in (200, 503)
        statuses = [(await request(running.url, GOOD, more=KEY_OF_TWO)).status for _ in range(4)]
        assert statuses[1:] == [200, 200, 200]
        for connection in idle:
            await connection.close()


async def test_busy_connections_of_one_caller_leave_some_to_others() -> None:
    limits = Limits(connections=4, caller_connections_share=0.5)
    async with gateway_of(silent, limits=limits, api_keys=KEYS) as (running, *_):
        busy = [await RawConnection.connect(running.url) for _ in range(3)]
        for connection in busy:
            await connection.send(post_request(GOOD, close=False, more=KEY_OF_ONE))
        await wait_until(lambda: running.gateway.inflight_count() == 3)
        refused = await request(running.url, GOOD, more=KEY_OF_ONE)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        other = await RawConnection.connect(running.url)
        await other.send(post_request(GOOD, close=False, more=KEY_OF_TWO))
        await wait_until(lambda: running.gateway.inflight_count() == 4)
        for connection in (*busy, other):
            await connection.close()
