"""Two fuzz targets: streams of messages and of responses, whose events have names.

However the bytes are cut, the client gets what the engine sent, up to an error or the end.

The second reader is the event-stream grammar with the standard library's JSON parser. The scanner
reads few events. So a stream that is not well formed has fewer properties: no exception, no event
that the engine did not send, and bounded memory.
"""

import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from zlib import crc32

from fuzzing.sse_target import events_of, parsed, subsequence
from fuzzing.target import Target, cuttings, decode_distinct

from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.sse import filter_first_chunks

_RECORDED = Path(__file__).parents[2] / "recordings" / "vllm" / "handlers" / "replies.json"
_LIMIT = 1 << 20
_MAX_EVENTS = 64
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EVENT = re.compile(rb"(?:(?:event: ([a-z_.]+)\n)?data: (\{[^\r\n]*\}|\[DONE\])|:[^\r\n]*)\n\n")
_PART = re.compile(rb"(?:event: ([a-z_.]+)\n)?(?:data: ?([^\r\n]*))?\n?")
"""The start of an event, at the end of a body."""
_NUMBER = re.compile(rb'"sequence_number":(\d{1,15})\b')


def through(grammar: EventGrammar, pieces: list[bytes], looked: int, limit: int) -> tuple[bytes, NamedEventScanner]:
    """Returns the bytes for the client. ``looked`` pieces pass as a stream's start."""
    scanner = NamedEventScanner(grammar, max_event_bytes=limit)
    passed: list[bytes] = []
    for number, piece in enumerate(pieces):
        if scanner.is_finished:
            break
        passed += filter_first_chunks(scanner, [piece]) if number < looked else scanner.filter_chunks([piece])
        assert scanner.waiting_bytes <= limit or scanner.error is not None, "more waits than may"
    passed += scanner.end()
    return b"".join(passed), scanner


def findings(scanner: NamedEventScanner) -> tuple[object, ...]:
    """Returns what the scanner found: counts, error, end, events and the next number."""
    usage, fault = scanner.usage, scanner.error
    counts = None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    assert counts is None or all(count is None or count >= 0 for count in counts), "a negative count"
    ends = scanner.is_aborted, scanner.is_done
    assert sum(ends) + (fault is not None) <= 1, "several ends"
    error = None if fault is None else (fault.status, fault.message)
    return counts, error, ends, scanner.event_count, scanner.next_sequence_number


def checker(dialect: Dialect) -> Callable[[bytes], Hashable]:
    """Returns the check for the streams of a dialect."""
    grammar = dialect.grammar
    assert grammar is not None

    def check(data: bytes) -> Hashable:
        proper = well_formed(data)
        out, scanner = through(grammar, [data], 1, _LIMIT)
        learned = findings(scanner)
        if proper:
            found = out, scanner.error is not None, scanner.is_done, scanner.next_sequence_number
            assert found == meant(data, grammar), "understood otherwise"
        else:
            examine(data, out, grammar)
        draw = crc32(data)
        for pieces in cuttings(data):
            again, scanner_again = through(grammar, pieces, draw % 3, _LIMIT)
            learned_again = findings(scanner_again)
            if proper:
                assert again == out, "cut otherwise, other bytes"
                assert learned_again == learned, "cut otherwise, something else learned"
            else:
                examine(data, again, grammar)
            if draw % 8 < 7:  # one cut for most inputs
                break
        if not draw % 8:
            findings(through(grammar, [data[at : at + 64] for at in range(0, len(data), 64)], 1, 128)[1])
        return proper, learned[0] is None, learned[1:3], min(scanner.event_count, 4), len(out) == len(data)

    return check


def examine(data: bytes, out: bytes, grammar: EventGrammar) -> None:
    """Checks that a stream passes nothing but events of the engine and the closing one."""
    if data.startswith(out):
        return
    closing = events_of(grammar.closing)
    shown, sent = (events_of(text.replace(_BYTE_ORDER_MARK, b"")) for text in (out, data + b"\n\n"))
    if closing and shown[-1:] == closing and not subsequence(shown, sent):
        shown.pop()
    assert subsequence(shown, sent), "events that no engine sent"


def well_formed(data: bytes) -> bool:
    """Returns whether all events but a cut last one are JSON; all or none have numbers."""
    if b"\n\n\n" in data or data.startswith(b"\n"):
        return False  # an empty line passes or goes, as it comes
    at = count = 0
    numbered: bool | None = None
    while at < len(data):
        match = _EVENT.match(data, at) or _PART.fullmatch(data, at)
        if match is None or (match.re is _PART and data.endswith(b"\n\n")):
            return False
        at, count = match.end(), count + 1
        text = match[2]
        if match[1] and text == b"[DONE]":
            return False  # a name means that there is an event
        if text is None or text == b"[DONE]":
            continue
        if b"\\u" in text or not is_text(text):
            return False
        if not isinstance(decode_distinct(text), dict):
            if match.re is _PART and not isinstance(parsed(text), dict):
                continue
            return False
        numbers = len(_NUMBER.findall(text))
        if (
            numbers > 1
            or numbers != text.count(b'"sequence_number"')
            or numbers != (numbers if numbered is None else numbered)
        ):
            return False
        numbered = bool(numbers)
    return count <= _MAX_EVENTS


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters, for which the scanner does not look."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return min(data, default=32) >= 32


