"""A fuzz target: streams of engines.

However the bytes are cut, the client gets the same, and no fault of an engine passes as a response.

The second reader is the event-stream grammar with the standard library's JSON parser. The scanner
parses only a few events of a stream. So a stream with events that are no JSON, or with escaped
keys, has three properties only: no exception, no event that the engine did not send, and nothing
after the end.
"""

import json
import re
from collections.abc import Hashable
from typing import Any

import msgspec
from fuzzing.target import Target, cuttings

from fairlead_gateway.continuation.stream_text import SentText, splice_events, total_usage
from fairlead_gateway.upstream.response_schemas import StreamEvent
from fairlead_gateway.upstream.sse import SseScanner, filter_first_chunks

LIMIT = 1 << 20
_LINES = re.compile(rb"\r\n|\n|\r")
_KNOWN = (b"data:", b":", b"event:", b"id:", b"retry:")


def through(pieces: list[bytes], strip: bool, looked: int) -> tuple[bytes, SseScanner]:
    """Returns the bytes for the client. ``looked`` pieces pass as a stream's start."""
    events = SseScanner(strip_usage=strip, max_event_bytes=LIMIT)
    out = filter_first_chunks(events, pieces[:looked]) if looked else []
    if not events.is_finished:
        out += events.filter_chunks(pieces[looked:])
    return b"".join(out), events


def findings(events: SseScanner) -> tuple[object, ...]:
    """Returns usage, error and end of a stream, as the scanner found them."""
    usage, fault = events.usage, events.error
    counts = None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return counts, None if fault is None else (fault.status, fault.message), events.is_aborted, events.is_done


def check(data: bytes) -> Hashable:
    """Checks that whole and cut streams give the same, up to the engine's end."""
    strip = bool(len(data) % 2)
    spaced = b"\n\n\n" in data or b"\n\r\n\r\n" in data or data.startswith((b"\n", b"\r"))
    out, events = through([data], strip, 1)
    learned, sent = findings(events), events_of(data)
    proper = well_formed(data, sent)
    examine(out, events, sent, proper)
    continued(out, sent)
    for pieces in cuttings(data):
        again, events_again = through(pieces, strip, 1)
        if proper:
            assert again == out or (spaced and events_of(again) == events_of(out)), "cut otherwise, other bytes"
            assert findings(events_again) == learned, "cut otherwise, something else learned"
        else:
            examine(again, events_again, sent, proper)
    if proper:
        assert (learned[0], [event for event in sent if event in events_of(out)]) == meant(sent, strip), (
            "understood otherwise"
        )
    return proper, learned[1:], len(sent), len(out) == len(data), events.usage is None


def examine(out: bytes, events: SseScanner, sent: list[bytes], proper: bool) -> None:
    """Checks the properties of every stream, and those of well-formed ones."""
    assert events.is_done + events.is_aborted + (events.error is not None) <= 1
    shown = events_of(out)
    assert subsequence(shown, sent), "events that no engine sent"
    assert (b"[DONE]" in shown) <= events.is_done, "an end that was not noticed"
    assert b"[DONE]" not in shown[:-1], "something behind the end"
    if events.is_done:
        assert shown[-1] == b"[DONE]"
    if not proper:
        return
    for event in shown:
        if event != b"[DONE]":
            chunk = parsed(event)
            assert isinstance(chunk, dict)
            assert chunk.get("error") is None, "an error passes as an answer"
            assert b'"finish_reason":"abort"' not in event, "an abort passes as an answer"


def continued(out: bytes, sent: list[bytes]) -> None:
    """Checks that any stream can be spliced into a resumed one."""
    answer = SentText(LIMIT)
    answer.add([out])
    if all(answer.parse_slices()):
        assert answer.tokens <= len(sent)
        total_usage(None, answer)
    events_of(b"".join(splice_events([out], answer)))


def well_formed(data: bytes, sent: list[bytes]) -> bool:
    """Whether all lines follow the grammar, all events an OpenAI stream; no key is escaped."""
    if b"\\u00" in data or b"\r" in data.replace(b"\r\n", b"") or not data.endswith((b"\n\n", b"\r\n\r\n")):
        return False
    if b"\n\r\n" in data.replace(b"\r\n\r\n", b"") or b"\r\n\n" in data:
        return False  # the scanner waits for more if an empty line ends differently
    if not all(not line or line.startswith(_KNOWN) for line in _LINES.split(data)):
        return False
    return all(event == b"[DONE]" or _event(event) for event in sent)


