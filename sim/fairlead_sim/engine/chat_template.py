"""The fixed chat template: the text of each turn, in the order system, tools, turns.

The tools stand at the end of the system turn. A turn of the assistant has its reasoning, text and
tool calls as the simulated engine generates them. So the next turn of a conversation finds the
blocks of the answer. The fields of a tool have a fixed order, as in vLLM; those of its schema and
of arguments keep the client's.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

THINK_START, THINK_END = "<think>", "</think>"
CALL_START, CALL_END = "<tool_call>", "</tool_call>"
BILLING_HEADER = "x-anthropic-billing-header"


def turn_texts(messages: Iterable[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields role and text of each turn.

    tools: definitions as a chat request has them.
    """
    declared = "\n".join(["<tools>", *map(_tool_text, tools), "</tools>"]) if tools else ""
    for message in messages:
        role, text = str(message.get("role", "user")), _turn_text(message)
        if declared and role == "system":
            text = f"{text}\n{declared}"
        elif declared:
            yield "system", declared
        declared = ""
        yield role, text
    if declared:
        yield "system", declared


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{CALL_START}\n{_json_text({'name': name, 'arguments': arguments})}\n{CALL_END}"


def _tool_text(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    definition = {name: function.get(name) for name in ("name", "description", "parameters")}
    definition |= {name: function[name] for name in ("strict", "defer_loading") if function.get(name) is not None}
    return _json_text({"type": "function", "function": definition})


def _turn_text(message: Mapping[str, Any]) -> str:
    role, content = message.get("role"), message.get("content")
    parts = content if isinstance(content, list) else [content]
    text = "".join(map(_without_billing_line if role == "system" else _part_text, parts))
    if role != "assistant":
        return text
    if isinstance(message.get("reasoning"), str):
        text = f"{THINK_START}{message['reasoning']}{THINK_END}{text}"
    calls = message.get("tool_calls")
    return text + "\n".join(map(_history_call_text, calls)) if isinstance(calls, list) else text


def _history_call_text(call: Mapping[str, Any]) -> str:
    """Returns a call of the history; arguments that are no JSON object become an empty one."""
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    return tool_call_text(call["function"]["name"], arguments if isinstance(arguments, dict) else {})


def _part_text(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _without_billing_line(part: object) -> str:
    """Returns the text of a part of a system turn, without the line that Claude Code changes with
    every request.
    """
    text = _part_text(part)
    return text.partition("\n")[2] if text.startswith(BILLING_HEADER) else text


def _json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)
