"""Decode engines with slack compute prompts themselves; real engine processes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Fleet, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.disaggregation.worker.prefill_coordinator import HANDOFF_TRANSFER_SECONDS, TransferEstimator
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_testing.engines.disaggregated import MODEL_KEY, DisaggregatedModel, engine_process, make_prompt
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import RunningGateway, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

PATH = "/v1/completions"
PROFILE = builtin_profile("tiny-cpu")
LONG = 400
TIGHT = 0.0025
"""An inter-token objective that a step meets with few prompt tokens, and misses with hundreds."""
KEPT = 25
"""Streams that fill a decode engine of 32 sequences so far that another one passes four fifths."""


@asynccontextmanager
async def split(
    itl_seconds: float | None, *, known: bool = True
) -> AsyncIterator[tuple[RunningGateway, DisaggregatedModel]]:
    """A gateway before one prefill and one decode engine, with an inter-token objective."""
    more = ("--profile", "tiny-cpu", "--kv-connector", "nixl")
    async with AsyncExitStack() as stack:
        prefill = [await stack.enter_async_context(engine_process(*more, "--kv-role", "kv_producer"))]
        decode = [await stack.enter_async_context(engine_process(*more, "--kv-role", "kv_consumer"))]
        engines = DisaggregatedModel(prefill, decode)
        fleet = engines.fleet()
        instances = tuple(
            replace(instance, profile=PROFILE if known else None) for instance in fleet.instances[MODEL_KEY]
        )
        model = replace(fleet.models[MODEL_KEY], objectives=SloTargets(ttft_seconds=5.0, itl_seconds=itl_seconds))
        limits = Limits(handoff_min_tokens=64)
        async with running_gateway(Fleet(1, 1, {MODEL_KEY: model}, {MODEL_KEY: instances}), limits) as gateway:
            yield gateway, engines


def body(prompt: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, **more}


async def pulled(engines: DisaggregatedModel) -> int:
    total: int = (await send(engines.decode[0].url, get_request("/sim/state")))[0].json["kv_transfer"]["pulled_total"]
    return total


def story(running: RunningGateway) -> HandoffRecord:
    record = running.gateway.decisions.latest(1)[0].latest.handoff
    assert record is not None
    return record


@asynccontextmanager
async def streams(gateway: RunningGateway, count: int) -> AsyncIterator[None]:
    """So many answers of 4,000 tokens are under way; they are cut at the end."""
    connections = []
    try:
        for number in range(count):
            connections.append(await RawConnection.connect(gateway.url))
            prompt = make_prompt(20, f"s{'abcdefghijklmnopqrstuvwxyz'[number]}s")
            await connections[-1].send(post_request(body(prompt, 4_000, stream=True), path=PATH))
        await wait_until(lambda: gateway.gateway.inflight_count() == count)
        yield
    finally:
        for connection in connections:
            await connection.close()
    await wait_until(lambda: gateway.gateway.inflight_count() == 0)


async def test_an_idle_decode_engine_computes_a_long_prompt_and_a_full_one_does_not() -> None:
    async with split(0.05) as (gateway, engines):
        assert (await request(gateway.url, body(make_prompt(LONG, "aab")), path=PATH)).status == 200
        assert (story(gateway).outcome, story(gateway).reason) == ("bypassed", "slack")
        assert await pulled(engines) == 0
        async with streams(gateway, KEPT):
            assert (await request(gateway.url, body(make_prompt(LONG, "bbc")), path=PATH)).status == 200
            assert (story(gateway).outcome, story(gateway).reason) == ("done", "batch-full")
            assert await pulled(engines) == 1
        assert (await request(gateway.url, body(make_prompt(LONG, "ccd")), path=PATH)).status == 200
        assert story(gateway).reason == "slack"
        series = gateway.gateway.telemetry.models[MODEL_KEY].handoffs
        assert series[("bypassed", "slack")] >= 2
        assert series[("done", "batch-full")] == 1


async def test_a_prompt_that_makes_steps_pass_the_objective_goes_to_the_prefill_engine() -> None:
    async with split(TIGHT) as (gateway, engines):
        assert (await request(gateway.url, body(make_prompt(LONG, "aab")), path=PATH)).status == 200
        assert (story(gateway).outcome, story(gateway).reason) == ("done", "step-full")
        assert (await request(gateway.url, body(make_prompt(5, "bbc")), path=PATH)).status == 200
        assert story(gateway).outcome == "bypassed"
        assert await pulled(engines) == 1


def test_without_a_profile_or_an_objective_the_limit_decides() -> None:
    async def check(itl_seconds: float | None, known: bool) -> None:
        async with split(itl_seconds, known=known) as (gateway, engines):
            for tokens, reason in ((LONG, "long"), (20, "short")):
                assert (await request(gateway.url, body(make_prompt(tokens, "aab")), path=PATH)).status == 200
                assert story(gateway).reason == reason
            assert await pulled(engines) == 1

    run_async(check(None, True))
    run_async(check(0.05, False))


async def test_prefills_at_decode_engines_count_once_and_at_prefill_engines_not_at_all() -> None:
    async with split(TIGHT) as (gateway, _):
        for tokens, first in ((LONG, "aab"), (5, "bbc"), (6, "ccd")):
            assert (await request(gateway.url, body(make_prompt(tokens, first)), path=PATH)).status == 200
        telemetry, fleet = gateway.gateway.telemetry, gateway.gateway.stages.routers.fleet
        page = telemetry.render(fleet, {}, 0.0).decode()
        counted = {
            line.split("{")[0].removeprefix("fairlead_gateway_"): float(line.split()[-1])
            for line in page.splitlines()
            if line.startswith(("fairlead_gateway_decode_prefill", "fairlead_gateway_received"))
        }
        assert counted["decode_prefills_total"] == 2.0
        assert counted["received_total"] == 3.0
        assert 0.0 < counted["decode_prefill_tokens_total"] < 0.1 * counted["received_prompt_tokens_total"]


async def test_both_predictions_are_shown_and_a_prompt_that_was_not_sent_is_told_the_same() -> None:
    async with split(0.05) as (gateway, _):
        asked = body(make_prompt(LONG, "aab"))
        would = decision_out(await gateway.preview_route(PATH, json.dumps(asked).encode(), None))
        assert (await request(gateway.url, asked, path=PATH)).status == 200
        shown = decision_out(gateway.gateway.decisions.latest(1)[0])
        for decision in (would, shown):
            assert (decision.handoff.where.instance, decision.handoff.where.rule) == ("decode-0", "slack")
            first = {item.id: item.inputs["predicted_ttft_seconds"].value for item in decision.handoff.where.candidates}
            assert first["decode-0"] is not None
            assert first["prefill-0"] is not None
            assert first["decode-0"] < first["prefill-0"]
            assert [choice.instance for choice in decision.choices] == ["decode-0"]


async def test_an_asked_prompt_that_would_travel_is_told_with_both_engines() -> None:
    async with split(TIGHT) as (gateway, _):
        asked = json.dumps(body(make_prompt(LONG, "aab"))).encode()
        decision = decision_out(await gateway.preview_route(PATH, asked, None))
        assert [choice.instance for choice in decision.choices] == ["prefill-0", "decode-0"]
        assert decision.handoff.reason == "step-full"
        assert gateway.gateway.telemetry.models == {}


async def test_what_a_hand_off_takes_is_learned_from_streams() -> None:
    async with split(TIGHT) as (gateway, _):
        ways = gateway.gateway.stages.prefill_coordinator._transfer_estimator
        fixed = ways.predict_seconds(MODEL_KEY, 1_000.0)
        assert (await request(gateway.url, body(make_prompt(LONG, "aab"), stream=True), path=PATH)).status == 200
        assert story(gateway).outcome == "done"
        assert MODEL_KEY in ways._token_seconds
        assert ways.predict_seconds(MODEL_KEY, 1_000.0) >= fixed


def test_the_way_follows_what_was_seen_and_is_forgotten_with_its_model() -> None:
    ways = TransferEstimator()
    assert ways.predict_seconds("m", 8_000.0) == HANDOFF_TRANSFER_SECONDS
    ways.observe("m", 8_000.0, HANDOFF_TRANSFER_SECONDS + 0.08)
    assert abs(ways.predict_seconds("m", 1_000.0) - HANDOFF_TRANSFER_SECONDS - 0.01) < 1e-12
    for _ in range(100):
        ways.observe("m", 8_000.0, HANDOFF_TRANSFER_SECONDS)
    assert abs(ways.predict_seconds("m", 8_000.0) - HANDOFF_TRANSFER_SECONDS) < 1e-4
    ways.observe("m", 0.0, 9.0)
    ways.observe("m", 8_000.0, 0.0)
    assert ways.predict_seconds("m", 8_000.0) >= HANDOFF_TRANSFER_SECONDS
    ways.retain(())
    assert ways.predict_seconds("m", 8_000.0) == HANDOFF_TRANSFER_SECONDS


async def test_a_burst_of_prompts_is_answered_as_by_one_engine_whoever_computes_them() -> None:
    async with split(0.02) as (gateway, engines):
        prompts = [make_prompt(100 + 97 * at, f"{'abcdefghij'[at % 10]}{'klmno'[at // 10]}z") for at in range(30)]
        answers = await asyncio.gather(*[request(gateway.url, body(prompt), path=PATH) for prompt in prompts])
        reasons = {reason for _, reason in gateway.gateway.telemetry.models[MODEL_KEY].handoffs}
        assert len(reasons) > 1
        async with engine_process("--profile", "tiny-cpu", "--speed", "50") as alone:
            for prompt, answer in zip(prompts, answers, strict=True):
                more = "content-type: application/json\r\n"
                expected = await request(alone.url, body(prompt), path=PATH, more=more)
                assert answer.json["choices"][0]["text"] == expected.json["choices"][0]["text"]
        assert await pulled(engines) > 0
