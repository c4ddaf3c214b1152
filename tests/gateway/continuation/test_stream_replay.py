"""Streams that go on by replay: another engine answers the whole request again."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, hang_up
from fairlead_testing.gateway.broken_streams import (
    BOTH,
    CALL,
    CHAT,
    PROMPT,
    TEXT,
    Event,
    Outcome,
    answer_of,
    broken_after,
    chat_engine,
    chunk,
    counts,
    marks_of,
    opening,
    relayed_stream,
    shown,
    text_of,
    with_draining,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

SCHEMA: Event = {"response_format": {"type": "json_object"}}
PIECES = ['{"a', '": "', "Z\u00fc", "rich", " <", "\U0001f600", '"', ", ", '"b": ', "1}", ""]
IDS = list(range(11, 11 + len(PIECES)))
WHOLE = "".join(PIECES)
USAGE = counts(len(PROMPT), len(IDS))


def grouped(size: int, pieces: Sequence[str] = PIECES, field: str = "content", **more: Any) -> list[Event]:
    """The events of an answer, with that many tokens in each; the last one ends it."""
    ids, events = range(IDS[0], IDS[0] + len(pieces)), []
    for at in range(0, len(pieces), size):
        text, finish = "".join(pieces[at : at + size]), "stop" if at + size >= len(pieces) else None
        events.append(chunk({field: text}, list(ids[at : at + size]), finish))
        events[-1]["choices"][0] |= more
    return events


Answer = tuple[list[Event], int | None]
"""The events of an engine, and how many it sends before it breaks; None: all."""


def replaying(*answers: Answer, met: list[Event]) -> Script:
    """Returns the script of engines that send one answer for each call. met: gets the bodies."""

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        events, cut = answers[len(met) - 1]
        await call.start_stream()
        named = {"id": f"chatcmpl-{len(met)}", "created": len(met)}
        for event in [opening(PROMPT), *events[:cut]]:
            await call.event(event | named)
            await asyncio.sleep(0.01)  # simulated; each is a read of its own
        if cut is not None:
            raise HangUp
        await call.event(USAGE | named)
        await call.finish()

    return script


async def replayed(change: Event, *answers: Answer, count: int = 2, more: str = "") -> Outcome:
    """Returns the answer to a chat from engines with these answers."""
    met: list[Event] = []
    return await answer_of([replaying(*answers, met=met)] * count, met, CHAT | change, more=more)


@pytest.mark.parametrize("cut", range(len(PIECES)))
async def test_a_schema_stream_that_is_cut_anywhere_is_whole_and_counts_once(cut: int) -> None:
    outcome = await replayed(SCHEMA, (grouped(1), cut), (grouped(1), None))
    events = outcome.events
    assert outcome.text == WHOLE
    assert [event["usage"] for event in events if event.get("usage")] == [USAGE["usage"]]
    assert {(event["id"], event["created"]) for event in events} == {("chatcmpl-1", 1)}
    assert marks_of(events) == [cut]
    assert sum('"role"' in data for data in outcome.answer.events) == 1
    assert all('token_ids":[' not in data for data in outcome.answer.events)
    first, second = outcome.met
    assert first == second
    assert isinstance(first["seed"], int)
    logged = outcome.running.gateway.decisions.latest(1)[0]
    assert f"continued by replay after cut, behind {cut} tokens" in logged.latest.decision.reason
    assert (logged.error, logged.output_tokens, logged.recomputed_tokens) == (None, len(IDS), len(PROMPT) + cut)
    assert logged.break_seconds is not None
    assert outcome.continued == {"whole": 1}


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (2, 3), (2, 20)], ids=str)
async def test_a_replay_with_other_events_is_cut_within_one(sizes: tuple[int, int]) -> None:
    first, second = (grouped(size) for size in sizes)
    for cut in range(1, len(first)):
        assert (await replayed(SCHEMA, (first, cut), (second, None))).text == WHOLE, cut


@pytest.mark.parametrize(
    "change",
    [{"stop": ["never"]}, {"frequency_penalty": 0.5}, {"bad_words": ["x"]}, {"structured_outputs": {"regex": "a+"}}],
    ids=lambda change: next(iter(change)),
)
async def test_what_engines_begin_anew_is_replayed(change: Event) -> None:
    outcome = await replayed(change, (grouped(1), 4), (grouped(1), None))
    assert outcome.text == WHOLE
    assert outcome.met[0] == outcome.met[1]
    assert "seed" in outcome.met[0]


@pytest.mark.parametrize(
    ("change", "seed"),
    [
        (SCHEMA | {"seed": 7}, 7),
        (SCHEMA | {"temperature": 0}, None),
        (SCHEMA | {"stop": ["x"], "prompt_logprobs": 0}, None),
        ({"presence_penalty": 0}, None),
        ({}, None),
    ],
    ids=["own", "greedy", "not replayed", "no penalty", "from its tokens"],
)
async def test_only_sampled_requests_that_need_a_replay_get_a_seed(change: Event, seed: int | None) -> None:
    assert (await replayed(change, (grouped(1), None), count=1)).met[0].get("seed") == seed


async def test_a_seed_of_null_is_none() -> None:
    assert isinstance((await replayed(SCHEMA | {"seed": None}, (grouped(1), None), count=1)).met[0]["seed"], int)


def other_text(at: int) -> list[Event]:
    """The answer with one event whose tokens are the same, and whose text is not."""
    return grouped(1, [*PIECES[:at], "x" * len(PIECES[at]), *PIECES[at + 1 :]])


def other_tokens(at: int) -> list[Event]:
    """The answer with one event whose text is the same, and whose tokens are not."""
    events = grouped(1)
    events[at]["choices"][0]["token_ids"] = [99]
    return events


@pytest.mark.parametrize(
    "second",
    [
        other_text(2),
        other_tokens(2),
        grouped(1, PIECES[:3]),
        grouped(1, PIECES[:3])[:2],
        [*grouped(1)[:3], chunk({"reasoning": "hm"}, [14]), *grouped(1)[4:]],
        [chunk({"content": WHOLE}, IDS[:2]), *grouped(1)[2:]],
    ],
    ids=["text", "tokens", "ends", "breaks off", "another field", "text before its tokens"],
)
async def test_a_replay_that_differs_ends_the_stream_and_shows_nothing(second: list[Event]) -> None:
    outcome = await replayed(SCHEMA, (grouped(1), 4), (second, None))
    assert outcome.refusal == "replay-differs"
    assert text_of([json.loads(data) for data in outcome.answer.events[:-1]]) == "".join(PIECES[:4])
    assert outcome.running.gateway.telemetry.models[MODEL_KEY].not_continued == {"replay-differs": 1}
    assert outcome.continued == {"broken": 1}
    assert outcome.running.gateway.decisions.latest(1)[0].not_continued == "replay-differs"


async def test_an_engine_with_another_prompt_replays_nothing() -> None:
    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        for event in (opening(PROMPT[: 4 - len(met)]), *grouped(1)[:4]):
            await call.event(event)
        await (hang_up if len(met) == 1 else EngineCall.finish)(call)

    met: list[Event] = []
    assert (await answer_of([script] * 2, met, CHAT | SCHEMA)).refusal == "replay-differs"


async def test_a_second_and_a_third_break_are_replayed_from_the_start() -> None:
    pieces = [f"{number} " for number in range(40)]
    whole = grouped(1, pieces)
    # The second engine breaks before it comes to where the first one broke.
    outcome = await replayed(SCHEMA, (whole, 20), (whole, 10), (whole, 35), (whole, None), count=4)
    assert outcome.text == "".join(pieces)
    assert outcome.met == [outcome.met[0]] * 4
    assert marks_of(outcome.events) == [20, 35]
    assert outcome.continued == {"whole": 1}


async def test_a_request_on_which_engines_end_at_the_same_token_goes_to_no_third() -> None:
    outcome = await replayed(SCHEMA, (grouped(1), 9), (grouped(1), 9), (grouped(1), None), count=3)
    assert (outcome.refusal, len(outcome.met)) == ("poison", 2)


async def test_a_break_behind_the_finish_needs_no_other_engine() -> None:
    outcome = await replayed(SCHEMA, (grouped(1), len(PIECES)))
    assert outcome.text == WHOLE
    assert outcome.events[-1]["usage"]["completion_tokens"] == len(IDS)


async def test_reasoning_and_content_are_compared_apart_and_calls_follow_them() -> None:
    thought = [chunk({"reasoning": "I "}, [11]), chunk({"reasoning": "see"}, [12])]
    call = chunk({"tool_calls": [CALL | {"function": {"name": "f", "arguments": "{}"}}]}, [14])
    ends = [call, chunk({}, [15], "tool_calls")]
    first = [*thought, chunk({"content": "So:"}, [13]), *ends]
    merged = [chunk({"reasoning": "I see", "content": "So:"}, [11, 12, 13]), *ends]
    for cut in range(1, 5):
        outcome = await replayed({"tool_choice": "required", "tools": []}, (first, cut), (merged, None))
        deltas = [choice["delta"] for choice in outcome.choices]
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == "I see"
        assert outcome.text == "So:"
        assert sum(len(delta.get("tool_calls") or []) for delta in deltas) == 1


async def test_a_client_that_asks_for_token_ids_gets_each_once() -> None:
    for cut in range(1, 6):
        outcome = await replayed(SCHEMA | {"return_token_ids": True}, (grouped(2), cut), (grouped(3), None))
        assert (outcome.token_ids, outcome.text) == (IDS, WHOLE)


def with_logprobs(size: int) -> list[Event]:
    """The events of an answer with the log probability of each token."""
    events = grouped(size)
    for event in events:
        (choice,) = event["choices"]
        choice["logprobs"] = {"content": [{"logprob": -token} for token in choice["token_ids"]], "refusal": None}
    return events


@pytest.mark.parametrize("change", [{}, {"stop": ["x"]}], ids=["schema", "stop"])
async def test_log_probabilities_come_once_for_each_token(change: Event) -> None:
    for cut in range(1, 6):
        change = SCHEMA | change | {"logprobs": True}
        outcome = await replayed(change, (with_logprobs(2), cut), (with_logprobs(3), None))
        given = [choice["logprobs"]["content"] for choice in outcome.choices if choice["logprobs"]]
        assert [entry["logprob"] for entries in given for entry in entries] == [-token for token in IDS]
        assert outcome.text == WHOLE


@pytest.mark.parametrize("logprobs", [{"content": []}, {"content": {}}, {}, []], ids=str)
async def test_log_probabilities_that_are_not_by_token_end_the_stream(logprobs: Any) -> None:
    answers = (grouped(2), 2), (grouped(3, logprobs=logprobs), None)
    assert (await replayed(SCHEMA | {"logprobs": True}, *answers)).refusal == "logprobs"


async def test_an_engine_that_hides_its_tokens_replays_nothing() -> None:
    hidden = grouped(1)
    for event in hidden:
        event["choices"][0]["token_ids"] = None
    assert (await replayed(SCHEMA, (grouped(1), 3), (hidden, None))).refusal == "no-token-ids"


async def test_requests_beyond_the_memory_of_all_are_not_kept() -> None:
    script = replaying((grouped(1), 3), (grouped(1), None), met=[])
    async with gateway_of(script, script) as (running, *_):
        running.gateway.stages.relay.continuation.text_memory.max_bytes = 10
        answer = await request(running.url, CHAT | SCHEMA)
    assert "no engine could continue it (memory)" in answer.events[-1]


async def test_a_stream_with_a_deadline_is_replayed_too() -> None:
    more = "x-request-timeout: 60\r\n"
    assert (await replayed(SCHEMA, (grouped(1), 4), (grouped(3), None), more=more)).text == WHOLE
    assert (await replayed(SCHEMA, (grouped(1), 4), (other_text(2), None), more=more)).refusal == "replay-differs"


ODD: list[Any] = [7, 1.5, True, "x", {}, {"a": [1]}, [], [7], ["x"], [[]], None]


@pytest.mark.parametrize("change", [SCHEMA, {}], ids=["replay", "tokens"])
@pytest.mark.parametrize("field", ["token_ids", "delta", "logprobs", "finish_reason", "choices", "usage", "content"])
async def test_next_engine_that_sends_fields_of_other_types_breaks_no_more_than_its_stream(
    field: str, change: Event
) -> None:
    for value in ODD:
        first, second = grouped(1), grouped(1)
        for event in second[1:]:
            choice: Event = event["choices"][0]
            holder = event if field in ("choices", "usage") else choice["delta"] if field == "content" else choice
            event["other"] = {"token_ids": choice["token_ids"]}
            holder[field] = value
        last = (await replayed(change, (first, 4), (second, None), *[(grouped(1), 0)] * 8)).answer.events[-1]
        assert last == "[DONE]" or "error" in json.loads(last), value
        assert "internal" not in last, value


@pytest.mark.parametrize("value", ODD, ids=str)
async def test_last_event_of_any_type_is_no_defect(value: Any) -> None:
    for field in ("delta", "choices"):
        event = chunk({"content": "one "}, [21, 22])
        (event if field == "choices" else event["choices"][0])[field] = value
        event["other"] = {"token_ids": [21, 22]}
        outcome = await replayed({}, ([*grouped(1)[:2], event], 3), *[(grouped(1), 0)] * 8)
        assert "internal" not in outcome.answer.events[-1], value


async def test_a_stream_that_needs_a_replay_stays_where_it_drains() -> None:
    go_on = asyncio.Event()
    met: list[Event] = []
    script = chat_engine([grouped(1)[0], go_on, *grouped(1)[1:]], met=met)
    async with gateway_of(script, script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, CHAT | SCHEMA))
        stream = await relayed_stream(running)
        with_draining(running, stream.instance_id)
        assert not stream.move()
        go_on.set()
        assert text_of(shown(await answer)) == WHOLE
        assert len(met) == 1


async def test_a_completion_that_echoes_its_prompt_is_asked_for_no_tokens() -> None:
    met: list[Event] = []
    await answer_of([replaying((grouped(1), None), met=met)], met, TEXT | {"echo": True}, "/v1/completions")
    assert "return_token_ids" not in met[0]


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize(
    "change",
    [{"stop": ["never said"]}, {"presence_penalty": 0.5}, {"stop": ["never said"], "temperature": 0}],
    ids=["stop", "penalty", "greedy"],
)
async def test_streams_of_killed_engines_have_the_text_of_unbroken_ones(path: str, body: Event, change: Event) -> None:
    body = {**body, "ignore_eos": True, "max_tokens": 200, "seed": 5, **change}
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        whole = shown(await request(running.url, body, path=path))
        events = shown(await broken_after(9, running, engines, (path, body)))
        assert text_of(events) == text_of(whole)
        assert events[-1]["usage"] == whole[-1]["usage"]
        (mark,) = marks_of(events)
        assert 6 <= mark < 200
