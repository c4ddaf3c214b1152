"""Prompts of three dialects: the chat turns that vLLM's own handlers make, in one template."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead_sim.api.messages import message_turns
from fairlead_sim.api.responses import chat_tools, response_turns
from fairlead_sim.engine.chat_template import turn_texts
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.http.fields import RequestFields
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
HANDLERS = Path(__file__).parents[2] / "recordings" / "vllm" / "handlers"
RECORDED: list[dict[str, Any]] = json.loads((HANDLERS / "conversations.json").read_text())
HEADER = "x-anthropic-billing-header: cc_version=2.1; cch={};"
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
READ = {"name": "read", "description": "Reads a file.", "input_schema": SCHEMA}


def texts(path: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    fields = RequestFields(body)
    if path == "/v1/messages":
        return list(turn_texts(*message_turns(fields)))
    if path == "/v1/responses":
        return list(turn_texts(response_turns(fields), chat_tools(fields)))
    return list(turn_texts(body["messages"], body.get("tools", ())))


@pytest.mark.parametrize("row", RECORDED, ids=[row["name"] for row in RECORDED])
def test_a_request_becomes_the_turns_that_vllm_makes_of_it(row: dict[str, Any]) -> None:
    expected = list(turn_texts(row["messages"], row["tools"] or ()))
    assert texts(row["path"], row["body"]) == expected


def test_tools_end_the_system_turn_and_calls_look_as_they_are_generated() -> None:
    tool = {"type": "function", "function": {"parameters": {}, "name": "f"}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "reasoning": "Hm.", "content": "On it.", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]
    one_call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    listed = '{"type": "function", "function": {"name": "f", "description": null, "parameters": {}}}'
    assert list(turn_texts(turns, [tool])) == [
        ("system", f"Be brief.\n<tools>\n{listed}\n</tools>"),
        ("user", "x"),
        ("assistant", f"<think>Hm.</think>On it.{one_call}\n{one_call}"),
        ("tool", "ok"),
    ]


def test_a_prompt_without_a_system_turn_begins_with_the_tools() -> None:
    tokens = Tokenizer().encode_chat([{"role": "user", "content": "x"}], tools=[{"function": {"name": "f"}}])
    assert Tokenizer().decode(tokens).startswith("<|begin|><|system|>\n<tools>\n")


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (HEADER.format(1), ""),
        (HEADER.format(1) + "\nBe brief.", "Be brief."),
        ([{"type": "text", "text": HEADER.format(1)}, {"type": "text", "text": "Be brief."}], "Be brief."),
        ("Be brief.\n" + HEADER.format(1), "Be brief.\n" + HEADER.format(1)),
    ],
)
def test_a_system_turn_loses_the_billing_line_that_begins_it(content: object, kept: str) -> None:
    assert list(turn_texts([{"role": "system", "content": content}], ())) == [("system", kept)]


def test_a_user_turn_keeps_a_billing_line() -> None:
    text = HEADER.format(1) + "\nx"
    assert list(turn_texts([{"role": "user", "content": text}], ())) == [("user", text)]


async def cached_tokens(path: str, *bodies: dict[str, Any]) -> list[int]:
    async with running_engine() as served:
        found = []
        for body in bodies:
            answer = await send_request(
                served.url.removeprefix("http://"), post_request(path, {"model": "sim", **body})
            )
            usage = answer.json()["usage"]
            details = usage.get("input_tokens_details", usage.get("prompt_tokens_details", {}))
            found.append(usage.get("cache_read_input_tokens", details.get("cached_tokens")))
        return found


LONG = "one two three four five six seven eight nine ten eleven twelve"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            {"system": LONG, "tools": [READ], "messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
        ),
        (
            "/v1/responses",
            {"instructions": LONG, "tools": [{"type": "function", **READ}], "input": "x", "max_output_tokens": 2},
        ),
        (
            "/v1/chat/completions",
            {"tools": [{"type": "function", "function": READ}], "messages": [{"role": "user", "content": LONG}]},
        ),
    ],
)
async def test_the_order_of_json_fields_does_not_change_the_blocks(path: str, body: dict[str, Any]) -> None:
    def reversed_fields(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: reversed_fields(value[name]) if value[name] is not SCHEMA else SCHEMA for name in reversed(value)
            }
        return [reversed_fields(item) for item in value] if isinstance(value, list) else value

    cold, warm = await cached_tokens(path, {**body, "max_tokens": 2}, reversed_fields({**body, "max_tokens": 2}))
    assert (cold, warm > 16) == (0, True)


async def test_a_billing_line_that_changes_costs_no_cached_token() -> None:
    def body(number: int) -> dict[str, Any]:
        blocks = [{"type": "text", "text": HEADER.format(number)}, {"type": "text", "text": LONG * 4}]
        return {"system": blocks, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}

    cold, warm = await cached_tokens("/v1/messages", body(1), body(2))
    assert cold == 0
    assert warm > 64
