"""Engines that say that they are full are left out of routing while others have room."""

import asyncio
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, Script, responds, well_behaved
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

STATUSES = ("429 Too Many Requests", "503 Service Unavailable", "529 Overloaded")
EXTERNAL = "openai"


def chat(text: str, stream: bool = False) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text * 50}], "stream": stream}


def refuses(status: str, retry_after: int | None) -> Script:
    more = "" if retry_after is None else f"retry-after: {retry_after}\r\n"
    return responds({"error": {"message": "no room", "code": int(status[:3])}}, status, more=more)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("retry_after", [None, 1, 30])
@pytest.mark.parametrize("status", STATUSES)
async def test_full_engines_get_few_requests_and_no_client_is_refused(
    status: str, retry_after: int | None, stream: bool
) -> None:
    async with gateway_of(refuses(status, retry_after), well_behaved) as (running, full, _):
        for number in range(60):
            answer = await request(running.url, chat(f"{number} ", stream))
            assert answer.status == 200
            await asyncio.sleep(0.25)
        assert len(full.calls) <= {None: 5, 1: 16, 30: 1}[retry_after]
        last = running.gateway.decisions.latest(1)[0].records[0].decision
        if retry_after == 30:
            (reason,) = [candidate.why for candidate in last.rejected if candidate.id == "e-0/0/0"]
            assert "full" in reason


@pytest.mark.parametrize("retry_after", [None, 30])
async def test_api_whose_account_is_limited_is_left_out_for_every_caller(retry_after: int | None) -> None:
    async with gateway_of(refuses(STATUSES[0], retry_after), well_behaved) as (running, full, _):
        fleet = running.gateway.stages.routers.fleet
        external = tuple(replace(one, engine=EXTERNAL) for one in fleet.instances[MODEL_KEY])
        running.gateway.update_fleet(replace(fleet, version=2, instances={MODEL_KEY: external}))
        statuses = []
        for number in range(60):
            statuses.append((await request(running.url, chat(f"{number} "))).status)
            await asyncio.sleep(0.25)
        assert statuses.count(429) == len(full.calls) <= {None: 6, 30: 2}[retry_after]


async def test_an_engine_gets_its_share_back_once_it_has_room() -> None:
    is_full = True

    async def script(call: EngineCall) -> None:
        await (refuses(STATUSES[1], None) if is_full else well_behaved)(call)

    async with gateway_of(script, well_behaved) as (running, engine, _):
        for number in range(40):
            assert (await request(running.url, chat(f"{number} "))).status == 200
            await asyncio.sleep(0.5)
        is_full, before = False, len(engine.calls)
        await asyncio.sleep(8.0)
        for number in range(40):
            assert (await request(running.url, chat(f"{100 + number} "))).status == 200
        assert len(engine.calls) - before >= 10
        assert not running.gateway.stages.failures.outlier_detector.full


async def test_only_full_engines_are_asked_all_the_same() -> None:
    is_full = True

    async def script(call: EngineCall) -> None:
        await (refuses(STATUSES[1], 30) if is_full else well_behaved)(call)

    async with gateway_of(script, script) as (running, *_):
        for number in range(6):
            answer = await request(running.url, chat(f"{number} "))
            assert answer.status == 503
            assert "all engines that were tried are full (2" in answer.json["error"]["message"]
            assert answer.fields["retry-after"] == "30"
        is_full = False
        assert (await request(running.url, chat("x "))).status == 200


async def test_a_request_that_engines_refuse_alone_leaves_none_out() -> None:
    async def picky(call: EngineCall) -> None:
        await (refuses(STATUSES[1], 60) if b"poison" in call.body else well_behaved)(call)

    async with gateway_of(picky, picky, picky) as (running, *engines):
        for number in range(20):
            await request(running.url, chat("poison "))
            assert (await request(running.url, chat(f"{number} "))).status == 200
        detector, now = running.gateway.stages.failures.outlier_detector, running.gateway.runtime.now()
        assert not detector.ejected([f"e-{number}/{number}/0" for number in range(3)], now)
        assert all(engine.calls for engine in engines)


async def test_only_engines_that_were_tried_are_called_full() -> None:
    limits = Limits(max_attempts=1)
    async with gateway_of(refuses(STATUSES[1], 30), well_behaved, limits=limits) as (running, full, _):
        answers = [await request(running.url, chat("same ")) for _ in range(40)]
        refused = [answer for answer in answers if answer.status != 200]
        assert refused
        assert len(refused) == len(full.calls)
        for answer in refused:
            assert answer.status == 503
            assert "all engines that were tried are full (1 engine tried" in answer.json["error"]["message"]


async def test_one_request_that_another_engine_answers_is_enough() -> None:
    async with gateway_of(refuses(STATUSES[1], 30), well_behaved) as (running, full, _):
        for _ in range(40):
            assert (await request(running.url, chat("same "))).status == 200
        assert len(full.calls) <= 1


def test_fleet_has_the_name_of_apis_that_others_run() -> None:
    (instance,) = fleet_of(["http://x"]).instances[MODEL_KEY]
    assert replace(instance, engine=EXTERNAL).leaves_cluster
