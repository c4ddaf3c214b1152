"""Streams of messages and responses that go on at another engine from their text."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from fairlead_gateway.continuation.sent_blocks import MAX_HELD_SECONDS, SentBlocks
from fairlead_gateway.continuation.sent_tokens import LONG_TOOL_CALL, TokenMemory
from fairlead_gateway.upstream.sse import COMMENT
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, named_event
from fairlead_testing.gateway.broken_streams import (
    Event,
    Part,
    answer_over_gate,
    broken_after,
    marks_of,
    named_events,
    send_part,
)
from fairlead_testing.gateway.broken_streams import answer_of as outcome_of
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, request

pytestmark = pytest.mark.simulated

MESSAGE: Event = {
    "model": "tiny",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "tell me a story"}],
    "max_tokens": 120,
    "stream": True,
    "temperature": 0,
}
RESPONSE: Event = {"model": "tiny", "stream": True, "temperature": 0} | {
    "instructions": "Be brief.",
    "input": "tell me a story",
    "max_output_tokens": 120,
}
PATHS = {"messages": ("/v1/messages", MESSAGE), "responses": ("/v1/responses", RESPONSE)}


def text_of(events: list[Event]) -> str:
    """The text of a stream, from its deltas."""
    parts = []
    for event in events:
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta":
            parts.append(event["delta"]["text"])
        elif event["type"] == "response.output_text.delta":
            parts.append(event["delta"])
    return "".join(parts)


def usage_of(events: list[Event]) -> tuple[int, int]:
    last = next(event for event in reversed(events) if "usage" in event or "response" in event)
    usage = last["usage"] if "usage" in last else last["response"]["usage"]
    prompt = (
        usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
    )
    return prompt, usage["output_tokens"]


def check_message(events: list[Event]) -> list[Event]:
    """Checks the order of events; returns the blocks."""
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    blocks: list[Event] = []
    is_open = False
    for event in events[1:-2]:
        kind = event["type"]
        assert is_open is (kind != "content_block_start")
        assert event["index"] == len(blocks) - is_open
        if kind == "content_block_start":
            blocks.append(event["content_block"] | {"json": ""})
            is_open = True
        elif kind == "content_block_stop":
            is_open = False
        else:
            assert kind == "content_block_delta"
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[-1]["text"] += delta["text"]
            elif delta["type"] == "input_json_delta":
                blocks[-1]["json"] += delta["partial_json"]
    assert not is_open
    return blocks


def check_response(events: list[Event]) -> list[Event]:
    """Checks numbers, names and whole texts of events; returns the output items."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    items: list[Event] = []
    for event in events:
        kind = event["type"]
        if "output_index" in event and kind != "response.output_item.added":
            assert event["output_index"] == len(items) - 1
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append({"id": event["item"]["id"], "type": event["item"]["type"], "text": ""})
        elif kind.endswith(".delta"):
            assert event["item_id"] == items[-1]["id"]
            items[-1]["text"] += event["delta"]
        elif kind == "response.output_text.done":
            assert event["text"] == items[-1]["text"]
        elif kind == "response.content_part.done":
            assert event["part"]["text"] == items[-1]["text"]
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == items[-1]["id"]
    output = events[-1]["response"]["output"]
    assert [item["id"] for item in output] == [item["id"] for item in items]
    texts = [item["content"][0]["text"] for item in output if item["type"] == "message"]
    assert texts == [item["text"] for item in items if item["type"] == "message"]
    return items


