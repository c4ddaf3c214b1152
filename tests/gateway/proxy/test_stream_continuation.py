"""Streams that go on at another engine from their tokens, whatever their sampling."""

import asyncio
import json
import signal
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import InstanceState, StreamResume
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.proxy.stream_moves import StreamProgress, decide_move
from fairlead_gateway.upstream.sent_tokens import COMMENT, SentTokens, TokenMemory
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, scripted_engine
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RunningGateway,
    fleet_of,
    gateway_of,
    running_gateway,
    with_profile,
)
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me a story"}],
    "max_tokens": 60,
    "stream": True,
    "stream_options": {"include_usage": True},
}
TEXT: dict[str, Any] = {**CHAT, "prompt": "once upon a time"}
del TEXT["messages"]
PROMPT = [5, 6, 7]
CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f"}}


def chunk(delta: dict[str, Any], ids: list[int] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": ids}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"} | {
        "choices": [choice],
        **more,
    }


def opening(ids: list[int]) -> dict[str, Any]:
    event = chunk({"role": "assistant", "content": ""}, None, prompt_token_ids=ids)
    del event["choices"][0]["token_ids"]
    return event


def counts(prompt: int, output: int) -> dict[str, Any]:
    total = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    return chunk({}, None) | {"choices": [], "usage": total}


def prompt_of(body: dict[str, Any]) -> list[int]:
    """The token ids that an engine reads."""
    return list(body.get("kv_transfer_params", {}).get("prompt_token_ids", PROMPT))


TEXTS = {11: "I look. ", 21: "\u00e9", 22: "\ufffd", 23: " <"}


def engine_of(*parts: list[dict[str, Any]], met: list[dict[str, Any]]) -> Script:
    """An engine that sends one part for each call, and hangs up but after the last."""

    async def script(call: EngineCall) -> None:
        if call.path == "/detokenize":
            text = "".join(TEXTS.get(token, f"[{token}]") for token in call.json["tokens"])
            await call.respond({"prompt": text})
            return
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(prompt_of(call.json)))
        for event in parts[len(met) - 1]:
            await call.event(event)
        if len(met) < len(parts):
            raise HangUp
        await call.finish()

    return script


def shown(answer: RawResponse) -> list[dict[str, Any]]:
    assert answer.events[-1] == "[DONE]", answer.events[-1]
    return [json.loads(data) for data in answer.events[:-1]]


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


async def broken_after(
    events: int, running: RunningGateway, engines: list[Any], body: dict[str, Any], path: str
) -> RawResponse:
    """The answer to a request whose engine is killed after some events."""
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, path=path))
    head = await connection.reader.readuntil(b"\r\n\r\n")
    used = next(line for line in head.split(b"\r\n") if line.startswith(b"x-fairlead-instance"))
    got = b""
    for _ in range(events):
        got += await connection.reader.readuntil(b"\n\n\r\n")
    engines[int(used.split(b"e-")[1][:1])].send(signal.SIGKILL)
    raw = asyncio.StreamReader()
    raw.feed_data(head + got + await connection.reader.read())
    raw.feed_eof()
    answer = await RawConnection(raw, connection.writer).read_response()
    await connection.close()
    return answer


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_sampled_stream_goes_on_and_counts_all_tokens(path: str, body: dict[str, Any]) -> None:
    body = {**body, "temperature": 1, "ignore_eos": True, "max_tokens": 200}
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        answer = await broken_after(9, running, engines, body, path)
        events = shown(answer)
        assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
        assert events[-1]["usage"]["completion_tokens"] == 200
        assert len(text_of(events)) == 200 * 4
        (marked,) = [event for event in events if "fairlead_continued_at" in event]
        assert 6 <= marked["fairlead_continued_at"] < 200
        assert all('token_ids":[' not in data for data in answer.events)
        logged = running.gateway.decisions.latest(1)[0]
        assert (logged.status, logged.error, logged.output_tokens) == (200, None, 200)
        assert "of the answer; " in logged.latest.decision.reason
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
        assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.sockets
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_a_client_gets_the_bytes_of_an_engine_that_was_not_asked(path: str, body: dict[str, Any]) -> None:
    body = {**body, "temperature": 0}
    async with engine_processes(1) as engines, running_gateway(fleet_of([engines[0].url])) as running:
        more = "content-type: application/json\r\n"
        through = await request(running.url, body, path=path, more=more)
        direct = await request(engines[0].url, body, path=path, more=more)
        for ours, theirs in zip(shown(through), shown(direct), strict=True):
            assert ours | {"id": "", "created": 0} == theirs | {"id": "", "created": 0}


