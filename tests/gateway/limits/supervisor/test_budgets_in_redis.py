"""A budget at its edge, over two gateways that share a real server."""

import asyncio
import math
import time
from functools import partial

import httpx
import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateways
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

_PRICE = TokenPrice(10, 1, 20)
_COST = 7 * 10 + 5 * 20
"""The cost of each answer: seven tokens of the prompt, five of the output."""


async def _spend_all(gateways: list[LimitedGateway]) -> tuple[int, httpx.Response]:
    """Sends chats to all gateways until each refuses; returns how many were answered.

    They come eight at a time, and then one at a time. Of several at once, one may be refused for
    what another reserves and does not use. A strict budget is closed for one lease at first.
    """
    answered, width = 0, 8
    while True:
        waves = [[gateways[number % 2] for number in range(8)]] if width == 8 else [[gateway] for gateway in gateways]
        answers = [
            answer
            for wave in waves
            for answer in await asyncio.gather(*(gateway.chat("acme", max_tokens=5) for gateway in wave))
        ]
        codes = [answer.status_code for answer in answers]
        assert set(codes) <= {200, 429, 503}
        answered += codes.count(200)
        if width == 1 and set(codes) == {429}:
            return answered, answers[-1]
        if 429 in codes:
            width = 1


async def _is_known(gateways: list[LimitedGateway], spent: int) -> bool:
    """Returns whether every gateway shows that so much is used, and nothing is reserved."""
    states = [state for gateway in gateways for state in await gateway.service.states(None, 1)]
    return [state.used for state in states] == [spent] * len(gateways)


@pytest.mark.parametrize(
    ("enforcement", "lease_seconds", "reserved"),
    [(Enforcement.ESTIMATED, 30.0, 2 * _COST), (Enforcement.STRICT, 2.0, 5 * 20 + 10 * 400)],
)
async def test_two_gateways_spend_a_budget_to_the_last_request(
    server: Valkey, enforcement: Enforcement, lease_seconds: float, reserved: int
) -> None:
    """No answer costs more than was reserved for it, so even an estimated budget is not exceeded.

    reserved: no less than what one request reserves; less than this may be left.
    """
    budget = Limit(LimitUnit.COST, 60 * _COST, Window.DAY)
    tenants = [Tenant("acme", limits=(budget,), enforcement=enforcement)]
    async with limited_gateways(server.url, tenants, 2, lease_seconds=lease_seconds, price=_PRICE) as gateways:
        answered, refused = await _spend_all(gateways)
        spent = answered * _COST
        assert budget.amount - reserved < spent <= budget.amount
        await wait_until(partial(_is_known, gateways, spent))
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
        assert "the limit of 0.0000102 US dollars per day of tenant acme is reached" in error["message"]
        assert "x-ratelimit-remaining-tokens" not in refused.headers


async def test_a_refusal_names_the_end_of_the_window(server: Valkey) -> None:
    budget = Limit(LimitUnit.COST, 3 * _COST, Window.MONTH)
    async with limited_gateways(server.url, [Tenant("acme", limits=(budget,))], 2, price=_PRICE) as gateways:
        before = time.time()
        _, refused = await _spend_all(gateways)
        ends = {gateway.service.ledgers["acme"].last_reply[budget.id].end / 1000 for gateway in gateways}
        assert len(ends) == 1
        (end,) = ends
        rest = int(refused.headers["retry-after"])
        assert math.ceil(end - time.time()) - 1 <= rest <= math.ceil(end - before) + 1


async def test_a_request_that_costs_more_than_the_budget_says_what_it_may_cost(server: Valkey) -> None:
    budget = Limit(LimitUnit.COST, 2_000_000, Window.DAY)
    tenants = [Tenant("acme", limits=(budget,), enforcement=Enforcement.STRICT)]
    async with limited_gateways(server.url, tenants, 2, price=_PRICE) as gateways:
        refused = await gateways[0].chat("acme", max_tokens=1_000_000)
        message = refused.json()["error"]["message"]
        assert refused.status_code == 429
        assert message.startswith("the limit of 0.002 US dollars per day of tenant acme is reached;")
        assert "this request may cost 0.02" in message
        assert (await gateways[1].chat("acme", max_tokens=5)).status_code == 200
