"""Streams of responses that go on at another engine: numbers, items and usage of broken ones."""

import asyncio
import json
from collections.abc import Sequence

import openai
import pytest

from fairlead_gateway.continuation.sent_blocks import SentBlocks
from fairlead_gateway.continuation.sent_tokens import TokenMemory
from fairlead_gateway.dialects.chat_forms import chat_form
from fairlead_testing.engines.scripted import EngineCall, Script, named_event
from fairlead_testing.gateway.broken_streams import Event, Part, answer_over_gate, named_events, send_part
from fairlead_testing.gateway.broken_streams import answer_of as outcome_of
from fairlead_testing.gateway.running_gateway import gateway_of
from fairlead_testing.http.raw_client import RawResponse, request

pytestmark = pytest.mark.simulated

ASKED: Event = {"model": "tiny", "input": "hi", "max_output_tokens": 50, "stream": True}
PROMPT = "<user>hi"
TEXT, THOUGHTS = ("message", "output_text"), ("reasoning", "reasoning_text")
CALL: Event = {"type": "function_call", "id": "call", "call_id": "c", "name": "f", "arguments": ""}


def talker(*parts: Part, met: list[Event]) -> Script:
    """An engine of responses that sends one part for each call, and hangs up but after the last."""

    async def script(call: EngineCall) -> None:
        asked = call.json if call.body else {}
        if call.path == "/version":
            await call.respond({"version": "0.32.0"})
        elif call.path == "/tokenize":
            thoughts = "".join(message.get("reasoning") or "" for message in asked.get("messages", ()))
            texts = "".join(message.get("content") or "" for message in asked.get("messages", ()))
            rest = f"<think>{thoughts}{'</think>' * bool(texts[2:])}{texts[2:]}" if thoughts else ""
            await call.respond({"tokens": [ord(letter) for letter in asked.get("prompt", PROMPT + rest)]})
        elif call.path == "/detokenize":
            await call.respond({"prompt": "".join(map(chr, asked["tokens"]))})
        elif not asked["stream"]:
            await call.respond({"output": [], "usage": {"input_tokens": len(PROMPT), "output_tokens": 1}})
        else:
            met.append(asked)
            begun = {"id": f"resp_{len(met)}", "model": "tiny", "output": []}
            await call.start_stream()
            await call.chunk(numbered("created", 0, response=begun))
            await send_part(call, parts, len(met))

    return script


def numbered(kind: str, number: int, **fields: object) -> bytes:
    return named_event(f"response.{kind}", sequence_number=number, **fields)


def opened(number: int, names: tuple[str, str] = TEXT, part: str = "content_part") -> list[bytes]:
    item = {"type": names[0], "id": f"item-{number}", "status": "in_progress", "content": []}
    added = numbered("output_item.added", number, item=item, output_index=0)
    within = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    return [added, numbered(f"{part}.added", number + 1, **within, part={"type": names[1], "text": ""})]


def delta(number: int, text: str, names: tuple[str, str] = TEXT) -> bytes:
    return numbered(f"{names[1]}.delta", number, item_id="item-1", output_index=0, content_index=0, delta=text)


def item_of(text: str, names: tuple[str, str] = TEXT) -> Event:
    return {"type": names[0], "id": "item-1", "content": [{"type": names[1], "text": text, "logprobs": [{}]}]}


def done(number: int, item: Event) -> bytes:
    return numbered("output_item.done", number, item=item, output_index=0)


def completed(number: int, *output: Event, **details: int) -> bytes:
    usage = {"input_tokens": 30, "output_tokens": 3, "total_tokens": 33, "output_tokens_details": details}
    usage["input_tokens_details"] = {"cached_tokens": 6, "cache_write_tokens": 24}
    return numbered("completed", number, response={"id": "other", "output": list(output), "usage": usage})


async def answer_of(*parts: Part, more: str = "") -> list[Event]:
    """The events of an answer; their numbers have no gap, and nothing is kept of it."""
    outcome = await outcome_of([talker(*parts, met=[])] * 2, [], ASKED, "/v1/responses", more)
    events = named_events(outcome.answer)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


FIRST: Part = [*opened(1), delta(3, "Once ")]


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ([completed(1)], "Once "),
        ([completed(1, item_of(""))], "Once "),
        (
            [*opened(1), delta(3, "more"), done(4, item_of("more")), completed(5, item_of("more", THOUGHTS))],
            "Once more",
        ),
    ],
)
async def test_items_of_a_whole_response_are_those_of_its_events(rest: Part, text: str) -> None:
    last = (await answer_of(FIRST, rest))[-1]
    assert [(item["id"], item["type"]) for item in last["response"]["output"]] == [("item-1", "message")]
    (content,) = [item["content"][0] for item in last["response"]["output"]]
    assert (content["text"], content["logprobs"] or []) == (text, [])