def _event(data: bytes) -> bool:
    chunk = parsed(data)
    if not isinstance(chunk, dict):
        return False
    try:
        msgspec.json.decode(data, type=StreamEvent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def meant(sent: list[bytes], strip: bool) -> tuple[object, list[bytes]]:
    """Returns the usage of a stream and the client's events, read one by one."""
    usage: tuple[object, ...] | None = None
    kept: list[bytes] = []
    for event in sent:
        if event == b"[DONE]":
            kept.append(event)
            break
        chunk = parsed(event)
        if chunk.get("error") is not None:
            break
        told_usage = chunk.get("usage")
        if told_usage is not None:
            details = told_usage.get("prompt_tokens_details") or {}
            values = (
                told_usage.get("prompt_tokens"),
                told_usage.get("completion_tokens"),
                details.get("cached_tokens"),
            )
            usage = tuple(value if value is not None and 0 <= value <= 1 << 31 else None for value in values)
            if strip and not chunk.get("choices"):
                continue
        if b'"finish_reason":"abort"' in event:
            break
        kept.append(event)
    return usage, [event for event in sent if event in kept]


def events_of(stream: bytes) -> list[bytes]:
    """Returns the data of every whole event, by the grammar."""
    events: list[bytes] = []
    lines: list[bytes] = []
    parts = _LINES.split(stream)
    for line in parts[:-1]:
        if line:
            if line.startswith(b"data:"):
                lines.append(line[5:].strip())
        else:
            if lines:
                events.append(b"\n".join(lines))
            lines = []
    return events


def parsed(event: bytes) -> Any:
    """Returns an event's JSON; None if it is not JSON."""
    try:
        return json.loads(event)
    except (ValueError, RecursionError):
        return None


def subsequence(some: list[bytes], all_of_them: list[bytes]) -> bool:
    """Whether ``all_of_them`` contains ``some`` in that order."""
    rest = iter(all_of_them)
    return all(any(wanted == other for other in rest) for wanted in some)


WORDS = [
    b"data: ", b"data:", b"data", b"\n\n", b"\n", b"\r\n", b"\r\n\r\n", b"\r", b": keep-alive\n\n", b":\n\n",
    b"event: x\n", b"id: 1\n", b"retry: 5\n\n",
    b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: {}\n\n",
    b'data: {"error":{"message":"m","code":503}}\n\n',
    b'data: {"error":null}\n\n', b'data: {"error":"x"}\n\n', b'data: {"usage":null,"choices":[]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":-5,"completion_tokens":1e3}}\n\n',
    b'data: {"choices":[{"finish_reason":"abort"}]}\n\n',
    b'"finish_reason":"abort"',
    b'"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}', b'"error"',
    b'"usage"',
    b'"err\\u006fr":{"code":500}', b"\\n", b'\\"', b"\\u2028", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x0c",
    b"\x1c", b"{", b"}", b",", b":", b'"', b"[DONE]",
    b"\xff", b"\0", b"null", b"1", b"x",
]  # fmt: skip
PIECES = re.compile(rb"[^\n]*\n\r?\n?|[^\n]+")
_TOKEN = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":7}}}\n\n'
_DONE = b"data: [DONE]\n\n"
_ERROR = b'data: {"error":{"message":"full","type":"x","param":null,"code":503}}\n\n'
_TRICKY = _TOKEN % rb"she said \"usage\":{} and \"error\" and [DONE] data: \n\n \"finish_reason\":\"abort\""
SEEDS = [
    _TOKEN % b"a" + _TOKEN % b"b" + _USAGE + _DONE,
    (_TOKEN % b"a" + _TRICKY + _USAGE + _DONE).replace(b"\n", b"\r\n"),
    _TOKEN % b"a" + _ERROR + _DONE,
    b": ping\n\n"
    + _TRICKY
    + b"event: x\nid: 7\n"
    + _TOKEN % b""
    + b'data: {"choices":[{"finish_reason":"abort"}]}\n\n'
    + _DONE,
    _TOKEN % b"a"
    + b'data: {"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    + _DONE,
    b'data: {"a":\ndata: 1}\n\n' + _DONE,
]
SSE = Target("sse", "an engine's event stream on its way to the client", check, SEEDS, WORDS, PIECES, 0.08)
