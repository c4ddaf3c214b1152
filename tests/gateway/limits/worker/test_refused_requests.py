"""Requests that are refused as wrong count in limits of requests, and use no tokens."""

import json

import pytest

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import Script, responds, well_behaved
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateway
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_REQUESTS = Limit(LimitUnit.REQUESTS, 3, Window.DAY)
_TOKENS = Limit(LimitUnit.TOKENS, 100_000, Window.DAY)
_ACME = Tenant("acme", limits=(_REQUESTS, _TOKENS))
_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
_RIGHT = json.dumps(_CHAT).encode()
_WRONG = {
    "no JSON": b"{nope",
    "no messages": json.dumps({"model": "tiny"}).encode(),
    "unknown model": json.dumps(_CHAT | {"model": "other"}).encode(),
    "refused field": json.dumps(_CHAT | {"priority": 1}).encode(),
    "large": json.dumps(_CHAT | {"priority": 1, "user": "x" * 300_000}).encode(),
}


async def _post(gateway: LimitedGateway, body: bytes) -> int:
    headers = {"authorization": "Bearer acme", "content-type": "application/json"}
    answered = await gateway.client.post(f"{gateway.running.url}/v1/chat/completions", content=body, headers=headers)
    await wait_until(lambda: gateway.busy("acme", _REQUESTS.id) == 0)
    return answered.status_code


def _answers(status: int) -> Script:
    return responds({"error": {"message": "?", "type": "x", "code": status}}, f"{status} Answer")


async def _outcome(script: Script, body: bytes) -> tuple[list[int], int, int]:
    """Returns the statuses of six requests, and the requests and tokens that they have used."""
    async with limited_gateway(script, [_ACME]) as gateway:
        statuses = [await _post(gateway, body) for _ in range(6)]
        return statuses, gateway.used("acme", _REQUESTS.id), gateway.used("acme", _TOKENS.id)


@pytest.mark.parametrize("wrong", _WRONG)
async def test_requests_that_the_gateway_refuses_count(wrong: str) -> None:
    statuses, requests, tokens = await _outcome(well_behaved, _WRONG[wrong])
    assert 400 <= statuses[0] < 429
    assert statuses == statuses[:1] * 3 + [429] * 3
    assert (requests, tokens) == (3, 0)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_requests_that_an_engine_refuses_count(status: int) -> None:
    assert await _outcome(_answers(status), _RIGHT) == ([status] * 3 + [429] * 3, 3, 0)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_requests_that_an_engine_cannot_serve_do_not_count(status: int) -> None:
    statuses, requests, tokens = await _outcome(_answers(status), _RIGHT)
    assert min(statuses) >= 429
    assert (requests, tokens) == (0, 0)
