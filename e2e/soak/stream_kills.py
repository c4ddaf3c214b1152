"""Engines that die under sampled streams of all kinds, and what their clients see.

Six kinds in equal parts: chats, chats with tools, with a JSON schema and with reasoning, messages,
and responses. Nothing is greedy, and nothing has a seed. The engines reason and call tools by
themselves.

A client counts each stream by its kind: whole at once, whole although its engine died, or ended by
an error event with its reason. A stream is whole if its parts are valid and its usage is exact.
Arguments must fit their tool, JSON its schema, and the tokens of what came must be those that the
usage says. The vocabulary of simulated engines gives a text one number of tokens.

The gap at a break is the time without an event before the first one of the other engine.

In a second run the model forbids to continue streams. Then each one that breaks must end with the
error event of its dialect, and all before it must be valid.
"""

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]
import msgspec

from e2e.soak.gateway_processes import REPORT, TIMEOUT_SECONDS, chat_body, scaled_count, scaled_number, write
from e2e.soak.scenarios import KILLS, RequestLoad, load_and_kill
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.gateway.gateway_process import GatewayProcess
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.reports import ReportLine

KINDS: Final = ("chat", "tools", "schema", "reasoning", "messages", "responses")
STREAMS_PER_SECOND: Final = 12.0
MINUTES: Final = ("FAIRLEAD_SOAK_MINUTES", 0.2, 30.0)
ENGINE: Final = ("--reasoning-parser", "--reply-markup", "0.5", "--speed", "0.4")
"""Slow enough that each engine has several streams at once, for little processor time."""
PLAIN_TOKENS: Final = 120
MAX_TOKENS: Final = 1_500
MIN_CONTINUED: Final = 0.98
"""Share of the streams whose engine died that must go on and end valid."""
_REASON: Final = re.compile(r"no engine could continue it \(([\w-]+)\)")
_PATHS: Final = {"messages": "/v1/messages", "responses": "/v1/responses"}
_ANTHROPIC_TYPES: Final = {"api_error", "overloaded_error"}
_TEXT: Final = {"type": "string", "minLength": 40}
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": dict.fromkeys(("summary", "cause", "advice"), _TEXT) | {"count": {"type": "integer"}},
    "required": ["summary", "cause", "advice", "count"],
    "additionalProperties": False,
}
PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "note": {"type": "string"},
        "days": {"type": "integer", "minimum": 1},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "note", "days", "unit"],
}
_ARGUMENTS: Final = jsonschema.Draft202012Validator(PARAMETERS)
_REPORTS: Final = jsonschema.Draft202012Validator(SCHEMA)
TOOL: Final = {"name": "forecast", "parameters": PARAMETERS}

_SHARES: Final = (("p50", 0.5), ("p99", 0.99))