@pytest.mark.sockets
@pytest.mark.parametrize("dialect", PATHS)
async def test_greedy_stream_is_the_same_when_its_engine_is_killed(dialect: str) -> None:
    path, body = PATHS[dialect]
    async with (
        engine_processes(2, "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        whole = named_events(await request(running.url, body, path=path))
        broken = named_events(await broken_after(12, running, engines, (path, body)))
        assert text_of(broken) == text_of(whole)
        assert usage_of(broken) == usage_of(whole)
        (check_message if dialect == "messages" else check_response)(broken)
        (mark,) = marks_of(broken)
        assert 6 <= mark < 120
        logged = running.gateway.decisions.latest(1)[0]
        assert [record.decision.rule for record in logged.records][-1] == "continue-1"
        assert (logged.status, logged.error, logged.output_tokens) == (200, None, usage_of(whole)[1])
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
        assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.sockets
@pytest.mark.parametrize("dialect", PATHS)
async def test_sampled_stream_with_thoughts_is_whole_when_its_engine_is_killed(dialect: str) -> None:
    path, body = PATHS[dialect]
    body = {name: value for name, value in body.items() if name != "temperature"}
    async with (
        engine_processes(2, "--reasoning-parser", "--reply-markup", "0.5", "--speed", "0.5") as engines,
        running_gateway(fleet_of([engine.url for engine in engines])) as running,
    ):
        broken = named_events(await broken_after(9, running, engines, (path, body)))
        parts = (check_message if dialect == "messages" else check_response)(broken)
        assert parts[0]["type"] in ("thinking", "reasoning")
        assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}


HIDDEN = "I hide this"


def tokens_of(text: str) -> list[int]:
    return [ord(character) for character in text]


def rendered(chat: Event) -> str:
    """The prompt of a chat, as the scripted engines render it; of some without thoughts."""
    texts = []
    for message in chat["messages"]:
        if message.get("reasoning") == HIDDEN:
            message["reasoning"] = ""
        thoughts = f"<think>{message['reasoning']}</think>" if message.get("reasoning") else ""
        texts.append(f"<{message['role']}>{thoughts}{message.get('content') or ''}")
    return "".join(texts) + ("<assistant>" if chat.get("add_generation_prompt", True) else "<end>")


def start(kind: str, index: int = 0, **more: object) -> bytes:
    return named_event("content_block_start", index=index, content_block={"type": kind, **more})


def delta(text: str, index: int = 0, kind: str = "text", name: str = "") -> bytes:
    return named_event("content_block_delta", index=index, delta={"type": f"{name or kind}_delta", kind: text})


def stop(index: int = 0) -> bytes:
    return named_event("content_block_stop", index=index)


def last_events(output: int, reason: str = "end_turn", counts: Mapping[str, int] | None = None) -> list[bytes]:
    stopped = {"stop_reason": reason, "stop_sequence": None}
    usage = {"input_tokens": 0, "output_tokens": output, **(counts or {})}
    return [named_event("message_delta", delta=stopped, usage=usage), named_event("message_stop")]


def call_of(name: str, index: int) -> list[bytes]:
    """The block of a call, but for its end."""
    block = start("tool_use", index, id=f"call-{name}", name=name, input={})
    return [block, delta('{"a": 1}', index, "partial_json", "input_json")]


def talker(*parts: Part, met: list[Event], reads_ids: bool = True) -> Script:
    """An engine of messages that sends one part for each call, and hangs up but after the last."""

    async def script(call: EngineCall) -> None:
        asked = call.json if call.body else {}
        if call.path == "/tokenize":
            text = asked["prompt"] if "prompt" in asked else rendered(asked)
            await call.respond({"tokens": tokens_of(text)})
            return
        if call.path == "/detokenize":
            await call.respond({"prompt": "".join(map(chr, asked["tokens"]))})
            return
        met.append(asked)
        given = asked.get("kv_transfer_params", {}).get("prompt_token_ids") if reads_ids else None
        count = len(given or tokens_of(rendered(asked)))
        message = {"id": f"msg-{len(met)}", "type": "message", "role": "assistant", "content": [], "model": "tiny"}
        await call.start_stream()
        await call.chunk(
            named_event(
                "message_start",
                message=message
                | {"usage": {"input_tokens": count - 4, "cache_read_input_tokens": 4, "output_tokens": 0}},
            )
        )
        await send_part(call, parts, len(met))

    return script


OPEN = [start("text", text="")]
ASKED: Event = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": True}
PROMPT = "<user>hi<assistant>"


async def answer_of(*parts: Part, met: list[Event], reads_ids: bool = True, **more: object) -> RawResponse:
    """The answer of engines that send these parts, one after the other."""
    script = talker(*parts, met=met, reads_ids=reads_ids)
    return (await outcome_of([script] * 2, met, {**ASKED, **more}, "/v1/messages")).answer


def error_of(answer: RawResponse) -> str:
    event = named_events(answer)[-1]
    assert event["type"] == "error"
    return str(event["error"]["message"])


@pytest.mark.sockets
async def test_message_goes_on_behind_its_text() -> None:
    met: list[Event] = []
    first = [*OPEN, delta("Once "), delta("upon ")]
    rest = [*OPEN, delta("a time."), stop(), *last_events(3)]
    answer = await answer_of(first, rest, met=met, temperature=1)
    events = named_events(answer)
    assert [block["text"] for block in check_message(events)] == ["Once upon a time."]
    assert events[0]["message"]["id"] == "msg-1"
    assert usage_of(events) == (len(PROMPT), len("Once upon ") + 3)
    assert met[1]["kv_transfer_params"] == {"prompt_token_ids": tokens_of(PROMPT + "Once upon ")}
    assert met[1]["max_tokens"] == 50 - len("Once upon ")


@pytest.mark.sockets
@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 28},
        {"input_tokens": 5, "cache_read_input_tokens": 23},
        {"input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 15},
    ],
)
async def test_cached_and_new_tokens_of_the_prompt_are_those_of_the_first_engine(counts: dict[str, int]) -> None:
    text = "Once upon "
    first, rest = [*OPEN, delta(text)], [*OPEN, delta("a."), stop()]
    script = talker(first, [*rest, *last_events(2, counts=counts)], met=[])
    outcome = await outcome_of([script] * 2, [], ASKED, "/v1/messages")
    events = named_events(outcome.answer)
    opened, last = events[0]["message"]["usage"], events[-2]["usage"]
    assert {**opened, "output_tokens": len(text) + 2} == {name: last[name] for name in opened}
    assert usage_of(events)[0] == len(PROMPT)
    (logged,) = outcome.running.gateway.decisions.latest(1)
    assert logged.prompt_tokens == len(PROMPT)