async def test_tokens_whose_text_was_not_sent_are_drawn_again() -> None:
    met: list[dict[str, Any]] = []
    first = [chunk({"content": "one "}, [11]), chunk({"content": ""}, [12]), chunk({}, [13])]
    rest = [chunk({"content": "two"}, [14], "stop"), counts(4, 1)]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT))
    assert text_of(events) == "one two"
    assert met[1]["kv_transfer_params"] == {"prompt_token_ids": [*PROMPT, 11]}
    assert (met[1]["max_tokens"], met[1]["return_token_ids"]) == (59, True)
    assert events[-1]["usage"] == {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}


async def test_reasoning_tokens_that_only_one_engine_counted_are_not_reported() -> None:
    met: list[dict[str, Any]] = []
    usage = counts(4, 1)
    usage["usage"]["completion_tokens_details"] = {"reasoning_tokens": 1}
    first, rest = [chunk({"reasoning": "one "}, [11])], [chunk({"reasoning": "two"}, [12], "stop"), usage]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT))
    assert events[-1]["usage"] == {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}


async def test_a_stream_goes_on_after_a_second_break() -> None:
    met: list[dict[str, Any]] = []
    ids = [list(range(10 * number, 10 * number + 8)) for number in range(1, 4)]
    parts = [[chunk({"content": f"{one} "}, [one]) for one in some] for some in ids]
    last = [chunk({"content": "end"}, [40], "stop"), counts(27, 1)]
    async with gateway_of(*[engine_of(*parts, last, met=met)] * 4) as (running, *_):
        events = shown(await request(running.url, CHAT))
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
        assert running.gateway.decisions.latest(1)[0].output_tokens == 25
    assert text_of(events) == "".join(f"{one} " for one in chain(*ids)) + "end"
    assert [prompt_of(body) for body in met] == [[*PROMPT, *chain(*ids[:count])] for count in range(4)]
    assert events[-1]["usage"]["completion_tokens"] == 25
    assert [event["fairlead_continued_at"] for event in events if "fairlead_continued_at" in event] == [8, 16, 24]


async def test_a_request_on_which_two_engines_end_at_once_goes_to_no_third() -> None:
    met: list[dict[str, Any]] = []
    parts = [[chunk({"content": f"{number} "}, [10 + number])] for number in range(3)]
    async with gateway_of(*[engine_of(*parts, [], met=met)] * 4) as (running, *_):
        answer = await request(running.url, CHAT)
    assert "no engine could continue it (poison)" in answer.events[-1]
    assert len(met) == 2


async def test_tool_calls_are_held_until_they_are_whole_and_drawn_again_after_a_break() -> None:
    met: list[dict[str, Any]] = []
    begun = [chunk({"content": "I look. "}, [11]), chunk({"tool_calls": [CALL]}, [12])]
    call = {"tool_calls": [CALL | {"function": {"name": "g", "arguments": "{}"}}]}
    rest = [chunk(call, [13]), chunk({}, [14], "tool_calls"), counts(4, 2)]
    async with gateway_of(script := engine_of(begun, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, {**CHAT, "tools": [{"type": "function", "function": {"name": "g"}}]}))
    calls = [made for event in events for choice in event["choices"] for made in choice["delta"].get("tool_calls", [])]
    assert [made["function"]["name"] for made in calls] == ["g"]
    assert prompt_of(met[1]) == [*PROMPT, 11]
    assert "tools" in met[1]


@pytest.mark.parametrize("change", [{}, {"stop": ["x"]}, {"tool_choice": "required"}], ids=["text", "stop", "tool"])
@pytest.mark.parametrize("wants_usage", [False, True])
async def test_a_break_after_the_last_token_needs_no_other_engine(wants_usage: bool, change: dict[str, Any]) -> None:
    met: list[dict[str, Any]] = []
    whole = [chunk({"content": "one "}, [11]), chunk({"content": "two"}, [12], "stop")]
    async with gateway_of(script := engine_of(whole, [], met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT | change | {"stream_options": {"include_usage": wants_usage}}))
        assert running.gateway.decisions.latest(1)[0].output_tokens == 2
    assert len(met) == 1
    assert text_of(events) == "one two"
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")] == [2] * wants_usage