def body_of(number: int) -> tuple[str, dict[str, Any]]:
    """Returns the kind of a request, and its body."""
    kind = KINDS[number % len(KINDS)]
    body = chat_body(number // len(KINDS), stream=True, tokens=MAX_TOKENS, greedy=False)
    del body["ignore_eos"], body["temperature"]
    if kind == "messages":
        return kind, body | {"tools": [{"name": TOOL["name"], "input_schema": PARAMETERS}]}
    if kind == "responses":
        body["input"], body["max_output_tokens"] = body.pop("messages"), body.pop("max_tokens")
        return kind, body | {"tools": [{"type": "function", **TOOL}]}
    body["stream_options"] = {"include_usage": True}
    body["chat_template_kwargs"] = {"enable_thinking": kind == "reasoning"}
    if kind == "chat":
        body["max_tokens"] = PLAIN_TOKENS
    elif kind == "tools":
        body["tools"] = [{"type": "function", "function": TOOL}]
    elif kind == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
    return kind, body


@dataclass(slots=True)
class StreamParts:
    """The parts of one stream that its client has.

    - calls: name and arguments of each.
    - finish: why it ended, in the word of its dialect; None while it has not.
    - tokens: the output tokens that its usage says.
    - error: text of the error event.
    - fault: what is wrong with the form of an event.
    """

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    tokens: int | None = None
    error: str = ""
    fault: str = ""
    is_ended: bool = False
    events: int = 0

    def add(self, event: dict[str, Any], name: str = "") -> None:
        """Adds an event of any dialect, and its name if it has one."""
        if name and name != event["type"]:
            self.fault = "an event whose type is not its name"
        if event.get("sequence_number", self.events) != self.events:
            self.fault = "numbers that do not follow each other"
        self.events += 1
        if "error" in event and event.get("type") in (None, "error"):
            self.error = str(event["error"]["message"])
            if not _has_form_of_dialect(event):
                self.fault = "an error event of another dialect"
        elif "choices" in event:
            self._add_chunk(event)
        elif event["type"].startswith("response."):
            self._add_response_event(event)
        else:
            self._add_message_event(event)

    def _add_chunk(self, event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            delta = choice["delta"]
            self.reasoning += delta.get("reasoning") or ""
            self.content += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(self.calls):
                    self.calls.append(["", ""])
                self.calls[-1][0] += call["function"].get("name") or ""
                self.calls[-1][1] += call["function"].get("arguments") or ""
            self.finish = choice["finish_reason"] or self.finish
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]

    def _add_message_event(self, event: dict[str, Any]) -> None:
        name, delta = event["type"], event.get("delta") or {}
        if name == "content_block_start" and event["content_block"]["type"] == "tool_use":
            self.calls.append([event["content_block"]["name"], ""])
        elif name == "content_block_delta":
            self.reasoning += delta.get("thinking", "")
            self.content += delta.get("text", "")
            if "partial_json" in delta:
                self.calls[-1][1] += delta["partial_json"]
        elif name == "message_delta":
            self.finish, self.tokens = delta["stop_reason"], event["usage"]["output_tokens"]
        self.is_ended |= name == "message_stop"

    def _add_response_event(self, event: dict[str, Any]) -> None:
        name = event["type"]
        if name == "response.output_item.added" and event["item"]["type"] == "function_call":
            self.calls.append([event["item"]["name"], ""])
        elif name == "response.reasoning_text.delta":
            self.reasoning += event["delta"]
        elif name == "response.output_text.delta":
            self.content += event["delta"]
        elif name == "response.function_call_arguments.delta":
            self.calls[-1][1] += event["delta"]
        elif name in ("response.completed", "response.incomplete"):
            self.finish, self.is_ended = name, True
            self.tokens = event["response"]["usage"]["output_tokens"]

    def problem(self, kind: str, tokenizer: Tokenizer) -> str:
        """Returns what is wrong with a whole stream of a kind; empty if nothing is."""
        if self.fault:
            return self.fault
        if self.finish is None:
            return "no finish reason"
        if kind != "chat" and self.finish in ("length", "max_tokens", "response.incomplete"):
            return "reached its limit"
        try:
            for name, arguments in self.calls:
                if name != TOOL["name"]:
                    return "a call of no tool"
                _ARGUMENTS.validate(json.loads(arguments))
            if kind == "schema":
                _REPORTS.validate(json.loads(self.content))
        except ValueError:
            return "no JSON"
        except jsonschema.ValidationError:
            return "does not fit"
        if kind in ("reasoning", "messages", "responses") and not self.reasoning:
            return "no reasoning"
        expected = PLAIN_TOKENS if kind == "chat" else len(tokenizer.encode(self._generated())) + 1
        if kind == "chat" and len(tokenizer.encode(self.content)) != PLAIN_TOKENS:
            return "tokens are missing"
        return "" if self.tokens == expected else "wrong usage"

    def _generated(self) -> str:
        """Returns the text that the model has generated, with its marks."""
        thought = f"<think>{self.reasoning}</think>" if self.reasoning else ""
        calls = [
            f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
            for name, arguments in self.calls
        ]
        return thought + self.content + "\n".join(calls)


def _has_form_of_dialect(event: dict[str, Any]) -> bool:
    """Whether an error event has the fields of its dialect, with words for people."""
    error = event["error"]
    if "type" not in event:
        return bool(error["message"])
    if "sequence_number" not in event:
        return error["type"] in _ANTHROPIC_TYPES and bool(error["message"])
    return {"code", "param"} <= set(event) and event["message"] == error["message"]


@dataclass(slots=True)
class KindCounts:
    """The counts of all streams of a kind. Times are in seconds."""

    streams: int = 0
    broke: int = 0
    continued_whole: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    cut_silently: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, object]:
        """Returns the counts for the record."""
        return {
            "streams": self.streams,
            "broke": self.broke,
            "continued_whole": self.continued_whole,
            "ended_by_error_event": dict(sorted(self.ended.items())),
            "cut_silently": self.cut_silently,
            "invalid": dict(sorted(self.invalid.items())),
            "lost": dict(sorted(self.lost.items())),
            "tool_calls": self.calls,
            "first_event_seconds": _percentiles(self.first),
            "gap_at_break_seconds": _percentiles(self.gaps),
        }