def meant(data: bytes, grammar: EventGrammar) -> tuple[bytes, bool, bool, int]:
    """Returns the bytes for the client, whether there is an error and a proper end, and the next
    number.
    """
    passed: list[bytes] = []
    at = next_number = 0
    has_ended = False
    while at < len(data):
        match = _EVENT.match(data, at)
        event = data[at : match.end()] if match else data[at:] + b"\n\n"
        match = match or _PART.fullmatch(data, at)
        assert match is not None
        at = match.end()
        name, text = match[1] or b"", match[2]
        if text == b"[DONE]" or (match.re is _PART and not (text and isinstance(decode_distinct(text), dict))):
            continue
        if text is not None:
            fields = parsed(text)
            if (not name or name in grammar.finals or name in (b"error", grammar.failed)) and not is_readable(fields):
                return b"".join(passed), True, False, next_number
            name = name or (fields.get("type") or "").encode()
            delta = fields.get("delta")
            stops = isinstance(delta, dict) and "stop_reason" in delta and name in grammar.finals
            if stops and delta["stop_reason"] is None:
                return b"".join(passed), False, False, next_number
            number = _NUMBER.search(text)
            next_number = int(number[1]) + 1 if number and grammar.is_numbered else 0
        passed.append(event)
        if text is None:
            continue
        if name in (b"error", grammar.failed):
            return b"".join(passed), True, False, next_number
        has_ended = has_ended or stops or name in grammar.last
        if name in grammar.last:
            return b"".join(passed), False, True, next_number
    if has_ended and grammar.closing:
        return b"".join(passed) + grammar.closing, False, True, next_number
    return b"".join(passed), False, False, next_number


def is_readable(fields: dict[str, Any]) -> bool:
    """Whether the fields of an event that reports counts, or the end, have their types."""
    message, response, delta = fields.get("message"), fields.get("response"), fields.get("delta")
    reason = delta.get("stop_reason") if isinstance(delta, dict) else None
    return (
        isinstance(fields.get("type"), str | None)
        and isinstance(message, dict | str | None)
        and isinstance(response, dict | None)
        and isinstance(delta, dict | str | None)
        and isinstance(reason, str | None)
    )


def recorded(dialect: Dialect) -> list[bytes]:
    """Returns the streams of an engine, without the members of responses that no one reads."""
    streams: list[bytes] = []
    for reply in json.loads(_RECORDED.read_bytes()):
        if reply["path"] not in dialect.paths or "streamed" not in reply["name"]:
            continue
        events: list[bytes] = []
        for name, text in _EVENT.findall(reply["answer"].encode()):
            fields = json.loads(text)
            if isinstance(fields.get("response"), dict):
                fields["response"] = {key: fields["response"][key] for key in ("id", "status", "usage")}
            events.append(b"event: %b\ndata: %b\n\n" % (name, json.dumps(fields, separators=(",", ":")).encode()))
        streams.append(b"".join(events))
    return streams


def grower(streams: list[bytes]) -> Callable[[Callable[[], float]], bytes]:
    """Returns a writer of short streams: start, some of the middle and end of recorded ones."""
    known = [[match.group() for match in _EVENT.finditer(stream)] for stream in streams]

    def grow(draw: Callable[[], float]) -> bytes:
        events = known[int(draw() * len(known))]
        begin = 1 + int(draw() * (len(events) - 1))
        middle = events[begin : begin + int(draw() * 4)]
        parts = [*events[: 1 + int(draw() * 2)], *middle, *events[-1 - int(draw() * 2) :]]
        for number, part in enumerate(parts):
            parts[number] = _NUMBER.sub(b'"sequence_number":%d' % number, part)
        if draw() < 0.2:
            parts.insert(int(draw() * len(parts)), b": ping\n\n")
        if draw() < 0.2:
            del parts[int(draw() * len(parts))]
        return b"".join(parts)

    return grow


_WORDS = [
    b"event: ", b"event:", b"data: ", b"data:", b"\n\n", b"\n", b"\r\n", b"\r", b": keep-alive\n\n", b"id: 1\n",
    b"retry: 5\n\n", b"data: [DONE]\n\n", b"data: {}\n\n", b"event: error\n", b'data: {"type":"error"}\n\n',
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"full"}}\n\n',
    b'data: {"error":{"message":"m","code":503}}\n\n', b'"error":{"message":"m","code":"server_error"}',
    b'"usage":null', b'"usage":{"input_tokens":7,"output_tokens":-5,"cache_read_input_tokens":3}',
    b'"usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":2}}', b'"usage"',
    b'"delta":{"stop_reason":null}', b'"delta":{"stop_reason":"end_turn"}', b'"delta":1', b'"message":{}',
    b'"message":"m"', b'"response":null', b'"response":{"error":{"message":"m"}}', b'"type":7', b"event: ping\n",
    b"\\n", b'\\"', b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"{", b"}", b",", b":", b'"', b"\xff", b"\0", b"null", b"1",
]  # fmt: skip
_NAMES = [
    b"message_start", b"message_delta", b"message_stop", b"content_block_delta", b"content_block_start",
    b"response.created", b"response.failed", b"response.incomplete", b"response.completed", b"response.output_text.delta",
]  # fmt: skip
_WORDS += [b"event: %b\n" % name for name in _NAMES] + [b'{"type":"%b"}' % name for name in _NAMES]
_PIECES = re.compile(rb"[^\n]*\n\r?\n?|[^\n]+")


def target_of(dialect: Dialect) -> Target:
    """Returns the target of a dialect's streams."""
    streams = recorded(dialect)
    words = [word for word in _WORDS if word]
    what = f"an engine's stream of {dialect.name} on its way to the client"
    return Target(f"{dialect.name}_stream", what, checker(dialect), streams, words, _PIECES, 0.08, grower(streams))


MESSAGES_STREAM, RESPONSES_STREAM = target_of(MESSAGES), target_of(RESPONSES)