@pytest.mark.sockets
async def test_message_goes_on_within_and_behind_its_thoughts() -> None:
    met: list[Event] = []
    first = [start("thinking", thinking=""), *(delta(letter, kind="thinking") for letter in "Let me think")]
    then = [
        start("thinking", thinking=""),
        *(delta(letter, kind="thinking") for letter in " of that."),
        delta("sign", kind="signature"),
        stop(),
        start("text", 1, text=""),
        delta("It is", 1),
    ]
    rest = [*OPEN, delta(" one."), stop(), *last_events(5)]
    blocks = check_message(named_events(await answer_of(first, then, rest, met=met)))
    assert [block["type"] for block in blocks] == ["thinking", "text"]
    assert blocks[1]["text"] == "It is one."
    assert met[1]["kv_transfer_params"]["prompt_token_ids"] == tokens_of(PROMPT + "<think>Let me think")
    assert met[2]["kv_transfer_params"]["prompt_token_ids"] == tokens_of(
        PROMPT + "<think>Let me think of that.</think>It is"
    )


@pytest.mark.sockets
async def test_call_of_a_tool_is_held_until_the_message_ends() -> None:
    met: list[Event] = []
    first = [*OPEN, delta("I look. "), stop(), *call_of("f", 1)]
    answer = await answer_of(first, [*call_of("g", 0), stop(), *last_events(4, "tool_use")], met=met)
    blocks = check_message(named_events(answer))
    assert [block.get("name") for block in blocks] == [None, "g"]
    assert json.loads(blocks[1]["json"]) == {"a": 1}


@pytest.mark.sockets
async def test_message_without_text_is_asked_for_again() -> None:
    met: list[Event] = []
    rest = [*call_of("f", 0), stop(), *last_events(4, "tool_use")]
    choice = {"type": "tool", "name": "f"}
    answer = await answer_of(call_of("f", 0), rest, met=met, tool_choice=choice)
    (block,) = check_message(named_events(answer))
    assert json.loads(block["json"]) == {"a": 1}
    assert met[1] == met[0]


