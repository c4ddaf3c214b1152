"""Requests of coding agents in three dialects, and the readers of their streams.

All dialects carry the same session: one system prompt, eight tools and turns that only grow. The
texts are drawn from a seed, answers included, so every arm sends the same words.

The order of fields is that of the clients. Claude Code sends ``messages`` before ``system`` and
``tools``; Codex sends ``instructions``, ``input``, ``tools``.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import Any, Final

Body = dict[str, Any]
"""The body of one request."""

SYSTEM_WORDS: Final = 1_500
TOOLS: Final = 8
TURN_WORDS: Final = 200
ANSWER_WORDS: Final = 40
"""The part of a turn's words that is the answer before it."""
MAX_TOKENS: Final = 8
SESSIONS_PER_USER: Final = 4


@dataclass(frozen=True, slots=True)
class AgentSession:
    """One session: what the user or a tool says in each turn, and the answers between them.

    name: as the client names the session.
    billing: five hexadecimal digits for each turn.
    """

    name: str
    user: str
    system: str
    asked: Sequence[str]
    answers: Sequence[str]
    billing: Sequence[str]


@dataclass(frozen=True, slots=True)
class Usage:
    """The token counts that a stream reports at its end."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WireForm:
    """A dialect: its path, the body of one turn, and how its stream is read.

    body: takes a session and the number of the turn.
    is_token: whether an event carries generated text.
    usage: of the event that has it, else None.
    """

    path: str
    body: Callable[[AgentSession, int], Body]
    is_token: Callable[[Body], bool]
    usage: Callable[[Body], Usage | None]


def draw_sessions(count: int, turns: int, seed: int) -> list[AgentSession]:
    """Returns sessions with one system prompt. Equal arguments give equal words."""
    draw = Random(f"agents {seed}")
    system = words(draw, SYSTEM_WORDS)
    return [
        AgentSession(
            name=f"{draw.getrandbits(128):032x}",
            user=f"user_{number // SESSIONS_PER_USER}",
            system=system,
            asked=[words(draw, TURN_WORDS - ANSWER_WORDS) for _ in range(turns)],
            answers=[words(draw, ANSWER_WORDS) for _ in range(turns)],
            billing=[f"{draw.getrandbits(20):05x}" for _ in range(turns)],
        )
        for number in range(count)
    ]


def words(draw: Random, count: int) -> str:
    """Returns so many words of five letters, which simulated engines read as two tokens each."""
    return " ".join("".join(draw.choices(ascii_lowercase, k=5)) for _ in range(count))


def read_events(data: Iterable[str]) -> Iterable[Body]:
    """Yields the JSON objects of the lines of a stream of server-sent events."""
    for line in data:
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def _turns(session: AgentSession, turn: int) -> list[tuple[str, str]]:
    """Returns role and text of all messages up to a turn."""
    found = []
    for number in range(turn):
        found += [("user", session.asked[number]), ("assistant", session.answers[number])]
    return [*found, ("user", session.asked[turn])]


def _parameters(number: int) -> Body:
    properties = {f"argument_{part}": {"type": "string", "description": f"part {part}"} for part in range(number + 2)}
    return {"type": "object", "properties": properties, "required": list(properties)[:1]}


_TOOLS: Final = tuple(
    (f"tool_{number}", f"Does the work of tool {number} in the folder of the project. " * 4, _parameters(number))
    for number in range(TOOLS)
)
"""Names, descriptions and schemas."""


def chat_body(session: AgentSession, turn: int) -> Body:
    """Returns the body of a turn as a chat completion."""
    tools = [
        {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
        for name, description, schema in _TOOLS
    ]
    messages = [{"role": role, "content": text} for role, text in (("system", session.system), *_turns(session, turn))]
    return {
        "model": "tiny",
        "messages": messages,
        "tools": tools,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def messages_body(session: AgentSession, turn: int) -> Body:
    """Returns the body of a turn in Anthropic's dialect, its fields in Claude Code's order."""
    tools = [{"name": name, "description": description, "input_schema": schema} for name, description, schema in _TOOLS]
    messages = [{"role": role, "content": [_text(text)]} for role, text in _turns(session, turn)]
    return {
        "model": "tiny",
        "messages": messages,
        "system": [_text(session.system)],
        "tools": tools,
        "metadata": {"user_id": session.user},
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }


def billed_messages_body(session: AgentSession, turn: int) -> Body:
    """Returns the same with a billing line before the system prompt, which differs in each
    request.
    """
    line = f"x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch={session.billing[turn]};"
    body = messages_body(session, turn)
    return body | {"system": [_text(line), *body["system"]]}


def cached_messages_body(session: AgentSession, turn: int) -> Body:
    """Returns the same with a cache breakpoint in the last message, which moves with each turn."""
    body = messages_body(session, turn)
    body["messages"][-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
    return body


def responses_body(session: AgentSession, turn: int) -> Body:
    """Returns the body of a turn in the dialect of Responses, its fields in Codex' order."""
    tools = [
        {"type": "function", "name": name, "description": description, "parameters": schema}
        for name, description, schema in _TOOLS
    ]
    kinds = {"user": "input_text", "assistant": "output_text"}
    items = [
        {"type": "message", "role": role, "content": [{"type": kinds[role], "text": text}]}
        for role, text in _turns(session, turn)
    ]
    return {
        "model": "tiny",
        "instructions": session.system,
        "input": items,
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "stream": True,
        "max_output_tokens": MAX_TOKENS,
    }


def keyed_responses_body(session: AgentSession, turn: int) -> Body:
    return responses_body(session, turn) | {"prompt_cache_key": session.name}


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _has_chat_token(event: Body) -> bool:
    return any(choice["delta"].get("content") for choice in event.get("choices", ()))


def _chat_usage(event: Body) -> Usage | None:
    usage = event.get("usage")
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage["prompt_tokens"], cached, usage["completion_tokens"])


def _is_type(name: str) -> Callable[[Body], bool]:
    return lambda event: bool(event.get("type") == name)


def _message_usage(event: Body) -> Usage | None:
    if event.get("type") != "message_delta":
        return None
    usage: Mapping[str, int] = event["usage"]
    cached = usage["cache_read_input_tokens"]
    prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached
    return Usage(prompt, cached, usage["output_tokens"])


def _response_usage(event: Body) -> Usage | None:
    if event.get("type") not in ("response.completed", "response.incomplete"):
        return None
    usage: Any = event["response"]["usage"]
    return Usage(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])


def _chat(body: Callable[[AgentSession, int], Body]) -> WireForm:
    return WireForm("/v1/chat/completions", body, _has_chat_token, _chat_usage)


def _messages(body: Callable[[AgentSession, int], Body]) -> WireForm:
    return WireForm("/v1/messages", body, _is_type("content_block_delta"), _message_usage)


def _responses(body: Callable[[AgentSession, int], Body]) -> WireForm:
    return WireForm("/v1/responses", body, _is_type("response.output_text.delta"), _response_usage)


CHAT: Final = _chat(chat_body)
MESSAGES: Final = _messages(messages_body)
BILLED_MESSAGES: Final = _messages(billed_messages_body)
CACHED_MESSAGES: Final = _messages(cached_messages_body)
RESPONSES: Final = _responses(responses_body)
KEYED_RESPONSES: Final = _responses(keyed_responses_body)
