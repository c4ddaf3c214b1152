"""The rules of hand-offs, one by one, with scripted engines."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, Instance, Model, Role
from fairlead.limits import Limits
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    ScriptedEngine,
    SilentEngine,
    responds,
    scripted_engine,
    silent,
    streams,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

OBJECT: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "an-engine",
    "remote_request_id": "a-request",
    "remote_host": "127.0.0.1",
    "remote_port": 5801,
    "tp_size": 1,
    "dcp_size": 1,
    "remote_num_tokens": 40,
    "later_field": {"kept": [1.0, None]},
}
LIMITS = Limits(handoff_min_tokens=16, handoff_prefill_seconds=0.5, handoff_first_event_seconds=0.5)
LONG = "tell me everything about everything " * 20
Script = Callable[[EngineCall], Awaitable[None]]


def chat(text: str = LONG, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": True, **more}


def prefilling(handoff: object = OBJECT) -> Script:
    return responds({"choices": [{"index": 0}], "kv_transfer_params": handoff})


def with_params(then: Script, otherwise: Script = well_behaved) -> Script:
    """An engine that behaves in one way when it is to pull, and else in another."""

    async def script(call: EngineCall) -> None:
        await (then if call.json.get("kv_transfer_params") else otherwise)(call)

    return script


failing = responds({"error": {"message": "Internal server error"}}, "500 Internal Server Error")
failing_in_the_stream = streams({"error": {"message": "Internal server error", "code": 500}})


async def dying(call: EngineCall) -> None:
    call.reset()
    raise HangUp


@dataclass(slots=True)
class Scene:
    gateway: RunningGateway
    prefill: list[ScriptedEngine]
    decode: list[ScriptedEngine]

    async def post(self, body: object | None = None) -> RawResponse:
        return await request(self.gateway.url, chat() if body is None else body)

    @property
    def reasons(self) -> list[str]:
        """Returns all choices for the last request."""
        return [record.decision.reason for record in self.gateway.gateway.decisions.latest(1)[0].records]


@asynccontextmanager
async def scene(
    prefill: list[Script], decode: list[Script], limits: Limits = LIMITS, **more: Any
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        first = [await stack.enter_async_context(scripted_engine(script)) for script in prefill]
        second = [await stack.enter_async_context(scripted_engine(script)) for script in decode]
        groups = ((Role.PREFILL, first), (Role.DECODE, second))
        instances = tuple(
            Instance(f"{role.value[0]}{at}", "default", "tiny", role.value, pod.url, role=role, transfer="nixl", **more)
            for role, group in groups
            for at, pod in enumerate(group)
        )
        fleet = Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: instances})
        yield Scene(await stack.enter_async_context(running_gateway(fleet, limits)), first, second)


def complete(answer: RawResponse) -> bool:
    return answer.status == 200 and answer.events[-1] == "[DONE]"


def params(engine: ScriptedEngine) -> list[Any]:
    """The hand-off parameters of every request that an engine got."""
    return [call.json.get("kv_transfer_params") for call in engine.calls]


async def test_rule_1_hand_off_fields_of_clients_reach_neither_leg() -> None:
    async with scene([prefilling()], [well_behaved]) as setup:
        stolen = {"do_remote_prefill": True, "remote_engine_id": "stolen"}
        assert complete(await setup.post(chat(kv_transfer_params=stolen, ec_transfer_params={})))
        assert complete(await setup.post(chat("hi", kv_transfer_params=stolen)))
        assert params(setup.prefill[0]) == [{"do_remote_decode": True, "do_remote_prefill": False}]
        assert params(setup.decode[0]) == [OBJECT, None]


async def test_rule_2_the_prefill_leg_is_one_token_not_streamed_and_else_the_clients_body() -> None:
    async with scene([prefilling()], [well_behaved]) as setup:
        body = chat(max_completion_tokens=50, n=2, min_tokens=9, cache_salt="s", unknown=[1.50])
        assert complete(await setup.post(body))
        sent = setup.prefill[0].calls[0].json
        changed = {"stream": False, "max_tokens": 1, "max_completion_tokens": 1, "min_tokens": 1, "n": 1}
        expected = body | changed | {"kv_transfer_params": sent["kv_transfer_params"], "stream_options": None}
        assert sent == expected
        assert b"[1.5]" in setup.prefill[0].calls[0].body
        assert setup.decode[0].calls[0].json["max_completion_tokens"] == 50


async def test_rule_2_a_prefill_that_takes_too_long_is_given_up_and_left_alone() -> None:
    async with scene([silent], [well_behaved]) as setup:
        assert complete(await setup.post())
        assert complete(await setup.post(chat(LONG + "more " * 300)))
        assert len(setup.prefill[0].calls) == 1
        assert params(setup.decode[0]) == [None, None]


async def test_rule_2_another_prefill_engine_is_asked_once() -> None:
    async with scene([failing, failing, failing], [well_behaved]) as setup:
        assert complete(await setup.post())
        assert sum(len(engine.calls) for engine in setup.prefill) == 2
        assert "did not prefill: status 500" in setup.reasons[0]


async def test_rule_2_request_refused_by_a_prefill_engine_is_served_by_another() -> None:
    refusing = responds({"error": {"message": "too long", "code": 400}}, "400 Bad Request")

    async with scene([refusing, refusing], [refusing]) as setup:
        assert (await setup.post()).status == 400
        assert sum(len(engine.calls) for engine in setup.prefill) == 1
        assert len(setup.decode[0].calls) == 1


BROKEN: list[Any] = [
    *({name: value for name, value in OBJECT.items() if name != missing} for missing in list(OBJECT)[2:8]),
    OBJECT | {"remote_host": None},
    OBJECT | {"remote_host": ""},
    OBJECT | {"remote_port": "5801"},
    OBJECT | {"remote_port": True},
    OBJECT | {"remote_port": 70_000},
    OBJECT | {"remote_block_ids": []},
    OBJECT | {"remote_block_ids": [[]]},
    OBJECT | {"remote_block_ids": [1, 2]},
    OBJECT | {"remote_block_ids": [["1"]]},
    OBJECT | {"do_remote_prefill": False},
    {},
    [],
    None,
    "x",
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda value: json.dumps(value)[:60])
async def test_rule_3_an_object_that_is_not_whole_is_not_passed_on(broken: Any) -> None:
    async with scene([prefilling(broken)], [well_behaved]) as setup:
        assert complete(await setup.post())
        assert params(setup.decode[0]) == [None]
        assert "does not say where the blocks are" in setup.reasons[0]


async def test_rule_3_a_whole_object_is_passed_on_byte_for_byte() -> None:
    async with scene([prefilling()], [well_behaved]) as setup:
        assert complete(await setup.post())
        assert json.dumps(OBJECT, separators=(",", ":")).encode() in setup.decode[0].calls[0].body


async def test_rule_4_an_object_serves_one_attempt_also_when_the_decode_engine_dies() -> None:
    async with scene([prefilling()], [with_params(dying), with_params(dying)]) as setup:
        assert complete(await setup.post())
        assert sorted(params(setup.decode[0]) + params(setup.decode[1]), key=str) == [None, OBJECT]


async def test_rule_5_after_the_lease_the_decode_is_plain() -> None:
    async with scene([prefilling()], [well_behaved], replace(LIMITS, handoff_lease_seconds=0.0)) as setup:
        assert complete(await setup.post())
        assert params(setup.decode[0]) == [None]
        assert "not kept any longer" in setup.reasons[0]


@pytest.mark.parametrize("failure", [failing, failing_in_the_stream, silent])
@pytest.mark.parametrize("stream", [True, False])
async def test_rules_6_7_and_9_failed_or_silent_decode_is_retried_without_the_handoff(
    failure: Script, stream: bool
) -> None:
    limits = replace(LIMITS, handoff_output_token_seconds=0.0)
    async with scene([prefilling()], [with_params(failure)], limits) as setup:
        assert (await setup.post(chat(stream=stream))).status == 200
        assert params(setup.decode[0]) == [OBJECT, None]
        assert "the hand-off from P0 failed on D0" in setup.reasons[-1]


async def test_rule_9_a_pair_that_failed_is_left_alone_and_another_one_is_not() -> None:
    async with scene([prefilling()], [with_params(failing), well_behaved]) as setup:
        for number in range(12):
            assert complete(await setup.post(chat(f"{number} {LONG}")))
        assert params(setup.decode[0]).count(OBJECT) <= 1
        assert params(setup.decode[1]).count(OBJECT) >= 10


async def test_rule_9_nothing_is_prefilled_while_every_pair_is_suspect() -> None:
    async with scene([prefilling()], [with_params(failing)]) as setup:
        for number in range(3):
            assert complete(await setup.post(chat(f"{number} {LONG}")))
        assert len(setup.prefill[0].calls) == 1
        assert "no prefill instance is ready and trusted" in setup.reasons[0]


async def test_rule_9_a_failed_hand_off_is_not_held_against_the_decode_engine() -> None:
    limits = replace(LIMITS, handoff_suspect_seconds=0.0)
    async with scene([prefilling()], [with_params(failing)], limits) as setup:
        for number in range(8):
            answer = await setup.post(chat(f"{number} {LONG}"))
            assert complete(answer)
            assert setup.gateway.gateway.decisions.latest(1)[0].attempts == 1  # type: ignore[union-attr]  # it has ended


async def test_rule_9_the_only_decode_engine_is_waited_for_when_it_is_stuck_in_a_transfer() -> None:
    stuck = SilentEngine()

    limits = replace(LIMITS, first_token_min_seconds=0.05, first_token_factor=0.0)
    async with scene([prefilling()], [stuck.script], limits) as setup:
        asked = asyncio.create_task(setup.post())
        breaker = setup.gateway.gateway.stages.failures.outlier_detector
        await wait_until(lambda: "D0" in breaker._records)
        stuck.go_on.set()
        assert complete(await asked)
        assert params(setup.decode[0]) == [OBJECT, None]
        assert [response[1] for response in breaker._records["D0"].recent] == [False, True]


async def test_rule_10_what_a_decode_engine_reports_as_cached_is_not_counted() -> None:
    async with scene([prefilling()], [well_behaved]) as setup:
        for text, cached in ((LONG, None), ("hi", 4)):
            assert complete(await setup.post(chat(text)))
            assert setup.gateway.gateway.decisions.latest(1)[0].cached_tokens == cached


async def test_rule_11_short_and_cached_prompts_and_what_two_engines_cannot_do_stay_on_one() -> None:
    async with scene([prefilling()], [well_behaved], replace(LIMITS, handoff_min_tokens=100)) as setup:
        assert complete(await setup.post(chat("hi")))
        assert "no hand-off: about 8 tokens to compute, under 100" in setup.reasons[0]
        assert complete(await setup.post(chat(LONG)))
        assert complete(await setup.post(chat(LONG)))
        assert "no hand-off: about " in setup.reasons[0]
        assert complete(await setup.post(chat(LONG * 2, prompt_logprobs=1)))
        assert "probabilities" in setup.reasons[0]
        assert len(setup.prefill[0].calls) == 1


async def test_instances_with_a_data_parallel_rank_are_told_it_on_both_legs() -> None:
    async with scene([prefilling()], [well_behaved], dp_rank=3) as setup:
        answer = await request(setup.gateway.url, chat(), more="x-data-parallel-rank: 9\r\n")
        assert complete(answer)
        for engine in (setup.prefill[0], setup.decode[0]):
            assert [value for name, value in engine.calls[0].fields if name == "x-data-parallel-rank"] == ["3"]


async def test_a_client_that_leaves_during_the_prefill_ends_it() -> None:
    left = asyncio.Event()

    async def waiting(call: EngineCall) -> None:
        await call.wait_closed()
        left.set()
        raise HangUp

    async with scene([waiting], [well_behaved], replace(LIMITS, handoff_prefill_seconds=60.0)) as setup:
        asked = asyncio.create_task(setup.post())
        await wait_until(lambda: bool(setup.prefill[0].calls))
        asked.cancel()
        await left.wait()
        assert not setup.decode[0].calls


def call_count(engines: list[ScriptedEngine]) -> int:
    return sum(len(engine.calls) for engine in engines)


async def test_a_prompt_that_ends_two_prefill_engines_gets_no_third_engine() -> None:
    async with scene([dying] * 3, [well_behaved]) as setup:
        for _ in range(2):
            answer = await setup.post()
            assert (answer.status, answer.error["code"]) == (422, "quarantined")
        assert (call_count(setup.prefill), call_count(setup.decode)) == (2, 0)
        assert complete(await setup.post(chat("hi")))


async def test_a_prompt_that_ends_a_prefill_and_then_a_decode_engine_gets_no_third_engine() -> None:
    async with scene([dying], [dying] * 2) as setup:
        assert (await setup.post()).status in (422, 502)
        assert (await setup.post()).error["code"] == "quarantined"
        assert (call_count(setup.prefill), call_count(setup.decode)) == (1, 1)


@pytest.mark.parametrize(("prefills", "suspects"), [(2, 0), (1, 1)])
async def test_a_prompt_that_ended_a_prefill_engine_is_cleared_by_another_that_prefills_it(
    prefills: int, suspects: int
) -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await (dying if len(met) == 1 else prefilling())(call)

    async with scene([script] * prefills, [well_behaved]) as setup:
        assert complete(await setup.post())
        assert len(setup.gateway.gateway.stages.poison_guard) == suspects


async def test_engine_ids_of_instances_that_left_the_fleet_are_forgotten() -> None:
    async def mooncake(call: EngineCall) -> None:
        await call.respond({"0": {"engine_id": "an-engine"}} if call.path == "/query" else {"choices": [{"index": 0}]})

    async with scripted_engine(mooncake) as prefill, scripted_engine() as decode:

        def fleet(version: int, name: str) -> Fleet:
            shared = {"transfer": "mooncake", "bootstrap": prefill.url}
            instances = (
                Instance(name, "default", "tiny", "prefill", prefill.url, role=Role.PREFILL, **shared),
                Instance("D0", "default", "tiny", "decode", decode.url, role=Role.DECODE, **shared),
            )
            return Fleet(version, version, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: instances})

        async with running_gateway(fleet(1, "P0"), LIMITS) as running:
            coordinator = running.gateway.stages.prefill_coordinator
            for version, name in ((2, "P1"), (3, "P2")):
                assert complete(await request(running.url, chat()))
                running.gateway.update_fleet(fleet(version, name))
                assert coordinator._engine_ids == {}
            assert complete(await request(running.url, chat()))
            running.gateway.update_fleet(fleet(4, "P2"))
            assert coordinator._engine_ids == {"P2": "an-engine"}
