"""A stream gives the same bytes and tokens, whether or not the loop takes its usual events."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.continuation import sent_tokens
from fairlead_gateway.continuation.sent_tokens import SentTokens, TokenMemory
from fairlead_gateway.upstream.sse import SseScanner

PROMPT = [5, 6, 7]
NAMES = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
CHAT = {"index": 0, "delta": {"content": "TEXT"}, "logprobs": None, "finish_reason": None, "token_ids": "IDS"}
TEXT = {"index": 0, "text": "TEXT", "logprobs": None, "finish_reason": None, "stop_reason": None}
TEXT |= {"prompt_token_ids": None, "token_ids": "IDS"}
REASONING = CHAT | {"delta": {"reasoning": "TEXT"}}
BOTH = CHAT | {"delta": {"content": "TEXT", "reasoning": ""}}
CALL = CHAT | {"delta": {"content": "TEXT", "tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}}
END = CHAT | {"finish_reason": "stop"}
CHOICES = [CHAT, TEXT, REASONING, BOTH, CALL, END]
IDS = [b"[1]", b"[70000]", b"[1,2,3]", b"[999999999]", b"[1234567890]", b"[4294967295]", b"[4294967296]", b"[]"]
IDS += [b"[01]", b"[1,]", b"[ 1 ]", b"[-1]", b"[1.5]", b"[1", b"null", b'"x"', b"[1_0]", b"[" + b"8," * 70 + b"8]"]
TEXTS = [" word", "", "a", "usage", "error", 'say "usage', 'an "error', "usage: 5", '"', "\\", 'a "b" c', "[", "[DONE]"]
TEXTS += [
    "x\n\ny",
    "\u00e9",
    "\U0001f600",
    '"token_ids":[1]',
    "token_ids",
    "finish_reason",
    "]}]}",
    "null",
    "a" * 2_000,
]
PIECES = [b'"token_ids":[', b'"finish_reason":"', b'"tool_calls":[', b'"delta":{}', b'""', b"\n\n", b"]", b'"', b"\\"]
PIECES += [b'"usage"', b'"error"', b"[DONE]", b"\r", b"{", b"}", b"[", b",", b"9", b"\xff", b"data: ", b'"content":""']


def event(choice: dict[str, Any], text: str, ids: bytes, *, is_raw: bool = False) -> bytes:
    """Returns an event as vLLM writes it."""
    data = json.dumps(NAMES | {"choices": [choice]}, separators=(",", ":")).encode()
    written = json.dumps(text, ensure_ascii=not is_raw).encode()[1:-1]
    return b"data: " + data.replace(b'"IDS"', ids).replace(b"TEXT", written) + b"\n\n"


OPENING = b'data: {"choices":[{"index":0,"delta":{"content":""}}],"prompt_token_ids":[5,6,7]}\n\n'


def streamed(chunks: list[bytes], *, strips: bool, max_bytes: int = 1_000_000) -> tuple[object, ...]:
    """Returns what the client gets, and what is known of the stream."""
    memory = TokenMemory(max_bytes)
    scanner = SseScanner(strip_usage=True, max_event_bytes=10_000)
    tokens = scanner.tokens = SentTokens(memory, strips=strips)
    passed: list[bytes] = []
    known: list[object] = []
    for chunk in chunks:
        passed += scanner.filter_chunks([chunk])
        known.append((tokens.ids.tolist(), tokens.shown, tokens.last, tokens.last_at, memory.used_bytes))
        if scanner.is_finished:
            break
    passed += scanner.end()
    state = (tokens.problem, tokens.is_finished, tokens.prompt_tokens, tokens.head)
    counts = None if scanner.usage is None else (scanner.usage.prompt_tokens, scanner.usage.completion_tokens)
    return b"".join(passed), known, state, scanner.event_count, counts, scanner.error, scanner.is_aborted


def check_equal(modules: dict[str, ModuleType], chunks: list[bytes], *, strips: bool = True) -> int:
    """Compares both ways; returns how many events the loop has taken."""
    taken = 0

    def take_text(*arguments: Any) -> bytes | None:
        nonlocal taken
        found: bytes | None = modules["token_ids"].take_text(*arguments)
        taken += found is not None
        return found

    for max_bytes in (1_000_000, 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sent_tokens, "TAKE_TEXT", None)
            patch.setattr(sent_tokens, "READ_IDS", None)
            expected = streamed(chunks, strips=strips, max_bytes=max_bytes)
            patch.setattr(sent_tokens, "TAKE_TEXT", take_text)
            patch.setattr(sent_tokens, "READ_IDS", modules["token_ids"].read_ids)
            assert streamed(chunks, strips=strips, max_bytes=max_bytes) == expected
    return taken


@pytest.mark.parametrize("choice", [CHAT, TEXT, REASONING], ids=["chat", "text", "reasoning"])
def test_events_like_the_one_before_are_taken(native_modules: dict[str, ModuleType], choice: dict[str, Any]) -> None:
    words = [" one", 'a "b" c', "\u00e9", "\\", "usage: 5", " error", "token_ids"]
    chunks = [
        OPENING,
        event(CHAT | {"delta": {"role": "assistant"}}, "", b"[1]"),
        *(event(choice, word, b"[8]") for word in words),
    ]
    assert check_equal(native_modules, chunks) > len(words)
    assert check_equal(native_modules, chunks, strips=False) == 0


@pytest.mark.parametrize("ids", IDS)
def test_ids_of_every_form_are_the_same(native_modules: dict[str, ModuleType], ids: bytes) -> None:
    usual = event(CHAT, "one", b"[8]")
    taken = check_equal(native_modules, [OPENING, usual, usual, event(CHAT, "two", ids), usual])
    assert taken >= 2
    one = sent_tokens.array("I", [3])
    frame = (b'{"a":"', b'","ids":', b"}\n\n")
    found = native_modules["token_ids"].take_text(b'{"a":"x","ids":' + ids + b"}\n\n", *frame, one)
    assert (found is None) is (one.tolist() == [3])
    if found is not None:
        assert (found, one.tolist()[1:]) == (
            b'{"a":"x","ids":null}\n\n',
            json.loads(b"[%b]" % ids.strip(b"[]").lstrip(b"0")),
        )


@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(CHOICES), st.sampled_from(TEXTS) | st.text(max_size=9), st.sampled_from(IDS), st.booleans()
        ),
        max_size=8,
    ),
    choice=st.sampled_from(CHOICES[:4]),
    strips=st.booleans() | st.just(True),
)
def test_streams_of_any_events_are_the_same(
    native_modules: dict[str, ModuleType],
    drawn: list[tuple[dict[str, Any], str, bytes, bool]],
    choice: dict[str, Any],
    strips: bool,
) -> None:
    usual = event(choice, " one", b"[8]")
    chunks = [OPENING, usual]
    for other, text, ids, is_raw in drawn:
        chunks += [event(other, text, ids, is_raw=is_raw), event(choice, text, b"[9]", is_raw=is_raw), usual]
    check_equal(native_modules, chunks, strips=strips)


@given(data=st.data())
def test_streams_with_changed_bytes_are_the_same(native_modules: dict[str, ModuleType], data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from(CHOICES[:4]))
    usual = event(choice, " one", b"[8]")
    chunks = [OPENING, usual]
    for _ in range(data.draw(st.integers(1, 4))):
        changed = bytearray(event(choice, data.draw(st.sampled_from(TEXTS)), b"[9,10]"))
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(changed)))
            changed[start : start + data.draw(st.integers(0, 3))] = data.draw(st.sampled_from(PIECES))
        chunks += [bytes(changed)] * data.draw(st.integers(1, 2)) + [usual]
    check_equal(native_modules, chunks)


def test_every_cut_of_an_event_is_left_to_the_other_way(native_modules: dict[str, ModuleType]) -> None:
    usual = event(CHAT, "one", b"[8,9]")
    at = usual.index(b"one")
    head, (middle, tail) = usual[:at], usual[at + 3 :].split(b"[8,9]")
    ids = sent_tokens.array("I")
    take = native_modules["token_ids"].take_text
    assert take(usual, head, middle, tail, ids) == usual.replace(b"[8,9]", b"null")
    for size in range(len(usual)):
        assert take(usual[:size], head, middle, tail, ids) is None
    assert take(usual + b"\n", head, middle, tail, ids) is None
    assert ids.tolist() == [8, 9]


@given(
    ids=st.lists(st.integers(-1, 2**33), max_size=80),
    spaces=st.sampled_from(["", "", " "]),
    changes=st.lists(st.tuples(st.integers(0, 99), st.sampled_from([*PIECES, b"0", b" ", b"]"])), max_size=1),
)
def test_ids_of_prompts_are_the_same(
    native_modules: dict[str, ModuleType], ids: list[int], spaces: str, changes: list[tuple[int, bytes]]
) -> None:
    data = json.dumps(ids, separators=(f",{spaces}", ":")).encode()
    for at, piece in changes:
        data = data[:at] + piece + data[at + 1 :]
    opening = b'data: {"choices":[],"prompt_token_ids":' + data + b',"prompt_text":null}\n\n'
    check_equal(native_modules, [opening, event(CHAT, "one", b"[8]")])
    found = native_modules["token_ids"].read_ids(opening, opening.index(data), opening.index(data) + len(data))
    if found is not None:
        assert (found.typecode, found.tolist()) == ("I", json.loads(data))
    elif ids and not spaces and not changes:
        assert max(ids) >= 1_000_000_000 or min(ids) < 0


def test_thousand_tokens_take_five_kilobytes_at_most(native_modules: dict[str, ModuleType]) -> None:
    for take_text in (None, native_modules["token_ids"].take_text):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sent_tokens, "TAKE_TEXT", take_text)
            memory = TokenMemory(10_000_000)
            scanner = SseScanner(strip_usage=True, max_event_bytes=10_000)
            tokens = scanner.tokens = SentTokens(memory, strips=True)
            usual = event(CHAT, " one", b"[70000]")
            for thousands in range(8):
                scanner.filter_chunks([OPENING, usual] if not thousands else [usual])
                while len(tokens.ids) < 1_000 * (thousands + 1):
                    scanner.filter_chunks([usual])
                kept = sum(map(sys.getsizeof, (tokens.ids, tokens.last, tokens.head)))
                assert kept <= 5_000 * (thousands + 1)
