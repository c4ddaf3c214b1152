"""Reasoning and tool calls in the text of a reply, as vLLM's parsers find them.

The simulated model opens its reply with ``<think>``, and writes calls as Hermes models do. As in
vLLM, a call that is cut short is text in a whole reply, but a call in a stream.

Source: vllm/tool_parsers/hermes_tool_parser.py, vllm/reasoning/basic_parsers.py.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from fairlead_sim.engine.chat_template import CALL_END, CALL_START, THINK_END, THINK_START

_CALL_PATTERN = re.compile(f"{CALL_START}(.*?)(?:{CALL_END}|$)", re.DOTALL)
_NAME_PATTERN = re.compile(r'"name"\s*:\s*"([^"]+)"')
_ARGUMENTS_PATTERN = re.compile(r'"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True)
class ReplyMarkup:
    """The markup of a reply that is parsed. one_call: calls after the first are left out."""

    reasoning: bool = False
    calls: bool = False
    one_call: bool = False


NO_MARKUP = ReplyMarkup()


@dataclass(slots=True)
class ToolCall:
    """A tool call. arguments: JSON, perhaps incomplete in a stream."""

    name: str
    arguments: str


@dataclass(slots=True)
class ParsedReply:
    """The parts of a whole reply; None for a part that it lacks."""

    reasoning: str | None
    content: str | None
    calls: list[ToolCall]


class ReplyDelta(NamedTuple):
    """One more piece of a part.

    - kind: ``content``, ``reasoning`` or ``call``.
    - number: position of the call among all calls.
    - name: of a call that begins.
    """

    kind: str
    text: str
    number: int = 0
    name: str | None = None


def parse_reply(text: str, markup: ReplyMarkup) -> ParsedReply:
    """Returns the parts of a whole reply; calls that are not all JSON stay text."""
    reasoning: str | None = None
    content: str | None = text
    if markup.reasoning and text.startswith(THINK_START):
        reasoning, _, rest = text.removeprefix(THINK_START).partition(THINK_END)
        content = rest or None
    if not markup.calls or content is None or CALL_START not in content:
        return ParsedReply(reasoning, content, [])
    try:
        found = [json.loads(body) for body in _CALL_PATTERN.findall(content)]
        calls = [ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in found]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ParsedReply(reasoning, content, [])
    return ParsedReply(reasoning, content.partition(CALL_START)[0] or None, calls[: 1 if markup.one_call else None])


@dataclass(slots=True)
class StreamedReply:
    """The parser of a reply that grows; it remembers what was sent."""

    markup: ReplyMarkup
    calls: list[ToolCall] = field(default_factory=list)
    _sent: dict[str, int] = field(default_factory=lambda: {"reasoning": 0, "content": 0})

    def advance(self, text: str) -> list[ReplyDelta]:
        """Returns the new pieces of a reply whose text so far is ``text``."""
        deltas: list[ReplyDelta] = []
        if self.markup.reasoning and text.startswith(THINK_START[: len(text)]):
            if len(text) < len(THINK_START):
                return []
            reasoning, mark, text = text.removeprefix(THINK_START).partition(THINK_END)
            deltas += self._grow("reasoning", reasoning if mark else _without_partial(reasoning, THINK_END))
        if not self.markup.calls:
            return deltas + self._grow("content", text)
        content, start, rest = text.partition(CALL_START)
        deltas += self._grow("content", content if start else _without_partial(content, CALL_START))
        for index, body in enumerate(rest.split(CALL_START) if start else ()):
            if not self._begins(index, body, deltas):
                break
            self._grow_arguments(index, body, deltas)
        return deltas

    def _grow(self, kind: str, text: str) -> list[ReplyDelta]:
        sent, self._sent[kind] = self._sent[kind], max(len(text), self._sent[kind])
        return [ReplyDelta(kind, text[sent:])] if len(text) > sent else []

    def _begins(self, index: int, body: str, deltas: list[ReplyDelta]) -> bool:
        """Whether the name of a call is known. It is sent once."""
        if index == len(self.calls):
            match = _NAME_PATTERN.search(body)
            if match is None:
                return False
            self.calls.append(ToolCall(match[1], ""))
            deltas.append(ReplyDelta("call", "", index, match[1]))
        return True

    def _grow_arguments(self, index: int, body: str, deltas: list[ReplyDelta]) -> None:
        document, end, _ = body.partition(CALL_END)
        document = (document if end else _without_partial(document, CALL_END)).strip()
        match = _ARGUMENTS_PATTERN.search(document)
        if match is None:
            return
        arguments = document[match.end() :]
        if end or is_json(document):
            arguments = arguments.rstrip().removesuffix("}").rstrip()
        call = self.calls[index]
        if len(arguments) > len(call.arguments):
            deltas.append(ReplyDelta("call", arguments[len(call.arguments) :], index))
            call.arguments = arguments


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _without_partial(text: str, mark: str) -> str:
    overlap = next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
    return text[: len(text) - overlap]
