"""Decode engines that compute prompts themselves while they have slack, before real engine processes: who is asked, what is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from fairlead.fleet import Fleet, Objectives
from fairlead.limits import Limits
from fairlead.profile import preset
from fairlead.testing.handoff import prompt_of
from fairlead.testing.raw_http import Connection, ask, get, post, send
from fairlead.testing.split import KEY, Split, engine
from fairlead.testing.waiting import until
from fairlead_gateway.handoff_story import HandoffStory
from fairlead_gateway.handoff_way import Ways
from fairlead_gateway.management.shapes import decision_json
from fairlead_gateway.testing import Running, run, running_gateway

PATH = "/v1/completions"
PROFILE = preset("tiny-cpu")
LONG = 400
TIGHT = 0.0025
"""An inter-token objective that a step meets with a few tokens of a prompt, and not with hundreds."""
KEPT = 25
"""Streams that fill a decode engine of 32 sequences so far that another one passes four fifths."""


@asynccontextmanager
async def split(itl_seconds: float | None, *, known: bool = True) -> AsyncIterator[tuple[Running, Split]]:
    """A gateway before one prefill and one decode engine, with an inter-token objective."""
    more = ("--profile", "tiny-cpu", "--kv-connector", "nixl")
    with ExitStack() as stack:
        prefill = [stack.enter_context(engine(*more, "--kv-role", "kv_producer"))]
        decode = [stack.enter_context(engine(*more, "--kv-role", "kv_consumer"))]
        engines = Split(prefill, decode)
        fleet = engines.fleet()
        instances = tuple(replace(one, profile=PROFILE if known else None) for one in fleet.instances[KEY])
        model = replace(fleet.models[KEY], objectives=Objectives(ttft_seconds=5.0, itl_seconds=itl_seconds))
        limits = Limits(handoff_least_tokens=64)
        async with running_gateway(Fleet(1, 1, {KEY: model}, {KEY: instances}), limits) as gateway:
            yield gateway, engines


def body(prompt: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, **more}


async def pulled(engines: Split) -> int:
    found: int = (await send(engines.decode[0].url, get("/sim/state")))[0].json["kv_transfer"]["pulled_total"]
    return found


def story(running: Running) -> HandoffStory:
    found = running.gateway.decisions.last(1)[0].last.story
    assert found is not None
    return found


@asynccontextmanager
async def streams(gateway: Running, count: int) -> AsyncIterator[None]:
    """So many answers of 4,000 tokens are under way; they are cut at the end."""
    found = []
    try:
        for number in range(count):
            found.append(await Connection.to(gateway.url))
            prompt = prompt_of(20, f"s{'abcdefghijklmnopqrstuvwxyz'[number]}s")
            await found[-1].send(post(body(prompt, 4_000, stream=True), path=PATH))
        await until(lambda: gateway.gateway.in_flight() == count)
        yield
    finally:
        for one in found:
            await one.close()
    await until(lambda: gateway.gateway.in_flight() == 0)


def test_an_idle_decode_engine_computes_a_long_prompt_and_a_full_one_does_not() -> None:
    async def check() -> None:
        async with split(0.05) as (gateway, engines):
            assert (await ask(gateway.url, body(prompt_of(LONG, "aab")), path=PATH)).status == 200
            assert (story(gateway).outcome, story(gateway).reason) == ("bypassed", "slack")
            assert await pulled(engines) == 0
            async with streams(gateway, KEPT):
                assert (await ask(gateway.url, body(prompt_of(LONG, "bbc")), path=PATH)).status == 200
                assert (story(gateway).outcome, story(gateway).reason) == ("done", "batch-full")
                assert await pulled(engines) == 1
            assert (await ask(gateway.url, body(prompt_of(LONG, "ccd")), path=PATH)).status == 200
            assert story(gateway).reason == "slack"
            series = gateway.gateway.telemetry.models[KEY].handoffs
            assert series[("bypassed", "slack")] >= 2
            assert series[("done", "batch-full")] == 1

    run(check())


def test_a_prompt_that_makes_steps_pass_the_objective_goes_to_the_prefill_engine() -> None:
    async def check() -> None:
        async with split(TIGHT) as (gateway, engines):
            assert (await ask(gateway.url, body(prompt_of(LONG, "aab")), path=PATH)).status == 200
            assert (story(gateway).outcome, story(gateway).reason) == ("done", "step-full")
            assert (await ask(gateway.url, body(prompt_of(5, "bbc")), path=PATH)).status == 200
            assert story(gateway).outcome == "bypassed"
            assert await pulled(engines) == 1

    run(check())


def test_without_a_profile_or_an_objective_the_limit_decides() -> None:
    async def check(itl_seconds: float | None, known: bool) -> None:
        async with split(itl_seconds, known=known) as (gateway, engines):
            for tokens, reason in ((LONG, "long"), (20, "short")):
                assert (await ask(gateway.url, body(prompt_of(tokens, "aab")), path=PATH)).status == 200
                assert story(gateway).reason == reason
            assert await pulled(engines) == 1

    run(check(None, True))
    run(check(0.05, False))


def test_what_decode_engines_compute_is_counted_once_and_what_prefill_engines_do_is_not() -> None:
    async def check() -> None:
        async with split(TIGHT) as (gateway, _):
            for tokens, first in ((LONG, "aab"), (5, "bbc"), (6, "ccd")):
                assert (await ask(gateway.url, body(prompt_of(tokens, first)), path=PATH)).status == 200
            telemetry, fleet = gateway.gateway.telemetry, gateway.gateway.fleet()
            page = telemetry.render(fleet, {}, 0.0).decode()
            counted = {
                line.split("{")[0].removeprefix("fairlead_gateway_"): float(line.split()[-1])
                for line in page.splitlines()
                if line.startswith(("fairlead_gateway_decode_prefill", "fairlead_gateway_received"))
            }
            assert counted["decode_prefills_total"] == 2.0
            assert counted["received_total"] == 3.0
            assert 0.0 < counted["decode_prefill_tokens_total"] < 0.1 * counted["received_prompt_tokens_total"]

    run(check())


def test_both_predictions_are_shown_and_a_prompt_that_was_not_sent_is_told_the_same() -> None:
    async def check() -> None:
        async with split(0.05) as (gateway, _):
            asked = body(prompt_of(LONG, "aab"))
            would = decision_json(gateway.gateway.would(PATH, json.dumps(asked).encode(), None))
            assert (await ask(gateway.url, asked, path=PATH)).status == 200
            shown = decision_json(gateway.gateway.decisions.last(1)[0])
            for told in (would, shown):
                assert told.handoff is not None
                assert told.handoff.where is not None
                assert (told.handoff.where.instance, told.handoff.where.rule) == ("decode-0", "slack")
                first = {item.id: item.inputs["predicted_ttft_seconds"].value for item in told.handoff.where.candidates}
                assert first["decode-0"] is not None
                assert first["prefill-0"] is not None
                assert first["decode-0"] < first["prefill-0"]
                assert [choice.instance for choice in told.choices] == ["decode-0"]

    run(check())


def test_an_asked_prompt_that_would_travel_is_told_with_both_engines() -> None:
    async def check() -> None:
        async with split(TIGHT) as (gateway, _):
            asked = json.dumps(body(prompt_of(LONG, "aab"))).encode()
            told = decision_json(gateway.gateway.would(PATH, asked, None))
            assert [choice.instance for choice in told.choices] == ["prefill-0", "decode-0"]
            assert told.handoff is not None
            assert told.handoff.reason == "step-full"
            assert gateway.gateway.telemetry.models == {}

    run(check())


def test_what_a_hand_off_takes_is_learned_from_streams() -> None:
    async def check() -> None:
        async with split(TIGHT) as (gateway, _):
            ways = gateway.gateway._prefill._ways
            fixed = ways.seconds(KEY, 1_000.0)
            assert (await ask(gateway.url, body(prompt_of(LONG, "aab"), stream=True), path=PATH)).status == 200
            assert story(gateway).outcome == "done"
            assert KEY in ways._each
            assert ways.seconds(KEY, 1_000.0) >= fixed

    run(check())


def test_the_way_follows_what_was_seen_and_is_forgotten_with_its_model() -> None:
    limits = Limits()
    ways = Ways(limits)
    assert ways.seconds("m", 8_000.0) == limits.handoff_way_seconds
    ways.took("m", 8_000.0, limits.handoff_way_seconds + 0.08)
    assert abs(ways.seconds("m", 1_000.0) - limits.handoff_way_seconds - 0.01) < 1e-12
    for _ in range(100):
        ways.took("m", 8_000.0, limits.handoff_way_seconds)
    assert abs(ways.seconds("m", 8_000.0) - limits.handoff_way_seconds) < 1e-4
    ways.took("m", 0.0, 9.0)
    ways.took("m", 8_000.0, 0.0)
    assert ways.seconds("m", 8_000.0) >= limits.handoff_way_seconds
    ways.keep(())
    assert ways.seconds("m", 8_000.0) == limits.handoff_way_seconds


def test_a_burst_of_prompts_is_answered_as_by_one_engine_whoever_computes_them() -> None:
    async def check() -> None:
        async with split(0.02) as (gateway, engines):
            prompts = [prompt_of(100 + 97 * at, f"{'abcdefghij'[at % 10]}{'klmno'[at // 10]}z") for at in range(30)]
            answers = await asyncio.gather(*[ask(gateway.url, body(one), path=PATH) for one in prompts])
            reasons = {reason for _, reason in gateway.gateway.telemetry.models[KEY].handoffs}
            assert len(reasons) > 1
            with engine("--profile", "tiny-cpu", "--speed", "50") as alone:
                for one, answer in zip(prompts, answers, strict=True):
                    more = "content-type: application/json\r\n"
                    expected = await ask(alone.url, body(one), path=PATH, more=more)
                    assert answer.json["choices"][0]["text"] == expected.json["choices"][0]["text"]
            assert await pulled(engines) > 0

    run(check())
