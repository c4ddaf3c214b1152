"""An event with very many values is refused before anything decodes it."""

import json
from typing import Any

import pytest

from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.sse import SseScanner, filter_first_chunks

LIMIT = 40 * 1024 * 1024
SHAPES = {
    "lists": (b"[", b"[],", b"[]]"),
    "objects": (b"[", b"{},", b"{}]"),
    "members": (b"{", b'"a":1,', b'"a":1}'),
    "texts": (b"{", b'"a":"b",', b'"a":""}'),
    "numbers": (b"[", b"1,", b"1]"),
}
HOLDERS = [b'{"choices":%b}', b'{"error":{"message":%b}}', b'{"choices":[],"usage":%b}', b'{"type":"error","error":%b}']


def scanner_of(name: str) -> SseScanner:
    if name == "chat":
        return SseScanner(strip_usage=True, max_event_bytes=LIMIT)
    grammar = (MESSAGES if name == "messages" else RESPONSES).grammar
    assert grammar is not None
    return NamedEventScanner(grammar, max_event_bytes=LIMIT)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", [b"", b"event: ping\n", b"event: content_block_delta\n"])
@pytest.mark.parametrize("is_first", [True, False])
def test_event_of_very_many_values_ends_its_stream_unread(
    dialect: str, shape: str, holder: bytes, name: bytes, is_first: bool
) -> None:
    start, item, end = SHAPES[shape]
    count = 2_200_000 if shape == "numbers" else 140_000
    event = name + b"data: " + holder % (start + item * count + end) + b"\n\n"
    scanner = scanner_of(dialect)
    take = filter_first_chunks if is_first else SseScanner.filter_chunks
    passed = [part for chunk in cut(event, 65_536) for part in take(scanner, [chunk])]
    assert scanner.error is not None
    assert "too many values" in scanner.error.message
    assert passed == []


@pytest.mark.parametrize("size", [4_000, 65_536])
def test_long_events_that_engines_send_pass(size: int) -> None:
    entry = {"token": " a", "logprob": -1.5, "bytes": [32, 97]}
    content = [entry | {"top_logprobs": [entry] * 20} for _ in range(100)]
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": content}}]},
        {"choices": [{"index": 0, "delta": {"content": "data:image/png;base64," + "A" * 8_000_000}}]},
        {"choices": [{"index": 0, "delta": {"content": "one, two, " * 100_000}}]},
        {"choices": [{"index": 0, "text": "a"}], "prompt_token_ids": list(range(200_000))},
    ]
    scanner = scanner_of("chat")
    passed: list[bytes] = []
    data = b"".join([b"data: " + json.dumps(event).encode() + b"\n\n" for event in events])
    for chunk in cut(data, size):
        passed += scanner.filter_chunks([chunk])
    assert scanner.error is None
    assert b"".join(passed) == data