async def test_a_break_at_the_limit_of_the_answer_ends_it_with_that_reason() -> None:
    met: list[dict[str, Any]] = []
    whole = [chunk({"content": "one "}, [11]), chunk({"content": "two"}, [12])]
    async with gateway_of(script := engine_of(whole, [], met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT | {"max_tokens": 2}))
    assert len(met) == 1
    assert [choice["finish_reason"] for event in events for choice in event["choices"]][-1] == "length"


async def test_an_engine_that_does_not_read_token_ids_continues_nothing() -> None:
    met: list[dict[str, Any]] = []

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(PROMPT))
        await call.event(chunk({"content": "one "}, [11]))
        if len(met) == 1:
            raise HangUp
        await call.finish()

    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT)
        assert text_of([json.loads(data) for data in answer.events[:2]]) == "one "
        assert "no engine could continue it" in answer.events[-1]
        assert sum("one " in data for data in answer.events) == 1


REFUSED = [
    ({"prompt_logprobs": 0}, "prompt-logprobs"),
    ({"echo": True}, "echo"),
    ({"stop": ["x"], "prompt_logprobs": 0}, "prompt-logprobs"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, "media"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[" ".join(change) for change, _ in REFUSED])
async def test_what_cannot_be_handed_over_ends_the_stream_with_its_reason(change: dict[str, Any], reason: str) -> None:
    met: list[dict[str, Any]] = []
    first, rest = [chunk({"content": "one "}, [11])], [chunk({"content": "two"}, [12], "stop")]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        answer = await request(running.url, CHAT | change)
        assert f"no engine could continue it ({reason})" in answer.events[-1]
        assert running.gateway.telemetry.models[MODEL_KEY].not_continued == {reason: 1}
        assert running.gateway.decisions.latest(1)[0].not_continued == reason


@pytest.mark.parametrize(("change", "reason"), REFUSED[:3], ids=[" ".join(change) for change, _ in REFUSED[:3]])
async def test_before_the_first_text_everything_goes_on(change: dict[str, Any], reason: str) -> None:
    met: list[dict[str, Any]] = []
    rest = [chunk({"content": "two"}, [12], "stop")]
    async with gateway_of(script := engine_of([], rest, met=met), script) as (running, *_):
        assert text_of(shown(await request(running.url, CHAT | change))) == "two", reason


async def test_a_client_that_asks_for_token_ids_gets_them_over_a_break() -> None:
    met: list[dict[str, Any]] = []
    first, rest = [chunk({"content": "one "}, [11])], [chunk({"content": "two"}, [12], "stop")]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT | {"return_token_ids": True}))
    assert events[0]["prompt_token_ids"] == PROMPT
    assert [ids for event in events for choice in event["choices"] for ids in choice.get("token_ids") or []] == [11, 12]


async def test_a_completion_has_the_ids_of_its_prompt_once() -> None:
    met: list[dict[str, Any]] = []

    def part(text: str, ids: list[int], prompt: list[int] | None, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "prompt_token_ids": prompt}
        return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny"} | {
            "choices": [choice | {"token_ids": ids}]
        }

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        if isinstance(call.json["prompt"], str):
            await call.event(part("one ", [11], PROMPT))
            raise HangUp
        await call.event(part("two", [12], call.json["prompt"], "stop"))
        await call.finish()

    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, TEXT | {"return_token_ids": True}, path="/v1/completions")
        choices = [choice for event in shown(answer) for choice in event["choices"]]
        assert [choice["prompt_token_ids"] for choice in choices] == [PROMPT, None]


LOG_PROBABILITIES = {"content": [{"token": "a", "logprob": -1.0}]}


@pytest.mark.parametrize("change", [{"logprobs": True}, {"return_token_ids": True}], ids=["logprobs", "ids"])
async def test_a_token_without_text_that_the_client_would_see_is_held(change: dict[str, Any]) -> None:
    met: list[dict[str, Any]] = []

    def part(text: str, token: int, finish: str | None = None) -> dict[str, Any]:
        event = chunk({"content": text}, [token], finish)
        event["choices"][0]["logprobs"] = LOG_PROBABILITIES
        return event

    first = [part("", 11), part("one ", 12), part("", 13)]
    rest = [part("", 14), part("two", 15), part("", 16, "stop"), counts(5, 3)]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT | change))
    choices = [choice for event in events for choice in event["choices"]]
    assert sum(choice["logprobs"] is not None for choice in choices) == 5
    assert prompt_of(met[1]) == [*PROMPT, 11, 12]
    if "return_token_ids" in change:
        assert [ids for choice in choices for ids in choice.get("token_ids") or []] == [11, 12, 14, 15, 16]


