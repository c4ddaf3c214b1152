"""Prefill on one engine, decode on another: real engine processes, some killed or frozen."""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.disaggregated import DisaggregatedModel, engine_process, make_prompt
from fairlead_testing.gateway.running_gateway import RunningGateway, running_gateway
from fairlead_testing.http.raw_client import RawResponse, get_request, request, send
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.pytest_hooks.nightly import shortened

pytestmark = pytest.mark.sockets

PATH = "/v1/completions"
QUICK = ("--profile", "tiny-cpu", "--speed", "50", "--kv-lease-seconds", "30", "--kv-dead-peer-seconds", "0.1")
LIMITS = Limits(handoff_min_tokens=64, handoff_prefill_seconds=1.0, handoff_first_event_seconds=1.0)
LENGTHS = (20, 63, 64, 100, 512, 1000, 2000, 3900)
WRONG = " bad bad"
TRANSFERS = ("nixl", "mooncake", "sglang")
FAULTS = ("prefill killed", "prefill frozen", "decode killed")


@asynccontextmanager
async def split(
    *, transfer: str = "nixl", prefills: int = 1, decodes: int = 1, policy: str = "fail", limits: Limits = LIMITS
) -> AsyncIterator[tuple[RunningGateway, DisaggregatedModel]]:
    """A gateway with prefill and decode engines, and one engine that does both, as ``serve[0]``."""
    more = (*QUICK, "--kv-connector", transfer, "--kv-load-failure-policy", policy, "--kv-abort-seconds", "30")
    async with AsyncExitStack() as stack:
        prefill = [
            await stack.enter_async_context(engine_process(*more, "--kv-role", "kv_producer")) for _ in range(prefills)
        ]
        decode = [
            await stack.enter_async_context(engine_process(*more, "--kv-role", "kv_consumer")) for _ in range(decodes)
        ]
        alone = await stack.enter_async_context(engine_process(*QUICK))
        async with running_gateway(DisaggregatedModel(prefill, decode, transfer).fleet(), limits) as gateway:
            yield gateway, DisaggregatedModel(prefill, decode, transfer, [alone])


def body(prompt: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, **more}


def text(answer: RawResponse) -> str:
    assert answer.status == 200, answer.body
    completion: str = answer.json["choices"][0]["text"]
    return completion


async def state(url: str) -> dict[str, Any]:
    transfers: dict[str, Any] = (await send(url, get_request("/sim/state")))[0].json["kv_transfer"]
    return transfers


async def alone(engines: DisaggregatedModel, asked: object, path: str = PATH) -> RawResponse:
    """Returns the text of the engine that computes everything itself."""
    return await request(engines.serve[0].url, asked, path=path, more="content-type: application/json\r\n")


async def same_as_alone(gateway: RunningGateway, engines: DisaggregatedModel, prompt: str) -> None:
    """The gateway's answer is the one of an engine that does it all."""
    expected = text(await alone(engines, body(prompt)))
    assert text(await request(gateway.url, body(prompt), path=PATH)) == expected


def reason(gateway: RunningGateway) -> str:
    return gateway.gateway.decisions.latest(1)[0].latest.decision.reason


@pytest.mark.parametrize("transfer", TRANSFERS)
async def test_two_engines_say_what_one_says(transfer: str) -> None:
    async with split(transfer=transfer) as (gateway, engines):
        for length in LENGTHS:
            await same_as_alone(gateway, engines, make_prompt(length, first=f"a{chr(97 + length % 26)}z"))
        pulled = await state(engines.decode[0].url)
        assert pulled["pulled_total"] == sum(length >= 64 for length in LENGTHS)
        assert pulled["failed_total"] == pulled["wrong_total"] == 0


@pytest.mark.parametrize("transfer", TRANSFERS)
async def test_streams_and_chats_are_handed_over_too(transfer: str) -> None:
    async with split(transfer=transfer) as (gateway, engines):
        for stream, first in ((False, "aaz"), (True, "aby")):
            messages = [{"role": "user", "content": make_prompt(300, first)}]
            asked = {"model": "tiny", "messages": messages, "max_completion_tokens": 5, "stream": stream}
            expected = await alone(engines, asked, "/v1/chat/completions")
            answer = await request(gateway.url, asked)
            assert spoken(answer, stream) == spoken(expected, stream)
        assert (await state(engines.decode[0].url))["pulled_total"] == 2


def spoken(answer: RawResponse, stream: bool) -> str:
    if not stream:
        return str(answer.json["choices"][0]["message"]["content"])
    assert answer.events[-1] == "[DONE]"
    return "".join(part.split('"content":"')[1].split('"')[0] for part in answer.events[:-1] if '"content":"' in part)


@pytest.mark.parametrize("policy", ["fail", "recompute"])
@pytest.mark.parametrize("stream", [True, False])
async def test_after_sigkill_of_the_prefill_engine_every_request_ends_right(policy: str, stream: bool) -> None:
    async with split(policy=policy) as (gateway, engines):
        await same_as_alone(gateway, engines, make_prompt(200, "aab"))
        prompts = [make_prompt(200, f"b{letter}c") for letter in "abcdefgh"]
        waiting = [
            asyncio.create_task(request(gateway.url, body(prompt, stream=stream), path=PATH)) for prompt in prompts
        ]
        await engines.prefill[0].kill()
        for prompt, answer in zip(prompts, await asyncio.gather(*waiting), strict=True):
            assert answer.status == 200
            assert WRONG.encode() not in answer.body
            if not stream:
                assert text(answer) == text(await alone(engines, body(prompt)))
        await same_as_alone(gateway, engines, make_prompt(200, "zzz"))


