"""The price of an external endpoint counts in the budget of a tenant. The model that failed costs
nothing.
"""

from dataclasses import replace

import pytest

from fairlead.fleet.model import EXTERNAL_API, Model, RequestPolicy, TokenPrice
from fairlead.routes.model import FailureKind, Fallback, Route, RouteTarget
from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall
from fairlead_testing.gateway.limited_gateway import answer, limited_gateway
from fairlead_testing.gateway.running_gateway import MODEL_KEY

pytestmark = pytest.mark.simulated

_BUDGET = Limit(LimitUnit.COST, 1_000_000_000, Window.MONTH)
_HOSTED = "default/hosted"
_ROUTE = Route(
    "default",
    "assistant",
    (RouteTarget(MODEL_KEY),),
    names=("assistant",),
    fallbacks=(Fallback(_HOSTED, frozenset({FailureKind.UNAVAILABLE})),),
)


async def test_external_answer_costs_its_own_price() -> None:
    async def script(call: EngineCall) -> None:
        if call.json["model"] == "tiny":
            await call.respond({"error": {"message": "oh"}}, "500 Internal Server Error")
        else:
            await call.respond(answer(prompt=7, output=5, cached=3))

    tenant = Tenant("acme", limits=(_BUDGET,))
    own = TokenPrice(1_000, 1_000, 1_000)
    async with limited_gateway(script, [tenant], price=own, routes=[_ROUTE]) as gateway:
        running = gateway.running.gateway
        fleet = running.stages.routers.fleet
        (instance,) = fleet.instances[MODEL_KEY]
        policy = RequestPolicy(frozenset({EXTERNAL_API}))
        hosted = Model("default", "hosted", price=TokenPrice(10, 1, 100), requests=policy)
        outside = replace(instance, id="hosted/0", model="hosted", engine=EXTERNAL_API)
        models, instances = {**fleet.models, _HOSTED: hosted}, {**fleet.instances, _HOSTED: (outside,)}
        running.update_fleet(replace(fleet, version=2, models=models, instances=instances))
        reply = await gateway.chat("acme", model="assistant")
        assert (reply.status_code, reply.headers["x-fairlead-model"]) == (200, _HOSTED)
        assert gateway.used("acme", _BUDGET.id) == 4 * 10 + 3 * 1 + 5 * 100
        assert gateway.busy("acme", _BUDGET.id) == 0