async def test_a_part_of_a_character_behind_the_text_of_its_event_is_drawn_again() -> None:
    met: list[dict[str, Any]] = []
    first = [chunk({"content": "one "}, [20]), chunk({"content": "\u00e9"}, [21, 22])]
    rest = [chunk({"content": "two"}, [24], "stop"), counts(5, 1)]
    async with gateway_of(script := engine_of(first, rest, met=met), script) as (running, *_):
        events = shown(await request(running.url, CHAT))
    assert text_of(events) == "one \u00e9two"
    assert prompt_of(met[1]) == [*PROMPT, 20, 21]
    assert (events[-1]["usage"]["completion_tokens"], met[1]["max_tokens"]) == (3, 58)


async def test_text_that_ends_within_a_token_is_not_continued() -> None:
    met: list[dict[str, Any]] = []
    tools = {"tools": [{"type": "function", "function": {"name": "g"}}]}
    script = engine_of([chunk({"content": " "}, [23])], [], met=met)
    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT | tools)
        assert "no engine could continue it (part-of-text)" in answer.events[-1]
    assert len(met) == 1


async def test_text_whose_tokens_the_engine_hides_is_not_sent_twice() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(opening(PROMPT))
        await call.event(chunk({"content": "one "}, None))
        raise HangUp

    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT | {"include_reasoning": False})
        assert "no engine could continue it (no-token-ids)" in answer.events[-1]
        assert sum("one " in data for data in answer.events) == 1


async def test_text_that_comes_in_one_piece_with_the_opening_counts() -> None:
    tokens = SentTokens(TokenMemory(1 << 20), strips=True)
    both = [opening(PROMPT), chunk({"content": "one "}, [11])]
    tokens.take(b"".join(b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in both))
    assert tokens.generated == 1


async def test_streams_beyond_the_memory_of_all_are_not_continued() -> None:
    memory = TokenMemory(4 * 5)
    first, second = SentTokens(memory, strips=True), SentTokens(memory, strips=True)
    for tokens in (first, second):
        tokens.take(b"data: %b\n\n" % json.dumps(opening(PROMPT), separators=(",", ":")).encode())
    assert (first.problem, second.problem) == ("", "memory")
    assert memory.used_bytes == 4 * len(PROMPT)
    first.release()
    first.release()
    assert memory.used_bytes == 0