def _percentiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {name: round(ranked[int(share * (len(ranked) - 1))], 4) for name, share in _SHARES if ranked}


class StreamClient:
    """The clients of all streams, and their counts by kind."""

    def __init__(self) -> None:
        self.counts = {kind: KindCounts() for kind in KINDS}
        self._tokenizer = Tokenizer()

    async def send(self, url: str, number: int) -> tuple[str, str, str]:
        """Sends a request; returns the verdict with its kind, no text, and the instance."""
        kind, body = body_of(number)
        counts = self.counts[kind]
        counts.streams += 1
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                connection = await RawConnection.connect(url)
                try:
                    await connection.send(post_request(body, path=_PATHS.get(kind, "/v1/chat/completions")))
                    return await self._read(kind, connection, counts)
                finally:
                    connection.writer.transport.abort()
        except TimeoutError:
            verdict = "hangs"
        except (OSError, asyncio.IncompleteReadError) as error:
            verdict = f"no answer: {type(error).__name__}"
        counts.lost[verdict] += 1
        return f"{kind}: {verdict}", "", ""

    async def _read(self, kind: str, connection: RawConnection, counts: KindCounts) -> tuple[str, str, str]:
        sent_at = time.monotonic()
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(head.split(" ", 2)[1])
        instance = next((line[21:] for line in head.split("\r\n") if line.startswith("x-fairlead-instance: ")), "")
        if status != 200:
            counts.lost[f"status {status}"] += 1
            return f"{kind}: status {status}", "", instance
        parts, last_at, is_whole, has_moved = StreamParts(), sent_at, False, False
        text, has_data = b"", False
        while (chunk := await _read_chunk(connection)) is not None:
            if not chunk:
                is_whole = True
                break
            now, text = time.monotonic(), text + chunk
            *events, text = text.split(b"\n\n")
            for event in events:
                data = event[event.find(b"data: ") + 6 :] if b"data: " in event else b""
                if not data:
                    continue
                has_data = True
                if last_at == sent_at:
                    counts.first.append(now - sent_at)
                if data == b"[DONE]":
                    parts.is_ended = True
                    continue
                decoded = msgspec.json.decode(data)
                name = event[7 : event.find(b"\n")].decode() if event.startswith(b"event: ") else ""
                if "fairlead_continued_at" in decoded:
                    has_moved = True
                    counts.gaps.append(now - last_at)
                parts.add(decoded, name)
            last_at, has_data = now if has_data else last_at, False
        return f"{kind}: {self._count(kind, parts, is_whole=is_whole, has_moved=has_moved)}", "", instance

    def _count(self, kind: str, parts: StreamParts, *, is_whole: bool, has_moved: bool) -> str:
        counts = self.counts[kind]
        counts.broke += bool(has_moved or parts.error)
        if parts.error and not parts.fault:
            found = _REASON.search(parts.error)
            reason = found[1] if found else "none given"
            counts.ended[reason] += 1
            return f"ended with an error event ({reason})"
        if not parts.fault and not (is_whole and parts.is_ended):
            counts.broke += not has_moved
            counts.cut_silently += 1
            return "cut silently"
        problem = parts.problem(kind, self._tokenizer)
        if problem:
            counts.invalid[f"{problem}, {'continued' if has_moved else 'unbroken'}"] += 1
            return f"invalid: {problem}"
        counts.calls += len(parts.calls)
        counts.continued_whole += has_moved
        return "complete"