@pytest.mark.parametrize("transfer", ["nixl", "mooncake"])
async def test_after_sigstop_of_the_prefill_engine_every_request_ends_right(transfer: str) -> None:
    async with split(transfer=transfer) as (gateway, engines):
        await same_as_alone(gateway, engines, make_prompt(200, "aab"))
        engines.prefill[0].send(signal.SIGSTOP)
        for letter in "abc":
            await same_as_alone(gateway, engines, make_prompt(200, f"b{letter}c"))
        assert "no prefill instance is ready and trusted" in reason(gateway)


async def test_prefill_engine_that_freezes_midway_costs_only_the_deadline() -> None:
    async with split(limits=Limits(handoff_min_tokens=64, handoff_first_event_seconds=0.3)) as (gateway, engines):
        prompt = make_prompt(200)
        expected = text(await alone(engines, body(prompt)))
        prefill = gateway.gateway.stages.prefill_coordinator
        before = prefill.prefill_remotely

        async def freezing(job: Any) -> None:
            await before(job)
            engines.prefill[0].send(signal.SIGSTOP)

        prefill.prefill_remotely = freezing  # type: ignore[method-assign]  # no other way to hit the moment between the legs
        answer = await request(gateway.url, body(prompt, stream=True), path=PATH)
        assert answer.events[-1] == "[DONE]"
        assert expected[:4].encode() in answer.body
        assert "failed on decode-0 (timeout), plain now" in reason(gateway)


def test_fifty_prompts_at_once_are_answered_as_by_one_engine() -> None:
    burst("none", "nixl", [20 + at * 97 % 1480 for at in range(49)] + [3900])


@pytest.mark.parametrize(
    ("fault", "transfer"),
    shortened(list(itertools.product(FAULTS, TRANSFERS)), list(zip(FAULTS, TRANSFERS, strict=True))),
)
def test_under_load_every_request_ends_right_whatever_happens_to_an_engine(fault: str, transfer: str) -> None:
    burst(fault, transfer, [20 + at * 97 % 480 for at in range(20)])


def burst(fault: str, transfer: str, lengths: list[int]) -> None:
    """Prompts all at once; the fault comes with the first answer, and all answers are right."""

    async def check() -> None:
        async with split(transfer=transfer, prefills=2, decodes=2) as (gateway, engines):
            prompts = [
                make_prompt(length, f"{'abcdefghij'[at % 10]}{'klmno'[at // 10 % 5]}z")
                for at, length in enumerate(lengths)
            ]
            expected = [text(await alone(engines, body(prompt))) for prompt in prompts]
            asked = [asyncio.create_task(request(gateway.url, body(prompt), path=PATH)) for prompt in prompts]
            await asked[0]
            if fault == "prefill killed":
                await engines.prefill[0].kill()
            elif fault == "prefill frozen":
                engines.prefill[0].send(signal.SIGSTOP)
            elif fault == "decode killed":
                await engines.decode[0].kill()
            assert [text(reply) for reply in await asyncio.gather(*asked)] == expected

    run_async(check())


async def test_the_other_prefill_engine_takes_over_from_a_dead_one() -> None:
    async with split(prefills=2) as (gateway, engines):
        await engines.prefill[0].kill()
        for letter in "abcd":
            await same_as_alone(gateway, engines, make_prompt(200, f"b{letter}c"))
        assert (await state(engines.decode[0].url))["pulled_total"] == 4


async def test_without_any_prefill_engine_the_decode_engines_serve_alone() -> None:
    async with split(prefills=0) as (gateway, engines):
        await same_as_alone(gateway, engines, make_prompt(200))
        assert "hand-off" not in reason(gateway)


async def test_a_mooncake_engine_that_was_started_anew_is_found_under_its_new_id() -> None:
    async with split(transfer="mooncake") as (gateway, engines):
        await same_as_alone(gateway, engines, make_prompt(200, "aab"))
        port = engines.prefill[0].url.rpartition(":")[2]
        await engines.prefill[0].kill()
        again = ("--listen", f"127.0.0.1:{port}", *QUICK, "--kv-connector", "mooncake", "--kv-role", "kv_producer")
        async with engine_process(*again, "--seed", "0"):
            gateway.gateway.stages.prefill_coordinator._engine_ids["prefill-0"] = "of-the-first-start"
            await same_as_alone(gateway, engines, make_prompt(200, "bbc"))
            assert "plain now" in reason(gateway)
            assert "prefill-0" not in gateway.gateway.stages.prefill_coordinator._engine_ids


async def test_the_decision_tells_of_both_legs() -> None:
    async with split() as (gateway, _engines):
        await request(gateway.url, body(make_prompt(200)), path=PATH)
        assert reason(gateway).startswith("prefill on prefill-0 (only-one: the only instance that can take it) in ")
        assert reason(gateway).endswith(" ms; the only instance that can take it")