@pytest.mark.sockets
async def test_message_at_its_limit_is_ended() -> None:
    met: list[Event] = []
    answer = await answer_of([*OPEN, delta("Once ")], [], met=met, max_tokens=5)
    events = named_events(answer)
    assert [block["text"] for block in check_message(events)] == ["Once "]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert usage_of(events) == (len(PROMPT), 5)
    assert len(met) == 1


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("rest", "more", "shown_error"),
    [
        ([[*OPEN, delta("more"), stop(), *last_events(3)]], {}, ""),
        ([[*OPEN, delta("more"), stop(), *last_events(3)]], {"stop_sequences": ["x"]}, "EngineCore died"),
        ([[], []], {}, "EngineCore died"),
    ],
    ids=["another goes on", "it may not", "the next breaks at once"],
)
async def test_error_event_of_an_engine_is_kept_back_if_another_one_goes_on(
    rest: list[Part], more: Event, shown_error: str
) -> None:
    error = named_event("error", error={"type": "internal_error", "message": "EngineCore died"})
    gate = asyncio.Event()
    talks = talker([*OPEN, delta("Once "), gate, error], *rest, met=[])
    async with gateway_of(talks, talks) as (running, *_):
        answer = await answer_over_gate(running, {**ASKED, **more}, "/v1/messages", b"Once ", gate)
    assert answer.body.count(b"event: error") == answer.body.count(b"EngineCore died") == bool(shown_error)
    if shown_error:
        assert error_of(answer) == shown_error
    else:
        assert [block["text"] for block in check_message(named_events(answer))] == ["Once more"]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"stop_sequences": ["x"]}, "stop-strings"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "grammar"),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, "reasoning-budget"),
        ({"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "hi"}]}]}, "prompt-form"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "prompt-form"),
    ],
)
async def test_message_that_cannot_go_on_says_why(more: Event, reason: str) -> None:
    answer = await answer_of([*OPEN, delta("Once ")], [], met=[], **more)
    assert f"({reason})" in error_of(answer)


@pytest.mark.sockets
async def test_engine_that_does_not_read_token_ids_gives_no_answer() -> None:
    rest = [*OPEN, delta("Hello, how can I help?"), stop(), *last_events(3)]
    answer = await answer_of([*OPEN, delta("Once ")], rest, met=[], reads_ids=False)
    assert "(ids-not-read)" in error_of(answer)
    assert text_of(named_events(answer)) == "Once "


def test_blocks_count_what_they_keep_and_give_up_beyond_it() -> None:
    memory = TokenMemory(3_000)
    blocks = SentBlocks(memory, b"b" * 1_000, float)
    assert blocks.take([*OPEN, delta("w" * 900)]) == [*OPEN, delta("w" * 900)]
    blocks.take([delta("w" * 1_100)])
    assert memory.used_bytes == 3_000
    assert not blocks.problem
    blocks.release()
    assert memory.used_bytes == 0
    blocks = SentBlocks(memory, b"b" * 1_000, float)
    tool = [stop(), *call_of("f", 1)]
    assert blocks.take([*OPEN, delta("w"), *tool]) == [*OPEN, delta("w")]
    assert blocks.take([delta("w" * 9, 2)]) == [COMMENT]
    assert blocks.take([delta("w" * 9_000, 2)]) == [b"".join([*tool, delta("w" * 9, 2), delta("w" * 9_000, 2)])]
    assert (blocks.problem, memory.used_bytes) == ("memory", 0)
    blocks = SentBlocks(memory, b"b" * 1_000, float)
    assert blocks.take([*OPEN, delta("w" * 3_000)])[1:] == [delta("w" * 3_000)]
    assert (blocks.problem, memory.used_bytes) == ("memory", 0)


