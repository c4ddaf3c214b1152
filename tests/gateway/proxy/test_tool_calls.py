"""Tool calls in streams of chats have an index, whatever their engine leaves out."""

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from fairlead_gateway.dialects.chat import CHAT
from fairlead_gateway.proxy.tool_calls import MAX_NUMBERED_BYTES, MAX_NUMBERED_CALLS, ToolCallIndexer
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script
from fairlead_testing.gateway.broken_streams import CHAT as CHAT_BODY
from fairlead_testing.gateway.broken_streams import chunk, counts, opening, shown
from fairlead_testing.gateway.running_gateway import MODEL_KEY, gateway_of
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

ABSENT = object()
TOOLS = {"tools": [{"type": "function", "function": {"name": name}} for name in ("read", "list")]}
Calls = dict[tuple[int, int], tuple[str, str]]
"""Name and arguments by choice and index."""


def drawn_calls(draw: random.Random, choices: int) -> Calls:
    return {
        (choice, index): (draw.choice(["read", "list", 'a"\u00e9']), json.dumps({"p": "x" * draw.randint(0, 40)}))
        for choice in range(choices)
        for index in range(draw.randint(1, 4))
    }


def call_part(draw: random.Random, form: dict[str, Any], id_: str, name: str, text: str, is_first: bool) -> Any:
    """One part of a call in one of the forms of engines that leave its index out."""
    part: dict[str, Any] = {"index": None} if form["index"] is None else {}
    names = {"name": name} if is_first or form["repeats"] else {"name": form["name"]}
    if is_first or form["repeats"]:
        part |= {"id": id_, "type": "function"} if form["has_ids"] or not is_first else {}
    elif form["id"] != "fresh":
        part |= {"id": form["id"], "type": ""}
    else:
        part["id"] = f"fresh-{draw.random()}"
    part["function"] = names | {"arguments": text}
    if part.get("id") is ABSENT:
        del part["id"]
    if names["name"] is ABSENT:
        del part["function"]["name"]
    return part


def streamed(draw: random.Random, calls: Calls, choices: int) -> list[dict[str, Any]]:
    """Returns chunks with the calls, in a random form of those that leave the index out."""
    form: dict[str, Any] = {
        "index": draw.choice([ABSENT, None]),
        "has_ids": draw.random() < 0.8,
        "id": draw.choice([ABSENT, None, "", "fresh"]),
        "name": draw.choice([ABSENT, None, ""]),
        "whole": draw.random() < 0.3,
    }
    form["repeats"] = form["has_ids"] and draw.random() < 0.3
    queues: list[list[tuple[int, Any]]] = []
    for choice in range(choices):
        parts: list[tuple[int, Any]] = []
        for (owner, index), (name, arguments) in calls.items():
            if owner == choice:
                size = len(arguments) if form["whole"] else draw.randint(1, 9)
                texts = ["", *[arguments[at : at + size] for at in range(0, len(arguments), size)]]
                texts = [arguments] if form["whole"] else texts
                for number, text in enumerate(texts):
                    parts.append((choice, call_part(draw, form, f"c{choice}-{index}", name, text, number == 0)))
        queues.append(parts)
    chunks = [opened({"role": "assistant", "content": None}, choice) for choice in range(choices)]
    while any(queues):
        queue = draw.choice([queue for queue in queues if queue])
        count = draw.choice([1, 1, 2, 5])
        chunks.append(opened({"tool_calls": [part for _, part in queue[:count]]}, queue[0][0]))
        del queue[:count]
    return [*chunks, *[opened({}, choice, "tool_calls") for choice in range(choices)]]


def opened(delta: dict[str, Any], choice: int, finish: str | None = None) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": choice, "delta": delta, "finish_reason": finish}]}


def joined(events: list[dict[str, Any]]) -> Calls:
    """Joins parts as OpenAI's SDK does: by the index alone, a name to a name, and the last type."""
    found: dict[tuple[int, int], list[str]] = {}
    for choice in [choice for event in events for choice in event["choices"]]:
        for part in choice["delta"].get("tool_calls") or ():
            assert type(part["index"]) is int
            call = found.setdefault((choice["index"], part["index"]), ["", ""])
            assert part.get("type", "function") == "function"
            call[0] += part["function"].get("name") or ""
            call[1] += part["function"].get("arguments") or ""
    return {key: (name, arguments) for key, (name, arguments) in found.items()}


def line(event: object, draw: random.Random | None = None) -> bytes:
    separators = (",", ":") if draw is None or draw.random() < 0.5 else (", ", ": ")
    return b"data: " + json.dumps(event, separators=separators).encode() + b"\n\n"


def objects(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(part[6:]) for part in b"".join(events).split(b"\n\n") if part.startswith(b"data: {")]


@pytest.mark.parametrize("seed", range(400))
def test_calls_are_joined_by_index_whatever_their_form(seed: int) -> None:
    draw = random.Random(seed)
    choices = draw.choice([1, 1, 2, 3])
    calls = drawn_calls(draw, choices)
    sent = [line(event, draw) for event in streamed(draw, calls, choices)]
    reads = []
    while sent:  # several events may come at once, as one text or as several
        count = draw.choice([1, 1, 2, 4])
        reads.append([b"".join(sent[:count])] if draw.random() < 0.3 else sent[:count])
        del sent[:count]
    indexer = ToolCallIndexer(None)
    passed = [event for read in reads for event in indexer.rewrite_events(read)]
    assert joined(objects(passed)) == calls
    assert [event for read in reads for event in read if b"tool_calls" not in event] == [
        event for event in passed if b"tool_calls" not in event
    ]


