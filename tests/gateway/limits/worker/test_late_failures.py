"""Requests that fail after their engine has computed: they pay for what was computed, unless the
engine or the gateway is to blame."""

import asyncio

import httpx
import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.limits import Limits
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall, Script, responds, silent, streams, token, usage
from fairlead_testing.gateway.limited_gateway import QUICK_LIMITS, LimitedGateway, answer, limited_gateway
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_INPUT = Limit(LimitUnit.INPUT_TOKENS, 100_000, Window.DAY)
_OUTPUT = Limit(LimitUnit.OUTPUT_TOKENS, 100_000, Window.DAY)
_ACME = Tenant("acme", limits=(_INPUT, _OUTPUT))


async def _post(gateway: LimitedGateway, timeout: str = "", **fields: object) -> httpx.Response:
    """Sends a chat and reads its answer, which may break off."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **fields}
    headers = {"authorization": "Bearer acme", **({"x-request-timeout": timeout} if timeout else {})}
    return await gateway.client.post(f"{gateway.running.url}/v1/chat/completions", json=body, headers=headers)


async def _used(gateway: LimitedGateway) -> tuple[int, int]:
    """Returns the tokens of prompt and answer that were charged, once the request has settled."""
    await wait_until(lambda: gateway.busy("acme", _OUTPUT.id) == 0)
    return gateway.used("acme", _INPUT.id), gateway.used("acme", _OUTPUT.id)


async def _stream_until_failure(gateway: LimitedGateway, read: asyncio.Event, **fields: object) -> None:
    """Streams a chat to its end; sets `read` when the second token has come."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
    url, headers = f"{gateway.running.url}/v1/chat/completions", {"authorization": "Bearer acme"}
    async with gateway.client.stream("POST", url, json=body, headers=headers) as got:
        seen = b""
        async for part in got.aiter_bytes():
            seen += part
            if b'"b"' in seen:
                read.set()


def _failing_after_two_tokens(read: asyncio.Event, error: dict[str, object] | None) -> Script:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await call.event(token("b"))
        await read.wait()
        if error is not None:
            await call.event({"error": error})
        call.writer.close()

    return script


@pytest.mark.parametrize("code", [400, 422])
async def test_a_stream_that_its_engine_refuses_late_pays_for_its_tokens(code: int) -> None:
    read = asyncio.Event()
    script = _failing_after_two_tokens(read, {"message": "the grammar has no way on", "code": code})
    async with limited_gateway(script, [_ACME]) as gateway:
        await _stream_until_failure(gateway, read, n=2)
        prompt, output = await _used(gateway)
        assert prompt > 0
        assert output == 2


@pytest.mark.parametrize("error", [None, {"message": "out of memory", "code": 500}, {"message": "?"}])
async def test_a_stream_that_its_engine_fails_is_refunded(error: dict[str, object] | None) -> None:
    read = asyncio.Event()
    async with limited_gateway(_failing_after_two_tokens(read, error), [_ACME]) as gateway:
        await _stream_until_failure(gateway, read, n=2)  # several answers: nothing continues it
        assert await _used(gateway) == (0, 0)


@pytest.mark.parametrize("tokens", [0, 5])
async def test_an_event_that_the_client_made_too_long_is_paid(tokens: int) -> None:
    """Log probabilities, token ids and tools make an event as long as a client wants."""
    script = streams(*[token("a")] * tokens, {**token("b"), "prompt_token_ids": [12_345] * 200_000}, end=silent)
    async with limited_gateway(script, [_ACME], Limits(sse_event_bytes=1_048_576)) as gateway:
        assert (await _post(gateway, stream=True, n=2)).status_code == (200 if tokens else 502)
        prompt, output = await _used(gateway)
        assert prompt > 0
        assert output == tokens
        assert len(gateway.calls) == 1


async def test_a_stream_that_outlasts_its_own_timeout_pays_for_its_tokens() -> None:
    async with limited_gateway(streams(*[token(text) for text in "abc"], end=silent), [_ACME]) as gateway:
        await _post(gateway, timeout="1s", stream=True)
        prompt, output = await _used(gateway)
        assert prompt > 0
        assert output == 3


async def test_another_answer_that_outlasts_its_own_timeout_pays_for_its_time() -> None:
    async with limited_gateway(silent, [_ACME]) as gateway:
        assert (await _post(gateway, timeout="1s")).status_code == 504
        prompt, output = await _used(gateway)
        assert prompt > 0
        assert 1 <= output <= 50