async def test_events_of_a_held_call_leave_comments_and_too_many_end_the_holding() -> None:
    tokens = SentTokens(TokenMemory(2 << 20), strips=True)
    tokens.take(b"data: %b\n\n" % json.dumps(opening(PROMPT), separators=(",", ":")).encode())
    call = b"data: %b\n\n" % json.dumps(chunk({"tool_calls": [CALL]}, [9]), separators=(",", ":")).encode()
    assert tokens.take(call) == COMMENT
    passed = b"".join(tokens.take(call) for _ in range((1 << 20) // len(call) + 2))
    assert passed.count(b'"tool_calls"') >= (1 << 20) // len(call)
    assert tokens.problem == "long-tool-call"


async def test_held_events_count_as_memory_and_are_sent_when_it_is_full() -> None:
    def line(event: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()

    call = line(chunk({"tool_calls": [CALL]}, list(range(1_100))))
    shown = line(chunk({"tool_calls": [CALL]}, []))
    memory = TokenMemory(2 * (len(shown) + 2) + 4 * (2 * 1_100 + len(PROMPT)))  # ids become null
    tokens = SentTokens(memory, strips=True)
    tokens.take(line(opening(PROMPT)))
    assert [tokens.take(call), tokens.take(call)] == [COMMENT, COMMENT]
    assert memory.used_bytes == memory.max_bytes
    ended = tokens.take(line(chunk({}, list(range(300)), "tool_calls")))
    assert ended.count(b'"tool_calls":[') == 2, "they are sent before the ids are found to be too many"
    assert (tokens.problem, memory.used_bytes) == ("memory", 0)
    tokens = SentTokens(memory, strips=True)
    tokens.take(line(opening(PROMPT)))
    passed = b"".join(tokens.take(call) for _ in range(3))
    assert passed.count(b'"tool_calls"') == 3
    assert (tokens.problem, memory.used_bytes) == ("memory", 0)


async def test_garbage_in_place_of_token_ids_is_passed_on_and_ends_the_keeping() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(opening(PROMPT))
        await call.event(chunk({"content": "one "}, ["x", -1, 1 << 40]))  # type: ignore[list-item]
        await call.event(chunk({"content": "two"}, [12], "stop"))
        await call.finish()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        (answer,) = await send(running.url, post_request(CHAT))
        assert text_of(shown(answer)) == "one two"


def with_draining(running: RunningGateway, instance_id: str) -> None:
    """Marks an instance as draining in the fleet of the gateway."""
    fleet = running.gateway.stack.routers.fleet
    listed = tuple(
        replace(one, state=InstanceState.DRAINING) if one.id == instance_id else one
        for one in fleet.instances[MODEL_KEY]
    )
    running.gateway.update_fleet(replace(fleet, instances={MODEL_KEY: listed}))


async def test_streams_leave_an_instance_that_drains_and_go_on_elsewhere() -> None:
    met: list[dict[str, Any]] = []
    left = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(prompt_of(call.json)))
        if len(met) == 1:
            await call.event(chunk({"content": "one "}, [11]))
            await call.wait_closed()
            left.set()
            return
        await call.event(chunk({"content": "two"}, [12], "stop"))
        await call.event(counts(4, 1))
        await call.finish()

    async with gateway_of(script, script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, CHAT))
        await wait_until(lambda: bool(running.gateway.decisions.latest(1)) and bool(met))
        chosen = running.gateway.decisions.latest(1)[0].latest.decision.chosen
        assert chosen is not None
        await wait_until(lambda: any(isinstance(one, RelayedStream) for one in running.gateway._inflight.values()))
        with_draining(running, chosen)
        await left.wait()
        events = shown(await answer)
        assert text_of(events) == "one two"
        assert prompt_of(met[1]) == [*PROMPT, 11]
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
            budget = running.gateway.stack.relay._stream_resume._retry_budget
            while budget.take(stream.context.caller, running.gateway._now()):
                pass
            with_draining(running, stream.instance_id)
            await wait_until(lambda: len(met) == 3)
            assert met[1:] == [[*PROMPT, 11]] * 2
            if refusals == 1:
                planned = running.gateway.stack.admission.models[MODEL_KEY].policy.kv_capacity
                assert [sequence.earlier for sequence in planned._sequences.values()] == [1]
                go_on.set()
                assert text_of(shown(await answer)) == "one two"
            else:
                error = (await answer).events[-1]
                assert "stream_drain" not in error
                assert "no engine could continue it (no-instance)" in error


async def test_without_another_instance_a_stream_stays_where_it_drains() -> None:
    met: list[dict[str, Any]] = []
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(PROMPT))
        await call.event(chunk({"content": "one "}, [11]))
        await go_on.wait()
        await call.event(chunk({"content": "two"}, [12], "stop"))
        await call.finish()

    async with gateway_of(script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, CHAT))
        await wait_until(lambda: any(isinstance(one, RelayedStream) for one in running.gateway._inflight.values()))
        with_draining(running, "e-0/0/0")
        go_on.set()
        assert text_of(shown(await answer)) == "one two"
        assert len(met) == 1


