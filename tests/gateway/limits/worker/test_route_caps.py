"""Limits of tenants count the tokens that a route's cap leaves, not those of the client."""

import pytest

from fairlead.routes.model import RequestRewrite, Route, RouteTarget
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall
from fairlead_testing.gateway.limited_gateway import answer, limited_gateway

pytestmark = pytest.mark.simulated

_OUTPUT = Limit(LimitUnit.OUTPUT_TOKENS, 25, Window.DAY)
_CAPPED = RequestRewrite((), (("max_tokens", 10), ("n", 2)))
_ROUTE = Route("default", "capped", (RouteTarget("default/tiny"),), names=("capped",), rewrite=_CAPPED)


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [({"max_tokens": 9_000}, 10), ({"max_completion_tokens": 9_000}, 10), ({}, 10), ({"n": 100}, 20)],
)
async def test_a_request_reserves_what_the_cap_leaves(fields: dict[str, int], reserved: int) -> None:
    """Without the route, none of these requests fits into the limit."""
    reservations: list[int] = []
    tenant = Tenant("acme", limits=(_OUTPUT,), enforcement=Enforcement.STRICT)

    async def observe(call: EngineCall) -> None:
        reservations.append(gateway.busy("acme", _OUTPUT.id))
        await call.respond(answer())

    async with limited_gateway(observe, [tenant], routes=[_ROUTE]) as gateway:
        assert (await gateway.chat("acme", **fields)).status_code in (400, 429)
        assert (await gateway.chat("acme", model="capped", **fields)).status_code == 200
    assert reservations == [reserved]