async def test_impossible_counts_of_an_engine_stop_no_limits_of_others() -> None:
    """Many requests end at once, each with the largest counts at the largest price."""
    most, everyone = 1 << 21, asyncio.Barrier(30)

    async def script(call: EngineCall) -> None:
        is_acme = call.json["user"] == "acme"
        if is_acme:
            await everyone.wait()
        await call.respond(answer(prompt=most, output=most) if is_acme else answer())

    cost = Limit(LimitUnit.COST, 10**15, Window.MONTH)
    tenants = [Tenant("acme", limits=(cost,)), Tenant("zeta", limits=(cost, _OUTPUT))]
    async with limited_gateway(script, tenants, price=TokenPrice(10**9, 10**9, 10**9)) as gateway:
        gateway.service.start()
        await asyncio.gather(*(_post(gateway, user="acme") for _ in range(30)))
        for _ in range(3):
            assert (await _post(gateway, user="acme")).status_code == 429
            url, headers = f"{gateway.running.url}/v1/chat/completions", {"authorization": "Bearer zeta"}
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "user": "zeta"}
            assert (await gateway.client.post(url, json=chat, headers=headers)).status_code == 200
            await asyncio.sleep(QUICK_LIMITS.quota_report_seconds)


@pytest.mark.parametrize("count", [1 << 22, 10**9, 1 << 31])
async def test_counts_that_a_request_cannot_have_are_booked_as_estimates(count: int) -> None:
    tenant = Tenant("acme", limits=(_INPUT, _OUTPUT))

    async def script(call: EngineCall) -> None:
        await call.respond(answer(prompt=count, output=count))

    async with limited_gateway(script, [tenant]) as gateway:
        gateway.service.start()
        assert (await _post(gateway, max_tokens=3)).status_code == 200
        used = await _used(gateway)
        assert used[0] < 1_000
        assert used[1] <= 3


async def test_strict_limits_charge_no_more_than_was_reserved() -> None:
    tenant = Tenant("acme", limits=(_INPUT, _OUTPUT), enforcement=Enforcement.STRICT)
    async with limited_gateway(streams(*[token(text) for text in "abcdefgh"], end=silent), [tenant]) as gateway:
        gateway.service.start()
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while (await _post(gateway, timeout="1s", stream=True, max_tokens=3)).status_code == 503:
                pass  # a new strict limit grants nothing for one lease
        assert (await _used(gateway))[1] == 3


async def test_events_of_several_tokens_are_charged_as_such() -> None:
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        await call.start_stream()
        for text in ("a b c", "d e f", "g h i"):
            await call.event(token(text))
        if len(calls) == 1:
            await call.event(usage(7, 0, 9))
            await call.finish()
        else:
            await call.wait_closed()

    async with limited_gateway(script, [_ACME]) as gateway:
        await _post(gateway, stream=True)
        assert (await _used(gateway))[1] == 9
        await _post(gateway, timeout="1s", stream=True)
        assert (await _used(gateway))[1] == 9 + 9


async def test_usage_that_the_engine_reports_in_each_event_is_charged() -> None:
    script = streams(*[token("word") | {"usage": usage(7, 0, count)["usage"]} for count in (4, 8)], end=silent)
    async with limited_gateway(script, [_ACME]) as gateway:
        options = {"continuous_usage_stats": True, "include_usage": True}
        await _post(gateway, timeout="1s", stream=True, stream_options=options)
        assert await _used(gateway) == (7, 8)


async def test_continuous_counts_alone_are_asked_for_with_the_last_one() -> None:
    """vLLM counts nothing for `continuous_usage_stats` alone, SGLang does in each event."""
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        await call.start_stream()
        await call.event(token("word", "stop") | {"usage": usage(7, 0, 1)["usage"]})
        if call.json["stream_options"].get("include_usage"):
            await call.event(usage(7, 0, 1))
        await call.finish()

    async with limited_gateway(script, [_ACME]) as gateway:
        reply = await _post(gateway, stream=True, stream_options={"continuous_usage_stats": True})
        assert calls[0].json["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}
        assert reply.text.count("data: ") == 2  # with the end
        assert reply.text.count('"usage"') == 1
        assert await _used(gateway) == (7, 1)


async def test_an_answer_in_time_pays_what_its_engine_reported() -> None:
    async with limited_gateway(responds(answer(prompt=9, output=4)), [_ACME]) as gateway:
        await _post(gateway, timeout="20s")
        assert await _used(gateway) == (9, 4)
