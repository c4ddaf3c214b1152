"""Crashes that are evidence against a request, and others."""

import asyncio

import pytest

from fairlead_testing.engines.scripted import EngineCall, HangUp, scripted_engine, token, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, fleet_of, gateway_before, gateway_of, running_gateway
from fairlead_testing.http.raw_client import request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

GREEDY = STREAM | {"temperature": 0}


async def test_a_popular_prompt_on_two_engines_that_die_together_is_served_by_the_next() -> None:
    met: list[EngineCall] = []
    die = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call)
        if len(met) > 2:
            await well_behaved(call)
            return
        await call.start_stream()
        await call.event(token("a"))
        await die.wait()
        raise HangUp

    async with scripted_engine(script) as first, scripted_engine(script) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url], preset="round-robin")) as running:
            copies = [asyncio.create_task(request(running.url, STREAM)) for _ in range(2)]
            await wait_until(lambda: len(met) == 2)
            die.set()
            for copy in copies:
                assert '"code":"stream_cut"' in (await copy).events[-1]
            assert (len(first.calls), len(second.calls)) == (1, 1)
            assert (await request(running.url, STREAM)).events[-1] == "[DONE]"
            assert len(running.gateway.stages.poison_guard) == 0


async def test_a_copy_that_was_sent_before_and_is_answered_clears_it() -> None:
    met: list[EngineCall] = []
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call)
        if b"warm" in call.body:
            await well_behaved(call)
        elif len(met) == 1:
            await go_on.wait()
            await well_behaved(call)
        elif len(met) == 2:
            await call.start_stream()  # silence on a used connection is no crash
            raise HangUp
        else:
            await call.respond({"error": {"message": "broken"}}, "500 Internal Server Error")

    async with scripted_engine(script) as engine, scripted_engine(script) as other:  # noqa: SIM117
        async with running_gateway(fleet_of([engine.url, other.url], preset="round-robin")) as running:
            for _ in range(2):
                await request(running.url, GOOD | {"user": "warm"})
            met.clear()
            first = asyncio.create_task(request(running.url, GOOD))
            await wait_until(lambda: len(met) == 1)
            assert (await request(running.url, GOOD)).status == 502
            assert len(running.gateway.stages.poison_guard) == 1
            go_on.set()
            assert (await first).status == 200
            assert len(running.gateway.stages.poison_guard) == 0


async def test_an_engine_that_refuses_it_proves_nothing() -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        if len(met) == 1:
            raise HangUp
        await call.respond({"error": {"message": "no"}}, "400 Bad Request")

    async with scripted_engine(script) as first, scripted_engine(script) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url])) as running:
            assert (await request(running.url, GOOD)).status == 400
            assert len(running.gateway.stages.poison_guard) == 1


@pytest.mark.parametrize("first_stream", [1, 2])
async def test_what_dies_in_its_stream_at_two_engines_goes_to_no_third(first_stream: int) -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        if len(met) >= first_stream:
            await call.start_stream()
            await call.event({"id": "x", **token("a")})
        raise HangUp

    async with gateway_before([script] * 3) as running:
        assert '"code":"stream_cut"' in (await request(running.url, GREEDY)).events[-1]
        assert len(met) == 2
        assert (await request(running.url, GREEDY)).status == 422
        assert len(met) == 2


async def test_a_copy_whose_engine_dies_when_two_have_died_already_goes_to_no_other() -> None:
    met: list[EngineCall] = []
    die = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call)
        if len(met) == 1:
            await die.wait()
        raise HangUp

    async with gateway_of(script, script, script, preset="round-robin") as (running, *_):
        first = asyncio.create_task(request(running.url, GOOD))
        await wait_until(lambda: len(met) == 1)
        assert (await request(running.url, GOOD)).error["code"] == "engines_broke_off"
        die.set()
        assert (await first).error["code"] == "quarantined"
        assert len(met) == 3