@pytest.mark.sockets
async def test_message_keeps_its_usage_and_is_counted_once_if_its_end_lacks() -> None:
    for part, more in (([delta("Once "), stop(), last_events(3)[0]], {}), ([delta("Once ")], {"max_tokens": 5})):
        script = talker([*OPEN, *part], [], met=[])
        outcome = await outcome_of([script] * 2, [], {**ASKED, **more}, "/v1/messages")
        check_message(named_events(outcome.answer))
        assert outcome.running.gateway.decisions.latest(1)[0].output_tokens == (5 if more else 3)
        assert outcome.continued == ({"whole": 1} if more else {})


@pytest.mark.sockets
async def test_message_goes_on_at_an_engine_with_other_line_breaks() -> None:
    rest = [*OPEN, delta("a "), delta("time."), stop(), *last_events(3)]
    whole = b"".join(rest).replace(b"\n", b"\r\n")
    events = named_events(await answer_of([*OPEN, delta("Once ")], [whole], met=[]))
    assert [block["text"] for block in check_message(events)] == ["Once a time."]


def test_events_without_a_type_are_not_held() -> None:
    blocks = SentBlocks(TokenMemory(1_000), b"b", float)
    event = b'event: content_block_delta\ndata: {"index":0,"delta":{"text":"a"}}\n\n'
    assert blocks.take([event]) == [event]
    assert blocks.problem == "not-text"


@pytest.mark.sockets
@pytest.mark.parametrize("number", [1, 2])
async def test_event_with_the_name_of_another_ends_no_stream(number: int) -> None:
    odd = b'event: content_block_delta\ndata: {"type":"error","error":{"type":"api_error","message":"no"}}\n\n'
    first, rest = [*OPEN, delta("Once ")], [*OPEN, delta("a "), delta("time."), stop()]
    rest = [*rest[:2], *[odd] * 3, *rest[2:], *last_events(3)]
    parts = [first, rest] if number == 2 else [[*first, *rest[1:]]]
    answer = await answer_of(*parts, met=[])
    assert text_of([event for event in named_events(answer) if event["type"] != "error"]) == "Once a time."
    assert answer.body.count(odd) == 3
    assert named_events(answer)[-1]["type"] == "message_stop"


@pytest.mark.sockets
async def test_message_does_not_go_on_if_the_template_leaves_its_thoughts_out() -> None:
    first = [start("thinking", thinking=""), delta(HIDDEN, kind="thinking"), stop(), start("text", 1, text="")]
    answer = await answer_of([*first, delta("It is", 1)], [], met=[])
    assert "(reasoning)" in error_of(answer)


@pytest.mark.sockets
@pytest.mark.parametrize("more", ["", "x-request-timeout: 60\r\n"])
@pytest.mark.parametrize("answers", [True, False])
async def test_message_that_breaks_engines_is_sent_to_few(more: str, answers: bool) -> None:
    met: list[Event] = []
    inner = talker(*[[*OPEN, delta("O")]] * 6, [], met=met)

    async def script(call: EngineCall) -> None:
        if met and not answers and call.path == "/v1/messages":
            met.append(call.json)
            raise HangUp
        await inner(call)

    answer = (await outcome_of([script] * 6, met, ASKED, "/v1/messages", more)).answer
    assert "(poison)" in error_of(answer)
    assert len(met) == (2 if answers else 3)  # an idle connection may be the reason, so it is sent again


def test_call_that_takes_long_is_sent_as_it_comes() -> None:
    seconds = [0.0]
    blocks = SentBlocks(TokenMemory(10_000), b"b", lambda: seconds[0])
    blocks.take([*OPEN, delta("w")])
    held = [stop(), *call_of("f", 1)]
    assert blocks.take(held) == [COMMENT]
    seconds[0] = MAX_HELD_SECONDS + 1
    assert blocks.take([delta("}", 1, "partial_json", "input_json")]) == [
        b"".join([*held, delta("}", 1, "partial_json", "input_json")])
    ]
    assert blocks.problem == LONG_TOOL_CALL
    assert blocks.take([stop(1)]) == [stop(1)]