@pytest.mark.parametrize("seed", range(20))
def test_an_engine_that_sends_indexes_is_read_once(seed: int) -> None:
    draw = random.Random(seed)
    indexer = ToolCallIndexer(None)
    parts = [{"index": draw.choice([0, 1, 7]), "id": "", "function": {"arguments": "x"}} for _ in range(5)]
    sent = [line(opened({"tool_calls": [part]}, 0), draw) for part in parts]
    assert [event for one in sent for event in indexer.rewrite_events([one])] == sent
    later = [line(opened({"tool_calls": [{"function": {"arguments": "x"}}]}, 0))]
    assert indexer.rewrite_events(later) is later


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"\\"tool_calls\\":["}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":null}}]}\r\n\r\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[]}}]}\r\n\r\n',
        b'data: {"choices":{"tool_calls":[{}]}}\n\n',
        b'data: {"choices":[{"index":[],"delta":{"tool_calls":["x",null,7]}},5,{"delta":7}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{}]}}]\n\n',
        b'event: x\ndata: {"choices":[{"delta":{"tool_calls":[{}]}}]}\n\n',
        b": comment\n\n",
        b"data: [DONE]\n\n",
        line(opened({"tool_calls": [{"function": {"arguments": "x" * MAX_NUMBERED_BYTES}}]}, 0)),
    ],
)
def test_other_events_pass_as_they_are(event: bytes) -> None:
    indexer = ToolCallIndexer(None)
    assert b"".join(indexer.rewrite_events([event])).replace(b"\r\n", b"\n") == event.replace(b"\r\n", b"\n")


def test_odd_calls_fail_nothing() -> None:
    draw = random.Random(5)
    odd: list[Any] = [None, 7, "x", [], {}, [{}], {"name": []}, {"name": {"a": 1}}, True, 1.5]
    indexer = ToolCallIndexer(None)
    for _ in range(100):
        call = {"id": draw.choice(odd), "function": draw.choice(odd)}
        choice = {"index": draw.choice(odd), "delta": {"tool_calls": [call]}}
        (event,) = indexer.rewrite_events([line({"choices": [choice]})])
        assert type(objects([event])[0]["choices"][0]["delta"]["tool_calls"][0]["index"]) is int


def test_calls_that_are_remembered_are_bounded() -> None:
    indexer = ToolCallIndexer(None)
    for number in range(3 * MAX_NUMBERED_CALLS):
        call = {"id": f"{number}" + "i" * 10_000, "function": {"name": "n" * 10_000}}
        indexer.rewrite_events([line(opened({"tool_calls": [call]}, number % 3))])
    kept = [text for place in indexer._places for text in place]
    assert len(kept) <= 6 * (MAX_NUMBERED_CALLS + 1)
    assert max(map(len, kept)) <= 256


def engine_of(events: list[dict[str, Any]], met: list[Any]) -> Script:
    async def script(call: EngineCall) -> None:
        met.append(call.json)
        await call.start_stream()
        for event in events:
            await call.event(event)
        await call.finish()

    return script


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "openai"])
async def test_clients_get_an_index_from_every_engine(engine: str, seed: int) -> None:
    draw = random.Random(seed)
    calls, met = drawn_calls(draw, 1), list[Any]()
    script = engine_of(streamed(draw, calls, 1), met)
    async with gateway_of(script) as (running, _):
        fleet = running.gateway.stages.routers.fleet
        instances = tuple(
            replace(one, engine=engine, served_name=draw.choice([None, "x"])) for one in fleet.instances[MODEL_KEY]
        )
        running.gateway.update_fleet(replace(fleet, version=2, instances={MODEL_KEY: instances}))
        answer = await request(running.url, CHAT_BODY | TOOLS)
        assert joined(shown(answer)) == calls
        plain = await request(running.url, CHAT_BODY)
        parts = [part for event in shown(plain) for part in event["choices"][0]["delta"].get("tool_calls") or ()]
        assert parts
        assert all(part.get("index") is None for part in parts), "without tools nothing is read"


@pytest.mark.parametrize("change", [{}, {"tool_choice": "required"}], ids=["tokens", "replay"])
@pytest.mark.parametrize("seed", range(6))
async def test_calls_have_an_index_behind_a_break(change: dict[str, Any], seed: int) -> None:
    draw = random.Random(seed)
    calls, met = drawn_calls(draw, 1), list[Any]()
    parts = [event["choices"][0]["delta"] for event in streamed(draw, calls, 1)[1:-1]]
    events = [chunk({"content": "I look. "}, [11])]
    events += [chunk(delta, [12 + number]) for number, delta in enumerate(parts)]
    events += [chunk({}, [90], "tool_calls"), counts(3, 2 + len(parts))]
    cut = draw.randint(1, len(parts))

    async def script(call: EngineCall) -> None:
        if call.path == "/detokenize":
            await call.respond({"prompt": "I look. "})
            return
        met.append(call.json)
        await call.start_stream()
        ids = call.json.get("kv_transfer_params", {}).get("prompt_token_ids", [5, 6, 7])
        await call.event(opening(ids))
        rest = events[1:] if len(ids) > 3 else events
        for event in rest if len(met) > 1 else rest[:cut]:
            await call.event(event)
            await asyncio.sleep(0.01)  # simulated
        if len(met) == 1:
            raise HangUp
        await call.finish()

    async with gateway_of(script, script) as (running, *_):
        answer = await request(running.url, CHAT_BODY | TOOLS | change)
    assert len(met) == 2
    assert joined(shown(answer)) == calls


def test_only_chats_name_tools_that_clients_run() -> None:
    assert CHAT.prompt is not None
    assert "tools" in CHAT.prompt.context