async def test_a_model_may_forbid_it_and_its_tool_calls_are_sent_in_parts() -> None:
    met: list[dict[str, Any]] = []
    script = engine_of([chunk({"tool_calls": [CALL]}, None)], [], met=met)
    async with scripted_engine(script) as one, scripted_engine(script) as other:
        fleet = fleet_of([one.url, other.url])
        models = {key: replace(model, resume=StreamResume.NEVER) for key, model in fleet.models.items()}
        async with running_gateway(replace(fleet, models=models)) as running:
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
def test_a_stream_moves_if_its_rest_is_longer_than_the_move(change: dict[str, Any], moves: bool, words: str) -> None:
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
def test_events_of_text_are_taken_as_in_the_general_way(delta: dict[str, Any], ids: list[int]) -> None:
    def line(event: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()

    quick, general = (SentTokens(TokenMemory(1 << 20), strips=True) for _ in range(2))
    for tokens in (quick, general):
        tokens.take(line(opening(PROMPT)))
    for event in (line(chunk(delta, ids)), line(chunk({"content": "more"}, [20]))):
        assert quick.take(event) == general._take_event(event)
        assert (quick.ids, quick.shown, quick.last, quick.last_at) == (
            general.ids,
            general.shown,
            general.last,
            general.last_at,
        )


async def test_a_continued_stream_names_the_model_as_its_client_does() -> None:
    met: list[dict[str, Any]] = []
    first, rest = [chunk({"content": "one "}, [11])], [chunk({"content": "two"}, [12], "stop"), counts(4, 1)]
    async with scripted_engine(script := engine_of(first, rest, met=met)) as one, scripted_engine(script) as other:
        fleet = fleet_of([one.url, other.url])
        listed = tuple(replace(instance, served_name="tiny") for instance in fleet.instances[MODEL_KEY])
        models = {key: replace(model, served_names=("fine",)) for key, model in fleet.models.items()}
        async with running_gateway(replace(fleet, instances={MODEL_KEY: listed}, models=models)) as running:
            events = shown(await request(running.url, CHAT | {"model": "fine"}))
    assert len(met) == 2
    assert {event["model"] for event in events} == {"fine"}


async def test_names_of_fields_in_tools_and_false_fields_end_no_stream() -> None:
    met: list[dict[str, Any]] = []
    parameters = {"type": "object", "properties": {"file": {"type": "string"}, "echo": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "g", "parameters": parameters}}]
    content = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    body = CHAT | {"tools": tools, "echo": False, "messages": [{"role": "user", "content": content}]}
    first, rest = [chunk({"content": "one "}, [11])], [chunk({"content": "two"}, [12], "stop")]

    async def script(call: EngineCall) -> None:
        if call.path == "/detokenize":
            await call.respond({"prompt": "one "})
        else:
            await answer(call)

    answer = engine_of(first, rest, met=met)
    async with gateway_of(script, script) as (running, *_):
        assert text_of(shown(await request(running.url, body))) == "one two"


async def test_stream_longer_than_all_before_it_has_no_forecast() -> None:
    is_short = [True]

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(opening(prompt_of(call.json)))
        if is_short[0]:
            await call.event(chunk({"content": "one "}, [11], "stop"))
            await call.event(counts(3, 1))
            await call.finish()
            return
        for number in range(40):
            await call.event(chunk({"content": "more "}, [100 + number]))
        await call.wait_closed()

    async with (
        scripted_engine(script) as engine,
        running_gateway(with_profile(fleet_of([engine.url]), builtin_profile("h100-llama8b"))) as running,
        asyncio.TaskGroup() as tasks,
    ):
        relay = running.gateway.stack.relay
        await request(running.url, CHAT)
        is_short[0] = False
        answer = tasks.create_task(request(running.url, CHAT))
        await wait_until(lambda: any(isinstance(one, RelayedStream) for one in running.gateway._inflight.values()))
        (stream,) = running.gateway._inflight.values()
        assert isinstance(stream, RelayedStream)
        await wait_until(lambda: stream._stream is not None and stream._stream.generated == 40)
        forecast = relay._admission.models[MODEL_KEY].policy.kv_capacity.forecast
        assert forecast.expected_remaining(stream.context.caller, 3, 40, relay._now()) == 1.0
        assert relay._progress(stream._attempt, stream._engine_response, stream._stream).forecast_tokens is None
        answer.cancel()


async def test_the_price_of_a_second_move_is_that_of_the_present_engine() -> None:
    asked: list[StreamProgress] = []
    met: list[dict[str, Any]] = []
    events = [chunk({"content": "one "}, [11]), chunk({"content": "two "}, [12])]

    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(prompt_of(call.json)))
        for event in events:
            await call.event(event)
        await call.wait_closed()

    endless = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    async with gateway_of(script, script, script) as (running, *_), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(request(running.url, endless))
        relay = running.gateway.stack.relay
        for number in range(2):
            await wait_until(lambda: bool(running.gateway._inflight) and len(met) == number + 1)  # noqa: B023 - awaited at once
            await wait_until(lambda: any(isinstance(one, RelayedStream) for one in running.gateway._inflight.values()))
            (stream,) = running.gateway._inflight.values()
            assert isinstance(stream, RelayedStream)
            await wait_until(lambda: stream._stream is not None and stream._stream.generated == 2 * (number + 1))  # noqa: B023
            asked.append(relay._progress(stream._attempt, stream._engine_response, stream._stream))
            assert stream.move()
        answer.cancel()
    assert [(one.prompt_tokens, one.generated) for one in asked] == [(3, 2), (5, 2)]
    assert asked[1].first_seconds is not None
