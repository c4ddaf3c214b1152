"""Limits, routes and records count pictures by part, and text as dense as its tenant's."""

import base64
import random
from typing import Any

import pytest

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_testing.engines.scripted import EngineCall
from fairlead_testing.gateway.limited_gateway import LimitedGateway, answer, limited_gateway
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_TOKENS = Limit(LimitUnit.TOKENS, 50_000, Window.MINUTE)
_INPUT = Limit(LimitUnit.INPUT_TOKENS, 10_000_000, Window.DAY)
PICTURE = "data:image/png;base64," + base64.b64encode(random.Random(1).randbytes(500_000)).decode()
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]
    },
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
    "/v1/messages": {
        "max_tokens": 10,
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PICTURE.partition(",")[2]},
                    }
                ],
            }
        ],
    },
}


async def _post(gateway: LimitedGateway, path: str, **fields: object) -> int:
    headers = {"authorization": "Bearer acme"}
    url = f"{gateway.running.url}{path}"
    return (
        await gateway.client.post(url, json={"model": "tiny", **BODIES[path], **fields}, headers=headers)
    ).status_code


@pytest.mark.parametrize("path", list(BODIES))
async def test_a_picture_fits_into_a_limit_that_is_smaller_than_its_bytes(path: str) -> None:
    async def script(call: EngineCall) -> None:
        counts = {"input_tokens": 900, "output_tokens": 5, "prompt_tokens": 900, "completion_tokens": 5}
        await call.respond({"choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}], "usage": counts})

    async with limited_gateway(script, [Tenant("acme", limits=(_TOKENS,))]) as gateway:
        for count in range(1, 4):
            assert await _post(gateway, path) == 200
            assert gateway.used("acme", _TOKENS.id) == 905 * count


async def test_the_tokens_of_pictures_are_learned_and_those_of_text_stay() -> None:
    async def script(call: EngineCall) -> None:
        await call.respond(answer(prompt=4_000 if b"base64" in call.body else 500))

    async with limited_gateway(script, [Tenant("acme", limits=(_INPUT,))]) as gateway:
        routers = gateway.running.gateway.stages.routers.serving
        text = [{"role": "user", "content": "word " * 400}]
        for _ in range(10):
            assert await _post(gateway, "/v1/chat/completions") == 200
            assert await _post(gateway, "/v1/chat/completions", messages=text) == 200
        decisions = gateway.running.gateway.decisions.latest(2)
        expected = sorted(logged.latest.prompt_tokens for logged in decisions)
        assert 450 <= expected[0] <= 550
        assert 3_500 <= expected[1] <= 4_500
        assert len(routers.sizes._media) == 1


async def test_a_client_who_leaves_pays_its_prompt_as_dense_as_its_earlier_ones() -> None:
    text = [{"role": "user", "content": "17 " * 1_000}]

    async def script(call: EngineCall) -> None:
        if call.json.get("stream"):
            await call.start_stream()
            await call.event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
            await call.wait_closed()
        await call.respond(answer(prompt=2_500 if "17" in call.json["messages"][0]["content"] else 250))

    tenants = [Tenant("acme", limits=(_INPUT,)), Tenant("zeta", limits=(_INPUT,))]
    async with limited_gateway(script, tenants) as gateway:
        for _ in range(20):
            assert (await gateway.chat("acme", messages=text)).status_code == 200
            for _ in range(3):
                plain = [{"role": "user", "content": "word " * 200}]
                assert (await gateway.chat("zeta", messages=plain)).status_code == 200
        before = gateway.used("acme", _INPUT.id)
        body = {"model": "tiny", "messages": text, "stream": True}
        headers = {"authorization": "Bearer acme"}
        async with gateway.client.stream(
            "POST", f"{gateway.running.url}/v1/chat/completions", json=body, headers=headers
        ) as left:
            async for _ in left.aiter_lines():
                break
        await wait_until(lambda: gateway.busy("acme", _INPUT.id) == 0)
        assert gateway.used("acme", _INPUT.id) - before == pytest.approx(2_500, rel=0.02)


async def test_dense_text_of_a_caller_takes_no_memory_from_others() -> None:
    async def script(call: EngineCall) -> None:
        await call.respond(answer(prompt=1_600 if b"123" in call.body else 500))

    async with limited_gateway(script, [Tenant("dense"), Tenant("acme")]) as gateway:
        texts = {"dense": "1234567890" * 160, "acme": "word " * 400}
        for name in ["dense"] * 40 + ["acme", "dense", "acme"]:
            body = {"model": "tiny", "messages": [{"role": "user", "content": texts[name]}]}
            headers = {"authorization": f"Bearer {name}"}
            answered = await gateway.client.post(
                f"{gateway.running.url}/v1/chat/completions", json=body, headers=headers
            )
            assert answered.status_code == 200
        router = gateway.running.gateway.stages.routers.serving.router("default/tiny")
        assert router is not None
        tokens = {}
        for name in ("dense", "acme"):
            request = RouteRequest("r", PrefixChain((), (), 0), 400.0)
            request.caller = name
            tokens[name] = router.prompt_tokens(request)
        assert tokens["dense"] > 1_000
        assert tokens["acme"] < 500
