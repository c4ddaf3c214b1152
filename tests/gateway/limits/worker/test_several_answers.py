"""A request for several answers reserves and pays all of them, also if its client goes away."""

import asyncio
import dataclasses
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall, responds, usage
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_OUTPUT = Limit(LimitUnit.OUTPUT_TOKENS, 100, Window.DAY)
_CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
_TEXT = ("/v1/completions", {"prompt": "hi"})
_TEXTS = ("/v1/completions", {"prompt": ["hi", "ho"]})
_CASES = [
    (*_CHAT, {"n": 4}, 4),
    (*_TEXT, {"n": 2}, 2),
    (*_TEXT, {"best_of": 5}, 5),
    (*_TEXT, {"n": 2, "best_of": 5}, 5),
    (*_TEXTS, {}, 2),
    (*_TEXTS, {"n": 2, "best_of": 5}, 10),
]


_answer = responds(
    {
        **usage(3, 0, 77),
        "id": "x",
        "object": "text_completion",
        "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}],
    }
)


async def _post(gateway: LimitedGateway, path: str, body: dict[str, Any]) -> int:
    headers = {"authorization": "Bearer acme"}
    answer = await gateway.client.post(f"{gateway.running.url}{path}", json={"model": "tiny", **body}, headers=headers)
    return answer.status_code


@pytest.mark.parametrize(("path", "prompt", "asked", "answers"), _CASES)
async def test_strict_limits_reserve_every_answer(
    path: str, prompt: dict[str, Any], asked: dict[str, Any], answers: int
) -> None:
    tenant = Tenant("acme", limits=(_OUTPUT,), enforcement=Enforcement.STRICT)
    async with limited_gateway(_answer, [tenant]) as gateway:
        most = 100 // answers
        assert await _post(gateway, path, {**prompt, **asked, "max_tokens": most + 1}) == 429
        assert await _post(gateway, path, {**prompt, **asked, "max_tokens": most}) == 200
        await wait_until(lambda: gateway.busy("acme", _OUTPUT.id) == 0)
        assert gateway.used("acme", _OUTPUT.id) == 77, "what the engine reported"


@pytest.mark.parametrize(("path", "prompt", "asked", "answers"), _CASES)
async def test_a_client_that_goes_away_pays_every_answer(
    path: str, prompt: dict[str, Any], asked: dict[str, Any], answers: int
) -> None:
    """An engine has computed all that it may, so far as the gateway can know."""
    called = asyncio.Event()

    async def script(call: EngineCall) -> None:
        called.set()
        await call.wait_closed()

    limits = dataclasses.replace(Limits(), disconnected_tokens_per_second=10**12)
    limit = dataclasses.replace(_OUTPUT, amount=10_000)
    async with limited_gateway(script, [Tenant("acme", limits=(limit,))], limits) as gateway:
        connection = await RawConnection.connect(gateway.running.url)
        body = {"model": "tiny", **prompt, **asked, "max_tokens": 9}
        await connection.send(post_request(body, path=path, more="authorization: Bearer acme\r\n"))
        await called.wait()
        assert gateway.busy("acme", limit.id) == 9 * answers
        await asyncio.sleep(0.01)  # the engine has computed all tokens
        await connection.close()
        await wait_until(lambda: gateway.busy("acme", limit.id) == 0)
        assert gateway.used("acme", limit.id) == 9 * answers