@pytest.mark.sockets
async def test_usage_has_the_thoughts_of_both_engines_and_no_more_cached_than_the_prompt() -> None:
    first = [*opened(1, THOUGHTS), *(delta(3 + at, "m", THOUGHTS) for at in range(4))]
    rest = [*opened(1, THOUGHTS), delta(3, "!", THOUGHTS), done(4, item_of("!", THOUGHTS))]
    last = (await answer_of(first, [*rest, completed(5, reasoning_tokens=2)]))[-1]
    usage = last["response"]["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 4 + 2}
    assert usage["input_tokens"] == len(PROMPT)
    assert usage["input_tokens_details"] == {"cached_tokens": 6, "cache_write_tokens": len(PROMPT) - 6}


@pytest.mark.sockets
@pytest.mark.parametrize("more", ["", "x-request-timeout: 60\r\n"])
async def test_error_behind_a_second_break_has_the_next_number(more: str) -> None:
    events = await answer_of(FIRST, [*opened(1), delta(3, "upon "), delta(4, "a ")], [], more=more)
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]


@pytest.mark.sockets
@pytest.mark.parametrize("parts", [(FIRST, []), ([*FIRST, numbered("output_item.added", 4, item=CALL)], FIRST, [])])
async def test_helper_of_the_sdk_raises_what_has_broken_the_stream(parts: Sequence[Part]) -> None:
    script, seen = talker(*parts, met=[]), list[str]()

    async def read(url: str) -> None:
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
        async with client, client.responses.stream(model="tiny", input="hi") as stream:
            async for event in stream:
                seen.append(event.type)

    async with gateway_of(script, script) as (running, *_):
        with pytest.raises(openai.APIError, match="incomplete"):
            await read(running.url)
    assert seen[-1] == "response.failed"


async def events_until_deadline(gate: asyncio.Event, *parts: Part) -> list[Event]:
    """The events of an answer that waits for the gate when its time is over."""
    script = talker(*parts, met=[])
    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, ASKED, path="/v1/responses", more="x-request-timeout: 3\r\n")
        gate.set()
    return named_events(RawResponse(200, {}, [answer.body.replace(b":\n\n", b"")]))


@pytest.mark.sockets
async def test_error_at_the_deadline_has_the_next_number() -> None:
    gate, other = asyncio.Event(), asyncio.Event()  # each opens behind its own answer
    call = numbered("output_item.added", 4, item=CALL)
    held = events_until_deadline(gate, [*FIRST, call, gate])
    continued = events_until_deadline(other, FIRST, [*opened(1), delta(3, "upon "), other], [])
    for events in await asyncio.gather(held, continued):
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["code"] == "deadline_exceeded"


@pytest.mark.sockets
async def test_numbers_go_on_if_a_continued_stream_outgrows_its_memory() -> None:
    gate = asyncio.Event()
    second = [*opened(1), delta(3, "upon "), delta(4, "a " * 2_000), gate, delta(5, "time")]
    script = talker(FIRST, second, [], met=[])
    async with gateway_of(script, script) as (running, *_):
        memory = running.gateway.stages.relay.continuation.token_memory
        memory.max_bytes = 3_000
        events = named_events(await answer_over_gate(running, ASKED, "/v1/responses", b"a a ", gate))
        assert memory.used_bytes == 0
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "(memory)" in events[-1]["message"]


def test_thoughts_of_older_engines_are_not_held() -> None:
    blocks = SentBlocks(TokenMemory(10_000), b"b", float)
    events = [*opened(1, THOUGHTS, "reasoning_part"), delta(3, "Hm", THOUGHTS)]
    assert blocks.take(events) == events


def test_error_event_of_an_engine_gets_the_number_behind_what_the_client_has() -> None:
    blocks = SentBlocks(TokenMemory(10_000), b"b", float)
    blocks.take([*FIRST, numbered("output_item.added", 4, item=CALL), numbered("failed", 5)])  # type: ignore[list-item]
    assert b'"sequence_number": 4' in blocks.failure


def test_chat_of_a_response_has_the_fields_of_tools_that_templates_show() -> None:
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": False}
    chat = json.loads(chat_form("responses", json.dumps({"input": "hi", "tools": [tool]}).encode()) or b"")
    assert chat["tools"][0]["function"] == {"name": "f", "description": None, "parameters": {}, "strict": False}


def test_answer_without_parts_in_the_history_has_no_known_chat() -> None:
    empty = {"type": "message", "role": "assistant", "content": []}
    assert chat_form("responses", json.dumps({"input": [empty]}).encode()) is None
