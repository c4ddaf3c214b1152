"""Requests that come back to the gateway which sent them, or pass too many, are refused."""

import pytest

from fairlead_gateway.upstream.request_encoder import HOPS, create_hop_id
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

OWN = create_hop_id(b"a secret of the test")


async def test_a_gateway_that_is_its_own_endpoint_does_not_loop() -> None:
    async with running_gateway(fleet_of([])) as running:
        running.gateway.update_fleet(fleet_of([running.url], version=2))
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert "status-508" in answer.error["message"]
        assert len(running.gateway.decisions) == 1
        assert len(running.gateway.listener.connections) <= 2


@pytest.mark.parametrize(
    "more",
    [
        f"x-fairlead-hops: {OWN}\r\n",
        f"x-fairlead-hops: 0123456789ab, {OWN}\r\n",
        f"x-fairlead-hops: 0123456789ab\r\nX-Fairlead-Hops: {OWN}\r\n",
        "x-fairlead-hops: 0123456789ab\r\n" * (HOPS + 1),
    ],
)
async def test_a_request_that_was_here_or_has_passed_too_many_gateways_is_refused(more: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD, more=more)
        assert (answer.status, answer.error["code"]) == (508, "gateway_loop")
        assert "endpoint" in answer.error["message"]
        assert engine.calls == []
        bad = await request(running.url, GOOD, more="x-fairlead-hops: me\r\n")
        assert (bad.status, bad.error["param"]) == (400, "x-fairlead-hops")


async def test_the_next_gateway_sees_all_gateways_before_it() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        hops = [f"{number:012x}" for number in range(HOPS)]
        more = "".join(f"x-fairlead-hops: {hop}\r\n" for hop in hops)
        assert (await request(running.url, GOOD, more=more)).status == 200
        assert [value for name, value in engine.calls[0].fields if name == "x-fairlead-hops"] == [OWN, *hops]
