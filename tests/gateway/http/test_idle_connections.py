"""Idle connections outlive those of load balancers, so that no request meets a closed one."""

import asyncio
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead.settings import GatewaySettings
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, gateway_of
from fairlead_testing.http.raw_client import RawConnection, post_request

pytestmark = pytest.mark.simulated

NEIGHBOURS = {"AWS": 60.0, "nginx": 60.0, "Google": 600.0}
SET = {"300s": 300.0, "15m30s": 900.0, "1h": 3_590.0}


@pytest.mark.parametrize("idle_seconds", NEIGHBOURS.values(), ids=NEIGHBOURS)
async def test_a_request_on_a_connection_that_a_neighbour_kept_is_answered(idle_seconds: float) -> None:
    assert Limits().keepalive_idle_seconds == GatewaySettings().limits()["keepalive_idle_seconds"]
    async with gateway_of(well_behaved) as (running, *_):
        connection = await RawConnection.connect(running.url)
        for _ in range(3):
            await connection.send(post_request(GOOD, close=False))
            assert (await connection.read_response()).status == 200
            await asyncio.sleep(idle_seconds)
        await connection.close()


@pytest.mark.parametrize("text", SET)
@pytest.mark.parametrize("has_sent", [False, True])
async def test_the_setting_says_when_an_idle_connection_is_closed(text: str, has_sent: bool) -> None:
    limits = replace(Limits(), **GatewaySettings(client_idle_timeout=text).limits())
    async with gateway_of(well_behaved, limits=limits) as (running, *_):
        connection = await RawConnection.connect(running.url)
        if has_sent:
            await connection.send(post_request(GOOD, close=False))
            assert (await connection.read_response()).status == 200
        await asyncio.sleep(SET[text] - 1.0)
        await connection.send(post_request(GOOD, close=False))
        assert (await connection.read_response()).status == 200
        closed = asyncio.create_task(connection.reader.read())
        await asyncio.sleep(limits.keepalive_idle_seconds + 1.0)
        assert closed.done()
        await connection.close()