async def _read_chunk(connection: RawConnection) -> bytes | None:
    """Returns the next chunk of a body; empty at its end, None if the connection breaks."""
    try:
        size = int((await connection.reader.readuntil(b"\r\n"))[:-2], 16)
        return (await connection.reader.readexactly(size + 2))[:-2]
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _continuations(running: GatewayProcess) -> dict[str, dict[str, int]]:
    """Returns the gateway's own counts of continued streams, and of others by their reason."""
    text = (await running.get("/metrics")).body.decode()
    counts: dict[str, dict[str, int]] = {}
    for name in ("continued", "not_continued"):
        found = re.findall(
            rf'^fairlead_gateway_{name}_total{{[^\n]*(?:result|reason)="([\w-]+)"[^\n]*}} (\S+)$', text, re.M
        )
        counts[name] = Counter[str]()
        for label, value in found:
            if float(value):
                counts[name][label] += int(float(value))
    return {name: dict(sorted(found.items())) for name, found in counts.items()}


async def run_stream_kills(folder: Path, *, resumes: bool = True) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, kills, minutes = time.monotonic(), scaled_count(*KILLS), scaled_number(*MINUTES)
    client = StreamClient()
    known = {f"{kind}: complete" for kind in KINDS}
    load, continued = await load_and_kill(
        folder,
        lambda url: RequestLoad(url, client.send, STREAMS_PER_SECOND, known),
        _continuations,
        minutes * 60 / kills,
        arguments=ENGINE,
        resumes=resumes,
    )
    counts = client.counts
    went_on = sum(row.continued_whole for row in counts.values())
    is_enough = went_on >= MIN_CONTINUED * sum(row.broke for row in counts.values())
    ended = {kind: dict(row.ended) for kind, row in counts.items() if row.ended}
    cuts = {kind: row.cut_silently for kind, row in counts.items() if row.cut_silently}
    invalid = {kind: dict(row.invalid) for kind, row in counts.items() if row.invalid}
    lost = {kind: dict(row.lost) for kind, row in counts.items() if row.lost}
    broke = {kind: row.broke for kind, row in counts.items()}
    lines = [
        ReportLine(f"{kills} engine kills under streams", load.kills, load.kills == kills),
        ReportLine(
            "a broken stream for two kills, or more: others meet an idle engine",
            broke,
            2 * sum(broke.values()) >= kills,
        ),
        ReportLine("0 silent cuts", cuts, not cuts),
        ReportLine("0 lost requests, 0 hangs", lost, not lost),
        ReportLine("each whole stream is valid, and its usage exact, continued or not", invalid, not invalid),
    ]
    if resumes:
        text = "98 % of the streams whose engine died, or more, go on and end valid"
        lines.append(ReportLine(text, ended, is_enough))
    else:
        text = "each broken stream ends with the error event of its dialect"
        lines.append(ReportLine(text, went_on, not went_on))
    figures = {
        "kills": load.kills,
        "requests": load.outcomes.total(),
        "kinds": {kind: row.figures() for kind, row in counts.items()},
        "gateway": continued,
        "details": load.strange,
    }
    part, file = ("stream_kills", "soak-streams.json") if resumes else ("dialect_kills", "soak-dialects.json")
    return write(part, begun, figures, lines, REPORT.with_name(file))
