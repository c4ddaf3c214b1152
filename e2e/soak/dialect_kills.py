"""Engines that die under streams of messages and responses that must not be continued.

The model forbids it. A broken stream must end with the error event of its dialect, and
all events before it are those of the engine. A request that had not begun must be answered whole.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

from e2e.soak.gateway_processes import REPORT, chat_body, scaled_count, send_request, write
from e2e.soak.scenarios import KILLS, RequestLoad, kill_figures, kill_lines, load_and_kill
from fairlead_testing.gateway.gateway_process import GatewayProcess
from fairlead_testing.http.raw_client import RawResponse
from fairlead_testing.reports import ReportLine

STREAMS_PER_SECOND = 50.0
TOKENS = 120
GAP_SECONDS = 0.2
_EVENT = re.compile(r"event: (\S+)\ndata: (.*)")
_ANTHROPIC_TYPES = {"api_error", "overloaded_error"}
WHOLE, BROKEN = "complete", "ended with its error event"
_PATHS = {"messages": "/v1/messages", "responses": "/v1/responses"}


def dialect_of(number: int) -> str:
    return "chat" if number % 9 == 8 else "messages" if number % 9 % 2 else "responses"


def body_of(number: int, dialect: str) -> dict[str, Any]:
    """Returns one of 40 conversations in a dialect, answered by a stream."""
    body = chat_body(number, stream=True, tokens=TOKENS, greedy=True)
    if dialect == "responses":
        body["input"], body["max_output_tokens"] = body.pop("messages"), body.pop("max_tokens")
    return body


def check_stream(answer: RawResponse, tokens: int) -> str:
    """Returns a strict client's verdict on a stream of messages or responses."""
    if answer.status != 200:
        return f"status {answer.status} {json.loads(answer.body)['error'].get('code')}"
    if not answer.complete:
        return "cut without an event"
    parts = [part for part in answer.body.decode().split("\n\n") if part and not part.startswith(":")]
    matches = [_EVENT.fullmatch(part.strip("\n")) for part in parts]
    if None in matches or not matches:
        return "an event that is not whole"
    events = [(match[1], json.loads(match[2])) for match in matches if match is not None]
    name, fields = events[-1]
    if any(event["type"] != event_name for event_name, event in events):
        return "an event whose type is not its name"
    numbers = [event.get("sequence_number", number) for number, (_, event) in enumerate(events)]
    if numbers != list(range(len(events))):
        return "numbers that do not follow each other"
    if name == "error":
        return BROKEN if is_own_error(fields, is_numbered="response" in events[0][1]) else "another error event"
    if name == "message_stop":
        used = events[-2][1]["usage"]["output_tokens"]
    elif name in ("response.completed", "response.incomplete"):
        used = fields["response"]["usage"]["output_tokens"]
    else:
        return "ended without its last event"
    texts = sum(event_name.endswith(("block_delta", "text.delta")) for event_name, _ in events)
    return WHOLE if texts == used == tokens else "looks complete and is not"


def is_own_error(fields: dict[str, Any], *, is_numbered: bool) -> bool:
    """Whether an error event has the form of its dialect, in words for people."""
    error = fields["error"]
    if not is_numbered:
        return error["type"] in _ANTHROPIC_TYPES and bool(error["message"])
    return {"code", "message", "param", "sequence_number"} <= set(fields) and fields["message"] == error["message"]


async def send_stream(url: str, number: int) -> tuple[str, str, str]:
    """Sends a request; returns the verdict with its dialect, no text, and the instance."""
    dialect = dialect_of(number)
    body = body_of(number, dialect)
    if dialect == "chat":
        outcome, _, instance = await send_request(url, body)
    else:
        outcome, _, instance = await send_request(
            url, body, _PATHS[dialect], lambda answer, tokens: (check_stream(answer, tokens), "")
        )
    return f"{dialect}: {outcome}", "", instance


async def _retried(running: GatewayProcess) -> int:
    return int(await running.metric("fairlead_gateway_retries_total"))


async def run_dialect_kills(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, kills = time.monotonic(), scaled_count(*KILLS)
    known = {f"{dialect}: {outcome}" for dialect in _PATHS for outcome in (WHOLE, BROKEN)}
    known |= {"chat: complete", "chat: ended with an error event"}
    load, retried = await load_and_kill(
        folder,
        lambda url: RequestLoad(url, send_stream, STREAMS_PER_SECOND, known),
        _retried,
        GAP_SECONDS,
        resumes=False,
    )
    seen = load.outcomes
    broken = {dialect: seen[f"{dialect}: {BROKEN}"] for dialect in _PATHS}
    lost = {name: number for name, number in seen.items() if ": status" in name or ": no answer" in name}
    others = {name: number for name, number in seen.items() if name not in known and name not in lost}
    hangs = sum(number for name, number in seen.items() if name.endswith("hangs"))
    lines = [
        *kill_lines(load.kills, kills, broken),
        ReportLine("each broken stream ends with the error event of its dialect", others, not others),
        ReportLine("0 lost requests that had not started", lost, not lost),
        ReportLine("requests that had not started are retried", retried, retried > 0),
        ReportLine("0 hangs", hangs, not hangs),
    ]
    return write("dialect_kills", begun, kill_figures(load), lines, REPORT.with_name("soak-dialects.json"))
