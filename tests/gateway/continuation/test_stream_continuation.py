"""Streams that go on at another engine from their tokens, whatever their sampling."""

import asyncio
import json
from dataclasses import replace
from itertools import chain

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import ModelRouting, StreamResume
from fairlead_gateway.continuation.sent_tokens import SentTokens, TokenMemory
from fairlead_gateway.continuation.stream_moves import StreamProgress, decide_move
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.upstream.sse import COMMENT
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import EngineCall, event, hang_up, scripted_engine
from fairlead_testing.gateway.broken_streams import (
    BOTH,
    CALL,
    CHAT,
    PROMPT,
    TEXT,
    Event,
    Part,
    answer_of,
    broken_after,
    chat_engine,
    chat_over_breaks,
    chunk,
    counts,
    marks_of,
    opening,
    prompt_of,
    relayed_stream,
    said,
    shown,
    text_of,
    with_draining,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway, with_profile
from fairlead_testing.http.raw_client import request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

FIRST, REST = [said("one ", 31)], [said("two", 12, finish="stop"), counts(4, 1)]
TOOLS: Event = {"tools": [{"type": "function", "function": {"name": "g"}}]}


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_sampled_stream_goes_on_and_counts_all_tokens(path: str, body: Event) -> None:
    body = {**body, "temperature": 1, "ignore_eos": True, "max_tokens": 200}
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        answer = await broken_after(9, running, engines, (path, body))
        events = shown(answer)
        assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
        assert events[-1]["usage"]["completion_tokens"] == 200
        assert len(text_of(events)) == 200 * 4
        (mark,) = marks_of(events)
        assert 6 <= mark < 200
        assert all('token_ids":[' not in data for data in answer.events)
        logged = running.gateway.decisions.latest(1)[0]
        assert (logged.status, logged.error, logged.output_tokens) == (200, None, 200)
        assert "of the answer; " in logged.latest.decision.reason
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
        assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_a_client_gets_the_bytes_of_an_engine_that_was_not_asked(path: str, body: Event) -> None:
    body = {**body, "temperature": 0}
    async with engine_processes(1) as engines, running_gateway(fleet_of([engines[0].url])) as running:
        more = "content-type: application/json\r\n"
        through = await request(running.url, body, path=path, more=more)
        direct = await request(engines[0].url, body, path=path, more=more)
        for ours, theirs in zip(shown(through), shown(direct), strict=True):
            assert ours | {"id": "", "created": 0} == theirs | {"id": "", "created": 0}


THOUGHT = counts(4, 1)
THOUGHT["usage"]["completion_tokens_details"] = {"reasoning_tokens": 1}
PARAMETERS = {"type": "object", "properties": {"file": {"type": "string"}, "echo": {"type": "string"}}}
NAMES: Event = {
    "tools": [{"type": "function", "function": {"name": "g", "parameters": PARAMETERS}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
    "echo": False,
}


@pytest.mark.parametrize(
    ("first", "rest", "change", "text", "ids", "output"),
    [
        ([said("one ", 11), said("", 12), chunk({}, [13])], REST, {}, "one two", [11], 2),
        ([said("one ", 20), said("\u00e9", 21, 22)], REST, {}, "one \u00e9two", [20, 21], 3),
        ([chunk({"reasoning": "one "}, [11])], [REST[0], THOUGHT], {}, "two", [11], 2),
        (FIRST, REST, NAMES, "one two", [31], 2),
    ],
    ids=["unsent text", "part of a character", "reasoning that one engine counted", "names of fields in tools"],
)
async def test_tokens_behind_the_sent_text_are_drawn_again_and_counted_once(
    first: Part, rest: Part, change: Event, text: str, ids: list[int], output: int
) -> None:
    outcome = await chat_over_breaks(first, rest, **change)
    assert outcome.text == text
    assert outcome.met[1]["kv_transfer_params"] == {"prompt_token_ids": [*PROMPT, *ids]}
    assert (outcome.met[1]["max_tokens"], outcome.met[1]["return_token_ids"]) == (60 - len(ids), True)
    assert outcome.events[-1]["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 3 + output,
        "completion_tokens": output,
    }


async def test_a_stream_goes_on_after_a_second_break() -> None:
    ids = [list(range(10 * number, 10 * number + 8)) for number in range(1, 4)]
    parts = [[said(f"{token} ", token) for token in part] for part in ids]
    outcome = await chat_over_breaks(*parts, [said("end", 40, finish="stop"), counts(27, 1)], count=4)
    assert outcome.continued == {"whole": 1}
    assert outcome.running.gateway.decisions.latest(1)[0].output_tokens == 25
    assert outcome.text == "".join(f"{token} " for token in chain(*ids)) + "end"
    assert [prompt_of(body) for body in outcome.met] == [[*PROMPT, *chain(*ids[:count])] for count in range(4)]
    assert outcome.events[-1]["usage"]["completion_tokens"] == 25
    assert marks_of(outcome.events) == [8, 16, 24]


async def test_tool_calls_are_held_until_they_are_whole_and_drawn_again_after_a_break() -> None:
    begun = [said("I look. ", 11), chunk({"tool_calls": [CALL]}, [12])]
    call = {"tool_calls": [CALL | {"function": {"name": "g", "arguments": "{}"}}]}
    outcome = await chat_over_breaks(begun, [chunk(call, [13]), chunk({}, [14], "tool_calls"), counts(4, 2)], **TOOLS)
    calls = [made for choice in outcome.choices for made in choice["delta"].get("tool_calls", [])]
    assert [made["function"]["name"] for made in calls] == ["g"]
    assert prompt_of(outcome.met[1]) == [*PROMPT, 11]
    assert "tools" in outcome.met[1]


@pytest.mark.parametrize("change", [{}, {"stop": ["x"]}, {"tool_choice": "required"}], ids=["text", "stop", "tool"])
@pytest.mark.parametrize("wants_usage", [False, True])
async def test_a_break_after_the_last_token_needs_no_other_engine(wants_usage: bool, change: Event) -> None:
    change = change | {"stream_options": {"include_usage": wants_usage}}
    outcome = await chat_over_breaks([said("one ", 11), said("two", 12, finish="stop")], [], **change)
    assert outcome.running.gateway.decisions.latest(1)[0].output_tokens == 2
    assert len(outcome.met) == 1
    assert outcome.text == "one two"
    assert [end["usage"]["completion_tokens"] for end in outcome.events if end.get("usage")] == [2] * wants_usage


async def test_a_break_at_the_limit_of_the_answer_ends_it_with_that_reason() -> None:
    outcome = await chat_over_breaks([said("one ", 11), said("two", 12)], [], max_tokens=2)
    assert len(outcome.met) == 1
    assert [choice["finish_reason"] for choice in outcome.choices][-1] == "length"


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
REFUSED: list[tuple[Event, str]] = [
    ({"prompt_logprobs": 0}, "prompt-logprobs"),
    ({"echo": True}, "echo"),
    ({"stop": ["x"], "prompt_logprobs": 0}, "prompt-logprobs"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "media"),
]


@pytest.mark.parametrize(
    ("parts", "change", "reason", "calls"),
    [
        *(([FIRST, REST], change, reason, 1) for change, reason in REFUSED),
        ([[said(" ", 23)], []], TOOLS, "part-of-text", 1),
        ([[chunk({"content": "one "}, None)], []], {"include_reasoning": False}, "no-token-ids", 1),
        ([[said("0 ", 10)], [said("1 ", 11)], [said("2 ", 12)], []], {}, "poison", 2),
    ],
)
async def test_what_cannot_be_handed_over_ends_the_stream_with_its_reason(
    parts: list[Part], change: Event, reason: str, calls: int
) -> None:
    outcome = await chat_over_breaks(*parts, count=4, **change)
    assert outcome.refusal == reason
    assert outcome.running.gateway.telemetry.models[MODEL_KEY].not_continued == {reason: 1}
    assert outcome.running.gateway.decisions.latest(1)[0].not_continued == reason
    assert len(outcome.met) == calls
    assert sum("one " in data for data in outcome.answer.events) <= 1


@pytest.mark.parametrize(("change", "reason"), REFUSED[:3], ids=[" ".join(change) for change, _ in REFUSED[:3]])
async def test_before_the_first_text_everything_goes_on(change: Event, reason: str) -> None:
    assert (await chat_over_breaks([], REST, **change)).text == "two", reason


async def test_an_engine_that_does_not_read_token_ids_continues_nothing() -> None:
    outcome = await chat_over_breaks(FIRST, FIRST, reads_ids=False)
    assert text_of([json.loads(data) for data in outcome.answer.events[:2]]) == "one "
    assert outcome.refusal
    assert sum("one " in data for data in outcome.answer.events) == 1


async def test_a_client_that_asks_for_token_ids_gets_them_over_a_break() -> None:
    outcome = await chat_over_breaks(FIRST, REST, return_token_ids=True)
    assert outcome.events[0]["prompt_token_ids"] == PROMPT
    assert outcome.token_ids == [31, 12]


async def test_a_completion_has_the_ids_of_its_prompt_once() -> None:
    def part(text: str, ids: list[int], prompt: list[int] | None, finish: str | None = None) -> Event:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "prompt_token_ids": prompt}
        named = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny"}
        return named | {"choices": [choice | {"token_ids": ids}]}

    async def script(call: EngineCall) -> None:
        is_first = isinstance(call.json["prompt"], str)
        await call.start_stream()
        await call.event(part("one ", [11], PROMPT) if is_first else part("two", [12], call.json["prompt"], "stop"))
        await (hang_up if is_first else EngineCall.finish)(call)

    outcome = await answer_of([script] * 2, [], TEXT | {"return_token_ids": True}, "/v1/completions")
    assert [choice["prompt_token_ids"] for choice in outcome.choices] == [PROMPT, None]


@pytest.mark.parametrize("change", [{"logprobs": True}, {"return_token_ids": True}], ids=["logprobs", "ids"])
async def test_a_token_without_text_that_the_client_would_see_is_held(change: Event) -> None:
    first = [said("", 11), said("one ", 12), said("", 13)]
    rest = [said("", 14), said("two", 15), said("", 16, finish="stop")]
    probabilities = {"logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}
    for sent in (*first, *rest):
        sent["choices"][0] |= probabilities
    outcome = await chat_over_breaks(first, [*rest, counts(5, 3)], **change)
    assert sum(choice["logprobs"] is not None for choice in outcome.choices) == 5
    assert prompt_of(outcome.met[1]) == [*PROMPT, 11, 12]
    if "return_token_ids" in change:
        assert outcome.token_ids == [11, 12, 14, 15, 16]


def opened_tokens(memory: TokenMemory, *more: Event) -> SentTokens:
    """Returns the tokens of a stream that has begun."""
    tokens = SentTokens(memory, strips=True)
    tokens.take(b"".join(event(part) for part in (opening(PROMPT), *more)))
    return tokens


def test_text_that_comes_in_one_piece_with_the_opening_counts() -> None:
    assert opened_tokens(TokenMemory(1 << 20), said("one ", 11)).generated == 1


def test_streams_beyond_the_memory_of_all_are_not_continued() -> None:
    memory = TokenMemory(4 * 5)
    first, second = opened_tokens(memory), opened_tokens(memory)
    assert (first.problem, second.problem) == ("", "memory")
    assert memory.used_bytes == 4 * len(PROMPT)
    first.release()
    first.release()
    assert memory.used_bytes == 0


def test_events_of_a_held_call_leave_comments_and_too_many_end_the_holding() -> None:
    tokens = opened_tokens(TokenMemory(2 << 20))
    call = event(chunk({"tool_calls": [CALL]}, [9]))
    assert tokens.take(call) == COMMENT
    passed = b"".join(tokens.take(call) for _ in range((1 << 20) // len(call) + 2))
    assert passed.count(b'"tool_calls"') >= (1 << 20) // len(call)
    assert tokens.problem == "long-tool-call"


def test_held_events_count_as_memory_and_are_sent_when_it_is_full() -> None:
    call, shown_call = (event(chunk({"tool_calls": [CALL]}, ids)) for ids in (list(range(1_100)), []))
    memory = TokenMemory(2 * (len(shown_call) + 2) + 4 * (2 * 1_100 + len(PROMPT)))  # ids become null
    tokens = opened_tokens(memory)
    assert [tokens.take(call), tokens.take(call)] == [COMMENT, COMMENT]
    assert memory.used_bytes == memory.max_bytes
    ended = tokens.take(event(chunk({}, list(range(300)), "tool_calls")))
    assert ended.count(b'"tool_calls":[') == 2, "they are sent before the ids are found to be too many"
    assert (tokens.problem, memory.used_bytes) == ("memory", 0)
    tokens = opened_tokens(memory)
    passed = b"".join(tokens.take(call) for _ in range(3))
    assert passed.count(b'"tool_calls"') == 3
    assert (tokens.problem, memory.used_bytes) == ("memory", 0)


async def test_garbage_in_place_of_token_ids_is_passed_on_and_ends_the_keeping() -> None:
    garbage = chunk({"content": "one "}, ["x", -1, 1 << 40])  # type: ignore[list-item]
    assert (await chat_over_breaks([garbage, *REST], count=1)).text == "one two"


async def test_streams_leave_an_instance_that_drains_and_go_on_elsewhere() -> None:
    met: list[Event] = []
    left = asyncio.Event()
    whole = chat_engine([], REST, met=met)

    async def script(call: EngineCall) -> None:
        if met:
            await whole(call)
            return
        met.append(call.json)
        await call.start_stream()
        for sent in (opening(PROMPT), *FIRST):
            await call.event(sent)
        await call.wait_closed()
        left.set()

    async with gateway_of(script, script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, CHAT))
        with_draining(running, (await relayed_stream(running)).instance_id)
        await left.wait()
        assert text_of(shown(await answer)) == "one two"
        assert prompt_of(met[1]) == [*PROMPT, 31]
        logged = running.gateway.decisions.latest(1)[0]
        assert (logged.error, logged.output_tokens) == (None, 2)
        assert logged.break_seconds is not None
        assert logged.recomputed_tokens == 4
        assert "continued after drain, behind 1 tokens" in logged.latest.decision.reason
        assert running.gateway.telemetry.models[MODEL_KEY].moved == {"moved": 1}
        assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.parametrize("refusals", [1, 2])
async def test_a_move_that_is_refused_charges_no_retry_and_names_the_last_cause(refusals: int) -> None:
    met: list[list[int]] = []
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(prompt_of(call.json))
        if 1 < len(met) <= 1 + refusals:
            await call.respond({"error": {"message": "full"}}, status="503 Service Unavailable")
            return
        await call.start_stream()
        await call.event(opening(met[-1]))
        if len(met) == 1:
            await call.event(chunk({"content": "one "}, [11]))
            await call.wait_closed()
            return
        await go_on.wait()
        await call.event(chunk({"content": "two"}, [12], "stop"))
        await call.event(counts(4, 1))
        await call.finish()

    async with scripted_engine(script) as one, scripted_engine(script) as two, scripted_engine(script) as three:
        fleet = with_profile(fleet_of([one.url, two.url, three.url]), builtin_profile("l4-qwen8b"))
        async with running_gateway(fleet) as running, asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(request(running.url, CHAT))
            await wait_until(lambda: any(isinstance(one, RelayedStream) for one in running.gateway._inflight.values()))
            (stream,) = [one for one in running.gateway._inflight.values() if isinstance(one, RelayedStream)]
            budget = running.gateway.stages.relay.continuation._retry_budget
            while budget.take(stream.context.caller, running.gateway._now()):
                pass
            with_draining(running, stream.instance_id)
            await wait_until(lambda: len(met) == 3)
            assert met[1:] == [[*PROMPT, 11]] * 2
            if refusals == 1:
                planned = running.gateway.stages.admission.models[MODEL_KEY].policy.kv_capacity
                assert [sequence.earlier for sequence in planned._sequences.values()] == [1]
                go_on.set()
                assert text_of(shown(await answer)) == "one two"
            else:
                error = (await answer).events[-1]
                assert "stream_drain" not in error
                assert "no engine could continue it (no-instance)" in error


async def test_without_another_instance_a_stream_stays_where_it_drains() -> None:
    met: list[Event] = []
    go_on = asyncio.Event()
    async with (
        gateway_of(chat_engine([*FIRST, go_on, *REST], met=met)) as (running, *_),
        asyncio.TaskGroup() as tasks,
    ):
        answer = tasks.create_task(request(running.url, CHAT))
        with_draining(running, (await relayed_stream(running)).instance_id)
        go_on.set()
        assert text_of(shown(await answer)) == "one two"
        assert len(met) == 1


async def test_a_model_may_forbid_it_and_its_tool_calls_are_sent_in_parts() -> None:
    met: list[Event] = []
    async with gateway_of(*[chat_engine([chunk({"tool_calls": [CALL]}, None)], [], met=met)] * 2) as (running, *_):
        fleet = running.gateway.stages.routers.fleet
        models = {
            key: replace(model, routing=ModelRouting(resume=StreamResume.NEVER)) for key, model in fleet.models.items()
        }
        running.gateway.update_fleet(replace(fleet, version=2, models=models))
        answer = await request(running.url, CHAT)
    assert any('"tool_calls"' in data for data in answer.events)
    assert "no engine could continue it (never)" in answer.events[-1]
    assert "return_token_ids" not in met[0]


@pytest.mark.parametrize(
    ("change", "moves", "words"),
    [
        ({}, True, "12s are left, and a move costs 1.5s"),
        ({"forecast_tokens": 10.0}, False, "only 1s are left, and a move costs 1.5s"),
        ({"limit_tokens": 10}, False, "only 1s"),
        ({"forecast_tokens": None, "limit_tokens": None}, True, "how long it goes on is not known"),
        ({"token_seconds": None}, True, "its speed is not known"),
        ({"moves": 4}, False, "it has moved 4 times"),
    ],
)
def test_a_stream_moves_if_its_rest_is_longer_than_the_move(change: Event, moves: bool, words: str) -> None:
    stream = StreamProgress(100, 50, 1.0, 0.1, forecast_tokens=120.0, limit_tokens=500)
    decision = decide_move(replace(stream, **change))
    assert decision.moves is moves
    assert decision.reason.startswith(words)
    has_forecast = {"forecast_tokens", "limit_tokens", "token_seconds"}.isdisjoint(change) and moves
    assert decision.rest_seconds == (12.0 if has_forecast else None)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "word"},
        {"content": ""},
        {"content": 'says:"'},
        {"reasoning": "think"},
        {"tool_calls": [CALL]},
        {"content": "x", "tool_calls": []},
        {},
    ],
    ids=lambda delta: json.dumps(delta)[:24],
)
@pytest.mark.parametrize("ids", [[11], [11, 12], []], ids=len)
def test_events_of_text_are_taken_as_in_the_general_way(delta: Event, ids: list[int]) -> None:
    quick, general = (opened_tokens(TokenMemory(1 << 20)) for _ in range(2))
    for part in (event(chunk(delta, ids)), event(said("more", 20))):
        assert quick.take(part) == general._take_event(part)
        for name in ("ids", "shown", "last", "last_at"):
            assert getattr(quick, name) == getattr(general, name)


async def test_a_continued_stream_names_the_model_as_its_client_does() -> None:
    met: list[Event] = []
    async with gateway_of(*[chat_engine(FIRST, REST, met=met)] * 2) as (running, *_):
        fleet = running.gateway.stages.routers.fleet
        listed = tuple(replace(instance, served_name="tiny") for instance in fleet.instances[MODEL_KEY])
        models = {key: replace(model, served_names=("fine",)) for key, model in fleet.models.items()}
        running.gateway.update_fleet(replace(fleet, version=2, instances={MODEL_KEY: listed}, models=models))
        events = shown(await request(running.url, CHAT | {"model": "fine"}))
    assert len(met) == 2
    assert {event["model"] for event in events} == {"fine"}


async def test_stream_longer_than_all_before_it_has_no_forecast() -> None:
    endless = [*(said("more ", 100 + number) for number in range(40)), asyncio.Event()]
    short, long = chat_engine([*FIRST, counts(3, 1)], met=[]), chat_engine(endless, met=[])
    is_short = [True]
    async with (
        scripted_engine(lambda call: (short if is_short[0] else long)(call)) as engine,
        running_gateway(with_profile(fleet_of([engine.url]), builtin_profile("h100-llama8b"))) as running,
        asyncio.TaskGroup() as tasks,
    ):
        relay = running.gateway.stages.relay
        await request(running.url, CHAT)
        is_short[0] = False
        answer = tasks.create_task(request(running.url, CHAT))
        stream = await relayed_stream(running)
        await wait_until(lambda: stream._stream is not None and stream._stream.generated == 40)
        forecast = running.gateway.stages.admission.models[MODEL_KEY].policy.kv_capacity.forecast
        assert forecast.expected_remaining(stream.context.caller, 3, 40, relay._now()) == 1.0
        assert (
            relay.continuation._progress(stream._attempt, stream._engine_response, stream._stream).forecast_tokens
            is None
        )
        answer.cancel()


async def test_the_price_of_a_second_move_is_that_of_the_present_engine() -> None:
    asked: list[StreamProgress] = []
    met: list[Event] = []

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        for sent in (opening(prompt_of(call.json)), said("one ", 11), said("two ", 12)):
            await call.event(sent)
        await call.wait_closed()

    endless = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    async with gateway_of(script, script, script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, endless))
        relay = running.gateway.stages.relay
        for number in range(2):
            await wait_until(lambda: len(met) == number + 1)  # noqa: B023 - awaited at once
            stream = await relayed_stream(running)
            await wait_until(lambda: stream._stream is not None and stream._stream.generated == 2 * (number + 1))  # noqa: B023
            asked.append(relay.continuation._progress(stream._attempt, stream._engine_response, stream._stream))
            assert stream.move()
        answer.cancel()
    assert [(one.prompt_tokens, one.generated) for one in asked] == [(3, 2), (5, 2)]
    assert asked[1].first_seconds is not None
