"""Every hand-off has one outcome, is counted once and needs no log to be explained."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, Instance, Model, Role
from fairlead.limits import Limits
from fairlead_gateway.journal import Journal, Reporters
from fairlead_gateway.profiles.messages import TimingEventKind
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_testing.engines.scripted import EngineCall, responds, scripted_engine, silent, well_behaved
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RecordedReports, RunningGateway, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

Script = Callable[[EngineCall], Awaitable[None]]
LIMITS = Limits(handoff_min_tokens=16, handoff_prefill_seconds=0.5, handoff_first_event_seconds=0.5)
LONG = "tell me everything about everything " * 20
OBJECT = {
    "do_remote_prefill": True,
    "remote_block_ids": [[1]],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "127.0.0.1",
    "remote_port": 5801,
    "tp_size": 1,
}


prefilling = responds({"choices": [{"index": 0}], "kv_transfer_params": OBJECT})
no_blocks = responds({"choices": [{"index": 0}]})


failing = responds({"error": {"message": "no"}}, "500 Internal Server Error")


async def failing_to_pull(call: EngineCall) -> None:
    await (failing if call.json.get("kv_transfer_params") else well_behaved)(call)


@asynccontextmanager
async def split(
    prefill: list[Script], decode: list[Script], limits: Limits = LIMITS, reporters: Reporters | None = None
) -> AsyncIterator[RunningGateway]:
    async with AsyncExitStack() as stack:
        instances = []
        for role, scripts in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            for number, script in enumerate(scripts):
                engine = await stack.enter_async_context(scripted_engine(script))
                name = f"{role.value[0]}{number}"
                instances.append(Instance(name, "default", "tiny", role.value, engine.url, role=role, transfer="nixl"))
        fleet = Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: tuple(instances)})
        yield await stack.enter_async_context(running_gateway(fleet, limits, reporters=reporters))


def chat(text: str = LONG, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": True, **more}


def story(running: RunningGateway) -> HandoffRecord:
    record = running.gateway.decisions.latest(1)[0].latest.handoff
    assert record is not None
    return record


SHORT, LEASE = chat("hi"), replace(LIMITS, handoff_lease_seconds=0.0)
BATCH = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 3}
CASES = [
    ("done", "long", [("P0", "ok")], [prefilling], well_behaved, chat(), LIMITS),
    ("bypassed", "short", [], [prefilling], well_behaved, SHORT, LIMITS),
    ("bypassed", "several-prompts", [], [prefilling], well_behaved, BATCH, LIMITS),
    ("bypassed", "prompt-asked", [], [prefilling], well_behaved, chat(prompt_logprobs=1), LIMITS),
    ("done", "long", [("P0", "ok")], [prefilling], well_behaved, chat(prompt_logprobs=None, echo=None), LIMITS),
    ("failed", "prefill-no-blocks", [("P0", "no-blocks")], [no_blocks], well_behaved, chat(), LIMITS),
    ("failed", "prefill-status-500", [("P0", "status-500")], [failing], well_behaved, chat(), LIMITS),
    ("failed", "prefill-timeout", [("P0", "timeout")], [silent], well_behaved, chat(), LIMITS),
    ("failed", "expired", [("P0", "ok")], [prefilling], well_behaved, chat(), LEASE),
    ("failed", "decode-status-500", [("P0", "ok")], [prefilling], failing_to_pull, chat(), LIMITS),
]


@pytest.mark.parametrize(("outcome", "reason", "legs", "prefill", "decode", "body", "limits"), CASES)
async def test_every_end_has_its_word_and_is_counted_once(
    outcome: str,
    reason: str,
    legs: list[tuple[str, str]],
    prefill: list[Script],
    decode: Script,
    body: dict[str, Any],
    limits: Limits,
) -> None:
    async with split(prefill, [decode], limits) as running:
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        assert (await request(running.url, body, path=path)).status == 200
        record = story(running)
        assert (record.outcome, record.reason) == (outcome, reason)
        assert [(leg.instance_id, leg.result) for leg in record.attempts] == legs
        series = running.gateway.telemetry.models[MODEL_KEY]
        assert series.handoffs == {(outcome, reason): 1}
        assert series.prefill_legs == {result: 1 for _, result in legs}


async def test_the_gateways_own_time_does_not_hold_the_prefill_leg() -> None:
    async with split([prefilling], [well_behaved]) as running:
        assert (await request(running.url, chat())).status == 200
        logged = running.gateway.decisions.latest(1)[0]
        overhead, waited = logged.overhead_seconds, story(running).waited_seconds
        assert overhead is not None
        assert waited > 0
        assert 0 < overhead < overhead + waited < logged.duration_seconds


async def test_a_hand_off_that_failed_on_its_decode_engine_leaves_both_choices_in_the_log() -> None:
    async with split([prefilling], [failing_to_pull]) as running:
        assert (await request(running.url, chat())).status == 200
        logged = running.gateway.decisions.latest(1)[0]
        assert [(record.attempt, record.decision.chosen) for record in logged.records] == [(1, "D0"), (1, "D0")]
        assert "plain now" in logged.latest.decision.reason


async def test_behind_a_failed_hand_off_the_gateways_own_time_is_not_known() -> None:
    async with split([prefilling], [failing_to_pull]) as running:
        assert (await request(running.url, chat())).status == 200
        assert running.gateway.decisions.latest(1)[0].overhead_seconds is None


async def test_the_management_api_shows_both_legs_with_the_numbers_behind_them() -> None:
    async with split([failing, prefilling], [well_behaved]) as running:
        assert (await request(running.url, chat())).status == 200
        shown = decision_out(running.gateway.decisions.latest(1)[0])
        assert shown.handoff.outcome == "done"
        leg = shown.handoff.legs[-1]
        assert (leg.instance, leg.result, leg.rule) == ("P1", "ok", leg.rule)
        assert leg.seconds is not None
        assert leg.candidates[0].id == "P1"
        assert "backlog_seconds" in leg.candidates[0].inputs
        assert shown.choices[0].instance == "D0"
        assert (shown.outcome.failures, shown.outcome.continued) == ([], False)


async def test_failed_attempts_are_in_the_outcome() -> None:
    async with split([], [failing, well_behaved]) as running:
        for number in range(8):
            assert (await request(running.url, chat(f"{number} {LONG}"))).status == 200
        logged = [decision_out(entry) for entry in running.gateway.decisions.latest(8)]
        retried = [decision for decision in logged if len(decision.choices) == 2]
        assert retried
        for decision in retried:
            assert decision.outcome is not None
            assert [(failure.instance, failure.why) for failure in decision.outcome.failures] == [("D0", "status-500")]
            assert decision.handoff is None


async def test_prompt_that_another_engine_computed_is_left_out_of_learned_profiles() -> None:
    sender = RecordedReports()
    journal = Journal(sender, asyncio.get_running_loop())
    async with split([prefilling], [well_behaved], reporters=Reporters(journal)) as running:
        assert (await request(running.url, chat())).status == 200
        assert story(running).outcome == "done"
        assert (await request(running.url, SHORT)).status == 200
    journal.flush()
    assert [event.instance for event in sender.timings if event.kind == TimingEventKind.DISPATCHED] == ["D0"]
    assert {event.request for event in sender.timings} == {running.gateway.decisions.latest(1)[0].latest.request_id}


async def test_a_hand_off_whose_client_left_is_never_counted_as_done() -> None:
    async with split([silent], [well_behaved]) as running:
        leaving = await RawConnection.connect(running.url)
        await leaving.send(post_request(chat()))
        await wait_until(lambda: bool(running.gateway.inflight_count()))
        await leaving.close()
        await wait_until(lambda: not running.gateway.inflight_count())
        assert running.gateway.telemetry.models[MODEL_KEY].handoffs == {}
