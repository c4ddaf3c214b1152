"""All that a stream keeps between its events counts, or is short, whatever its engine sends.

`kept_bytes` walks what the objects of a stream hold. So it finds what no counter knows.
"""

import itertools
import random
from array import array
from collections.abc import Callable, Iterator

import pytest

from fairlead_gateway.continuation.sent_blocks import SentBlocks
from fairlead_gateway.continuation.sent_tokens import MAX_HELD_BYTES, SentTokens, TokenMemory
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.sse import COMMENT, SseScanner
from fairlead_gateway.upstream.stream_record import SHORT_BYTES

MAX_BYTES = 2 << 20
SENT_BYTES = 5 << 20
SIZES = [1, 700, 60_000, 1_500_000]
SHORT = 16 * SHORT_BYTES  # a few events that are short, and ids or texts until they are counted
OPENING = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"prompt_token_ids":[1,2]%b}\n\n'
)


def kept_bytes(kept: object, known: set[int] | None = None) -> int:
    """Returns the bytes of texts and ids that an object refers to, each once."""
    known = set() if known is None else known
    if id(kept) in known or callable(kept) or isinstance(kept, TokenMemory):
        return 0
    known.add(id(kept))
    if isinstance(kept, bytes | bytearray | str):
        return len(kept)
    if isinstance(kept, array):
        return len(kept) * kept.itemsize
    if isinstance(kept, list | tuple):
        return sum(kept_bytes(part, known) for part in kept)
    names = [name for kind in type(kept).__mro__ for name in getattr(kind, "__slots__", ())]
    parts = [getattr(kept, name, None) for name in names] + list(getattr(kept, "__dict__", {}).values())
    return sum(kept_bytes(part, known) for part in parts)


def choice(delta: bytes, ids: bytes, finish: bytes = b"null", more: bytes = b"") -> bytes:
    text = b'{"index":0,"delta":{%b},"finish_reason":%b,"token_ids":[%b]}' % (delta, finish, ids)
    return b'data: {"id":"c","choices":[%b]%b}\n\n' % (text, more)


