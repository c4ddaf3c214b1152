"""The chat that an engine renders for messages and responses, for its `/tokenize`.

`/tokenize` knows chats alone, and vLLM makes a chat of the two other dialects before it renders
them. This does the same. A mistake does no harm. The index links tokens only to blocks that the
engine has reported. A stream is continued only if its engine has counted as many tokens.

Pictures, stored responses and whatever is not known here get no query.

Source: `to_chat_completion_request` in vllm/entrypoints/anthropic/serving.py, and
`construct_input_messages` in vllm/entrypoints/openai/responses/utils.py, vLLM 0.32.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

_BILLING: Final = "x-anthropic-billing-header"
_NO_THINKING: Final = "disabled"
Chat = dict[str, Any]


class _Unsupported(Exception):
    """Raised for a part that has no known rendering."""


def chat_form(kind: str, body: bytes) -> bytes | None:
    """Returns the chat of a body, as JSON; None if its rendering is not known.

    kind: a dialect, as `CHAT_FORMS` names it.
    """
    try:
        fields = msgspec.json.decode(body)
        chat = CHAT_FORMS[kind](fields)
    except (
        _Unsupported,
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        return None
    salt = fields.get("cache_salt")
    return msgspec.json.encode(chat if salt is None else {**chat, "cache_salt": salt})


def _messages_chat(fields: Mapping[str, Any]) -> Chat:
    thinking, config = fields.get("thinking") or {}, fields.get("output_config") or {}
    if thinking.get("type") == _NO_THINKING or config.get("effort") is not None:
        raise _Unsupported
    turns: list[Chat] = []
    system = fields.get("system")
    if system:
        parts = [system] if isinstance(system, str) else [_text(block) for block in system]
        kept = parts if isinstance(system, str) else [part for part in parts if not part.startswith(_BILLING)]
        if kept:
            turns.append({"role": "system", "content": "".join(kept)})
    for message in fields["messages"]:
        if message["role"] == "system":  # where it goes depends on the template
            raise _Unsupported
        _add_turn(message, turns)
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool.get("description"),
                "parameters": tool["input_schema"],
            },
        }
        for tool in fields.get("tools") or ()
    ]
    return {"messages": turns, **({"tools": tools} if tools else {})}


def _add_turn(message: Mapping[str, Any], turns: list[Chat]) -> None:
    """Adds the turns of one message; the results of tools come before its text."""
    import json  # here, since few workers ever need it

    content, turn = message["content"], {"role": message["role"]}
    if isinstance(content, str):
        turns.append(turn | {"content": content})
        return
    texts: list[Chat] = []
    calls: list[Chat] = []
    thoughts: list[str] = []
    for block in content:
        kind = block["type"]
        if kind == "text":
            if block["text"]:
                texts.append({"type": "text", "text": block["text"]})
        elif kind == "thinking":
            thoughts.append(block["thinking"])
        elif kind == "tool_use":
            function = {"name": block["name"], "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block["id"], "type": "function", "function": function})
        elif kind == "tool_result" and message["role"] == "user":
            turns.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": _result(block)})
        elif kind != "redacted_thinking":
            raise _Unsupported
    if thoughts:
        turn["reasoning"] = "".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    if texts:
        turn["content"] = texts[0]["text"] if len(texts) == 1 else texts
    if message["role"] != "user" or "content" in turn:
        turns.append(turn)


def _result(block: Mapping[str, Any]) -> str:
    content = block.get("content") or ""
    return content if isinstance(content, str) else "\n".join(_text(item) for item in content)


def _text(block: Mapping[str, Any]) -> str:
    if block["type"] not in ("text", "input_text", "output_text"):
        raise _Unsupported
    text: str = block["text"]
    return text


def _responses_chat(fields: Mapping[str, Any]) -> Chat:
    if fields.get("previous_response_id") or (fields.get("reasoning") or {}).get("effort") is not None:
        raise _Unsupported
    turns: list[Chat] = []
    if fields.get("instructions"):
        turns.append({"role": "system", "content": fields["instructions"]})
    given = fields["input"]
    if isinstance(given, str):
        turns.append({"role": "user", "content": given})
    else:
        for item in given:
            _add_item(item, turns)
    tools = []
    for tool in fields.get("tools") or ():
        if tool["type"] != "function":
            raise _Unsupported
        function = {name: tool.get(name) for name in ("name", "description", "parameters")}
        function |= {name: tool[name] for name in ("strict", "defer_loading") if tool.get(name) is not None}
        tools.append({"type": "function", "function": function})
    return {"messages": turns, **({"tools": tools} if tools else {})}


def _add_item(item: Mapping[str, Any], turns: list[Chat]) -> None:
    """Adds one item; parts of one answer become one turn."""
    kind = item.get("type", "message")
    last = turns[-1] if turns and turns[-1]["role"] == "assistant" else None
    if kind == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        if last is None:
            turns.append({"role": "assistant", "tool_calls": [call]})
        else:
            last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        if not isinstance(item["output"], str):
            raise _Unsupported
        turns.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
    elif kind == "reasoning":
        content = item.get("content") or item.get("summary")
        if item.get("encrypted_content") or not content:
            raise _Unsupported
        _join(turns, last, "reasoning", content[0]["text"])
    elif kind == "message" and item["role"] == "assistant":
        content = item["content"]
        _join(turns, last, "content", content if isinstance(content, str) else _text(content[0]))
    elif kind == "message":
        content = item["content"]
        parts = content if isinstance(content, str) else [{"type": "text", "text": _text(part)} for part in content]
        turns.append({"role": item["role"], "content": parts})
    else:
        raise _Unsupported


def _join(turns: list[Chat], last: Chat | None, name: str, text: str) -> None:
    """Adds a part of an answer to the turn before it, unless that has such a part."""
    if last is None or last.get(name) is not None:
        turns.append({"role": "assistant", name: text})
    else:
        last[name] = text


CHAT_FORMS: Final[dict[str, Callable[[Mapping[str, Any]], Chat]]] = {
    "messages": _messages_chat,
    "responses": _responses_chat,
}
"""By dialect."""
