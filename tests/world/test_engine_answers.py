"""Answers that engines and proxies before them really send, replayed through the gateway."""

import itertools

import pytest
from engine_answers import (
    ADDED,
    FAULTS,
    PLAIN,
    REFUSALS,
    STREAM,
    STREAMS,
    USAGE_EVENTS,
    EngineAnswer,
    Situation,
)
from passed_answers import PASSED_ANSWERS

from fairlead_testing.engines.scripted import EngineCall, Script
from fairlead_testing.gateway.running_gateway import gateway_before
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated
SITUATIONS = (*REFUSALS, *ADDED, *STREAMS, *FAULTS, *USAGE_EVENTS, *PASSED_ANSWERS)


def replay(situation: Situation) -> tuple[Script, list[EngineCall]]:
    """A script for several engines that sends the answers in turn, and the calls that they got."""
    calls: list[EngineCall] = []
    answers = itertools.chain(situation.answers, itertools.repeat(situation.answers[-1]))

    async def script(call: EngineCall) -> None:
        calls.append(call)
        await send(call, next(answers))

    return script, calls


async def send(call: EngineCall, answer: EngineAnswer) -> None:
    if "event-stream" not in answer.content_type:
        await call.respond(b"".join(answer.body), answer.status, answer.content_type)
        return
    await call.start_stream(answer.content_type)
    for part in answer.body:
        await call.chunk(part)
    await call.chunk(b"")


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
async def test_an_answer_of_the_world_becomes_the_right_one(situation: Situation) -> None:
    script, calls = replay(situation)
    async with gateway_before([script] * 3) as running:
        answer = await request(running.url, situation.request or PLAIN, path=situation.path)
    text = answer.body.decode()
    assert answer.status == situation.status, text
    assert [words for words in situation.says if words not in text] == [], text
    assert [words for words in situation.never if words in text] == [], text
    assert len(calls) == situation.attempts


async def test_a_field_that_an_instance_refused_is_not_sent_to_it_again() -> None:
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        refused = "stream_options" in call.json
        await send(call, ADDED[0].answers[0 if refused else 1])

    async with gateway_before([script]) as running:
        for _ in range(2):
            assert (await request(running.url, STREAM)).status == 200
    assert ["stream_options" in call.json for call in calls] == [True, False, False]
    assert calls[1].json == STREAM | {"return_token_ids": True}


async def test_an_engine_that_refuses_token_ids_is_not_asked_for_them_again() -> None:
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        if "return_token_ids" in call.json:
            error = {"message": "Extra inputs are not permitted: return_token_ids", "type": "BadRequestError"}
            await call.respond({"error": error}, status="400 Bad Request")
        else:
            await send(call, ADDED[0].answers[1])

    async with gateway_before([script]) as running:
        for _ in range(2):
            assert (await request(running.url, STREAM)).status == 200
    assert ["return_token_ids" in call.json for call in calls] == [True, False, False]
    assert "stream_options" in calls[1].json


async def test_headers_by_which_engines_read_bodies_otherwise_pass_in_no_direction() -> None:
    """SGLang decompresses a body with `x-body-compressed`."""
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        await call.respond(
            {"choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}, more="x-body-compressed: zstd\r\n"
        )

    async with gateway_before([script]) as running:
        answer = await request(running.url, PLAIN, more="x-body-compressed: zstd\r\n")
        assert answer.status == 200
        assert "x-body-compressed" not in answer.fields
        assert b"x-body-compressed" not in calls[0].head


def test_each_situation_says_where_it_was_seen() -> None:
    assert [situation.name for situation in SITUATIONS if not situation.source] == []
    assert len({situation.name for situation in SITUATIONS}) == len(SITUATIONS)