def ids_of(size: int) -> bytes:
    return b",".join([b"7"] * max(1, min(size, 60_000) // 2))


CHUNKS: dict[str, Callable[[int], bytes]] = {
    "ids-without-text": lambda size: choice(b'"content":""', ids_of(size)),
    "ids-of-a-call": lambda size: choice(b'"tool_calls":[{"index":0}]', ids_of(size)),
    "ids-of-text": lambda size: choice(b'"content":"a"', ids_of(size)),
    "ids-of-reasoning": lambda size: choice(b'"reasoning":"a"', ids_of(size)),
    "ids-of-a-failed-end": lambda size: choice(b'"content":""', ids_of(size), b'"error"'),
    "ids-of-an-end": lambda size: choice(b"", ids_of(size), b'"stop"'),
    "text": lambda size: choice(b'"content":"%b"' % (b"a" * size), b"7"),
    "call": lambda size: choice(b'"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]' % (b"a" * size), b"7"),
    "other-field": lambda size: choice(b'"content":"a"', b"7", more=b',"x":"%b"' % (b"a" * size)),
    "log-probabilities": lambda size: choice(b'"content":""', b"7", more=b',"logprobs":{"x":"%b"}' % (b"a" * size)),
    "head": lambda size: OPENING % (b',"x":"%b"' % (b"a" * size)),
    "prompt-again": lambda size: choice(b'"content":"a"', b"7", more=b',"prompt_token_ids":[%b]' % ids_of(size)),
    "comment-with-ids": lambda size: b": " + choice(b'"content":""', ids_of(size), b'"abort"'),
}


def until_sent(event: bytes) -> Iterator[bytes]:
    return itertools.repeat(event, max(2, min(4_000, SENT_BYTES // len(event))))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("strips", [True, False], ids=["hidden", "shown"])
@pytest.mark.parametrize("opening", [1, 1_500_000])
def test_chunks_that_are_kept_count_or_are_short(kind: str, size: int, strips: bool, opening: int) -> None:
    memory = TokenMemory(MAX_BYTES)
    tokens = SentTokens(memory, strips=strips)
    tokens.keep_body(b"b" * 5_000)
    first = [
        OPENING % (b',"y":"%b"' % (b"h" * opening)),
        choice(b'"content":"a"', b"5"),
        choice(b'"content":"b"', b"5"),
    ]
    sent = passed = 0
    event = CHUNKS[kind](size)
    scanner = SseScanner(strip_usage=False, max_event_bytes=16 << 20)
    scanner.tokens = tokens
    for number, chunk in enumerate([*first, *until_sent(event)]):
        sent += chunk.count(b"data:")
        passed += b"".join(scanner.filter_chunks([chunk])).count(b"data:")
        if scanner.is_finished:  # by what the engine says of its own end
            assert kind == "ids-of-a-failed-end"
            break
        assert memory.used_bytes <= MAX_BYTES
        if number % 50 == 0 or len(chunk) > SHORT_BYTES:
            assert kept_bytes([tokens, scanner]) <= memory.used_bytes + SHORT
    if not scanner.is_finished:
        assert sent == passed + len(tokens._held), "an event is lost"
    tokens.release()
    assert memory.used_bytes == 0


def test_body_of_a_request_counts_and_is_not_kept_without_memory() -> None:
    memory = TokenMemory(MAX_BYTES)
    streams = [SentTokens(memory, strips=True) for _ in range(8)]
    for tokens in streams:
        tokens.take(OPENING % b"")
        tokens.keep_body(b"b" * (MAX_BYTES // 4))
    assert sum(bool(tokens.body) for tokens in streams) == 3
    assert kept_bytes(streams) <= memory.used_bytes + len(streams) * SHORT
    for tokens in streams:
        tokens.release()
    assert memory.used_bytes == 0


def named(kind: str, data: str, size: int = 0, name: str | None = None) -> bytes:
    more = ',"pad":"%s"' % ("p" * size) if size else ""
    return f'event: {kind if name is None else name}\ndata: {{"type":"{kind}"{data}{more}}}\n\n'.encode()


def message(kind: str, size: int = 0, text: str = "a", name: str | None = None) -> bytes:
    data = {
        "message_start": ',"message":{"id":"m"}',
        "content_block_start": ',"index":0,"content_block":{"type":"text","text":""}',
        "content_block_delta": f',"index":0,"delta":{{"type":"text_delta","text":"{text}"}}',
        "error": ',"error":{"type":"api_error","message":"m"}',
    }
    return named(kind, data.get(kind, ""), size, name)


def response(kind: str, size: int = 0, text: str = "a", name: str | None = None) -> bytes:
    data = {
        "response.created": ',"response":{"id":"r"}',
        "response.output_item.added": ',"item":{"type":"message","id":"i"}',
        "response.output_text.delta": f',"delta":"{text}"',
        "response.failed": ',"response":{"error":{"message":"m"}}',
    }
    return named(kind, data.get(kind, "") + ',"sequence_number":5', size, name)


Writer = Callable[..., bytes]
MESSAGE_KINDS = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "ping"]
MESSAGE_KINDS += ["error", "response.failed", "message_delta", "other"]
RESPONSE_KINDS = ["response.created", "response.output_item.added", "response.content_part.added", "response.queued"]
RESPONSE_KINDS += ["response.output_text.delta", "response.output_item.done", "response.function_call_arguments.delta"]
RESPONSE_KINDS += ["error", "response.failed", "other"]
NAMED: list[tuple[EventGrammar | None, Writer, list[str], list[str]]] = [
    (MESSAGES.grammar, message, MESSAGE_KINDS, MESSAGE_KINDS[:3]),
    (
        RESPONSES.grammar,
        response,
        RESPONSE_KINDS,
        [*RESPONSE_KINDS[:3], "response.output_text.delta"],
    ),
]


class NamedStream:
    """A stream of named events, as it is relayed while its text is kept."""

    def __init__(self, grammar: EventGrammar | None, first: list[bytes]) -> None:
        assert grammar is not None
        self.memory = TokenMemory(MAX_BYTES)
        self.scanner = NamedEventScanner(grammar, max_event_bytes=16 << 20)
        self.blocks = SentBlocks(self.memory, b"b" * 5_000, float)
        self.sent: list[bytes] = []
        self.passed: list[bytes] = []
        for event in first:
            self.send(event)
        assert not self.blocks.problem

    def send(self, event: bytes) -> None:
        self.sent.append(event)
        self.passed += self.blocks.take(self.scanner.filter_chunks([event]))

    def check(self) -> None:
        blocks, scanner = self.blocks, self.scanner
        assert self.memory.used_bytes <= MAX_BYTES
        assert len(blocks.failure) <= MAX_HELD_BYTES
        assert kept_bytes([blocks, scanner]) <= self.memory.used_bytes + SHORT
        if not scanner.is_finished:
            kept = [event for event in self.passed if event != COMMENT] + blocks._held
            kept += [blocks.failure] if blocks.failure else []
            assert b"".join(self.sent) == b"".join(kept), "an event is lost"

    def end(self) -> None:
        self.check()
        self.blocks.release()
        assert self.memory.used_bytes == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("grammar", "write", "kind", "first"),
    [(grammar, write, kind, first) for grammar, write, kinds, first in NAMED for kind in kinds],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_named_events_that_are_kept_count_or_are_short(
    grammar: EventGrammar | None, write: Writer, kind: str, first: list[str], size: int
) -> None:
    for begin in range(len(first) + 1):
        stream = NamedStream(grammar, [write(name) for name in first[:begin]])
        for number, event in enumerate(until_sent(write(kind, size))):
            if stream.scanner.is_finished or number > 800:
                break
            stream.send(event)
            if number % 200 == 0 or (number < 9 and size > SHORT_BYTES):
                stream.check()
        stream.end()


@pytest.mark.parametrize("size", [700, 70_000])
@pytest.mark.parametrize("which", range(len(NAMED)), ids=["messages", "responses"])
def test_text_that_is_kept_counts(which: int, size: int) -> None:
    grammar, write, _, first = NAMED[which]
    stream = NamedStream(grammar, [write(name) for name in first])
    for event in until_sent(write(first[-1], text="t" * size)):
        stream.send(event)
    assert stream.blocks.problem == "memory"
    stream.end()


@pytest.mark.parametrize("which", range(len(NAMED)), ids=["messages", "responses"])
def test_an_event_with_the_name_of_another_ends_the_keeping_and_not_the_stream(which: int) -> None:
    grammar, write, kinds, first = NAMED[which]
    assert grammar is not None
    for name, kind in itertools.permutations(kinds, 2):
        stream = NamedStream(grammar, [write(opening) for opening in first])
        for _ in range(20):
            if not stream.scanner.is_finished:
                stream.send(write(kind, 1_000, name=name))
        assert stream.blocks.problem, (name, kind)
        assert stream.blocks.failure == b""
        is_error = name.encode() in (b"error", grammar.failed)
        assert (stream.scanner.error is not None) is is_error, (name, kind)
        if not is_error:
            stream.send(write(first[-1]))
            assert stream.passed[-1] == write(first[-1])
        stream.end()


@pytest.mark.parametrize("which", range(len(NAMED)), ids=["messages", "responses"])
def test_streams_of_any_events_lose_nothing_and_keep_little(which: int) -> None:
    grammar, write, kinds, first = NAMED[which]
    for seed in range(40):
        draw = random.Random(seed)
        stream = NamedStream(grammar, [write(opening) for opening in first[: draw.randint(0, len(first))]])
        for _ in range(draw.randint(1, 12)):
            name = draw.choice(kinds) if draw.random() < 0.2 else None
            event = write(draw.choice(kinds), draw.choice([0, 0, 900, 9_000, 700_000]), name=name)
            if draw.random() < 0.1:
                event = event.partition(b"\n")[2]  # without its name
            if stream.scanner.is_finished:
                break
            stream.send(event)
            stream.check()
        stream.end()


@pytest.mark.parametrize("size", [0, SHORT_BYTES, 20 * SHORT_BYTES])
def test_next_number_is_known_behind_a_long_event(size: int) -> None:
    _, write, _, first = NAMED[1]
    stream = NamedStream(RESPONSES.grammar, [write(name) for name in first])
    stream.send(write(first[-1], size))
    assert stream.scanner.next_sequence_number == 6
