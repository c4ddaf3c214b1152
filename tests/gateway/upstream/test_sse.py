"""An engine's events on their way through: whole, unchanged, and understood where it matters."""

import itertools
import json
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.continuation.sent_tokens import NO_TOKEN_IDS, SentTokens, TokenMemory
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.table import DIALECTS
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.sse import SseScanner, filter_first_chunks
from fairlead_testing.engines.scripted import event, token, usage

LIMIT = 1_048_576
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
TRICKY = 'she said "usage":{"x":1} and "error" and [DONE] and data: \n\n and "finish_reason":"abort"'


def through(pieces: list[bytes], *, strip: bool = True, whole_first: bool = False) -> tuple[bytes, SseScanner]:
    events = SseScanner(strip_usage=strip, max_event_bytes=LIMIT)
    out = (
        filter_first_chunks(events, pieces[:1]) + events.filter_chunks(pieces[1:])
        if whole_first
        else events.filter_chunks(pieces)
    )
    return b"".join(out), events


@given(
    st.lists(st.text(max_size=30), max_size=8),
    st.lists(st.integers(0, 5_000), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_however_the_stream_is_cut_the_same_bytes_come_out(
    texts: list[str], cuts: list[int], carriage: bool, first: bool
) -> None:
    shown = b"".join(event(token(text)) for text in [*texts, TRICKY])
    done = event("[DONE]")
    hidden = event(usage(9, 8, 7))
    if carriage:
        shown, done, hidden = (part.replace(b"\n", b"\r\n") for part in (shown, done, hidden))
    stream = shown + hidden + done
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
    out, events = through(pieces, whole_first=first)
    assert out == shown + done
    assert events.is_done
    assert events.error is None
    assert (events.usage.prompt_tokens, events.usage.cached_tokens, events.usage.completion_tokens) == (9, 8, 7)


FRAME = (b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"', b'"},"finish_reason":null}]}\n\n')
PARTS = st.sampled_from(
    [b"usage", b"error", b'"usage":{"prompt_tokens":1}', b'"error":{}', b'"', b"\\", b"[DONE]", b"[", b"x", b"\n\n"]
)


@pytest.mark.parametrize("key", [b"content", b"reasoning", b"reasoning_content"])
@given(texts=st.lists(st.lists(PARTS, max_size=3), min_size=1, max_size=6))
def test_event_with_a_known_frame_ends_as_if_it_were_searched(key: bytes, texts: list[list[bytes]]) -> None:
    frame = FRAME[0].replace(b"content", key), FRAME[1]
    known = SseScanner(strip_usage=True, max_event_bytes=LIMIT)
    searched = SseScanner(strip_usage=True, max_event_bytes=LIMIT)
    known.filter_chunks([b"first".join(frame)])
    searched.filter_chunks([b"first".join(frame)])
    assert known._head == frame[0]
    for text in texts:
        chunk = b"".join(text).join(frame)
        searched._head_bytes = 0
        assert known.filter_chunks([chunk]) == searched.filter_chunks([chunk])
        for name in ("event_count", "is_done", "is_aborted", "error", "waiting_bytes"):
            assert getattr(known, name) == getattr(searched, name)
        assert (known.usage is None) == (searched.usage is None)


def test_event_in_tiny_pieces_is_joined_and_one_without_an_end_is_refused() -> None:
    shown = event(token("x" * 100_000))
    out, events = through([shown[n : n + 1] for n in range(len(shown))])
    assert (out, events.error) == (shown, None)
    _, events = through([b"data: ", *[b"a"] * (LIMIT + 1), event("[DONE]")])
    assert events.error is not None
    assert not events.is_done


def test_counts_that_cannot_be_are_not_known() -> None:
    _, events = through([event(usage(-5, -1, 2**62)), event("[DONE]")])
    counts = (events.usage.prompt_tokens, events.usage.cached_tokens, events.usage.completion_tokens)
    assert counts == (None, None, None)


def test_what_models_write_is_never_mistaken_for_what_engines_say() -> None:
    out, events = through([event(token(TRICKY)), event(token('{"error":{"code":500}}'))])
    assert out == event(token(TRICKY)) + event(token('{"error":{"code":500}}'))
    assert (events.error, events.usage, events.is_done, events.is_aborted) == (None, None, False, False)


def test_usage_in_every_event_is_passed_on_and_the_last_one_counts() -> None:
    pieces = [event(token("a") | {"usage": {"prompt_tokens": 5, "completion_tokens": n}}) for n in (1, 2, 3)]
    out, events = through(pieces, strip=False)
    assert out == b"".join(pieces)
    assert events.usage.completion_tokens == 3


def test_usage_null_changes_nothing() -> None:
    pieces = [event(token("a") | {"usage": None, "error": None})]
    out, events = through(pieces)
    assert out == pieces[0]
    assert (events.usage, events.error) == (None, None)


def test_an_error_ends_the_stream_and_says_which_status_it_meant() -> None:
    error = {"error": {"message": "full", "type": "x", "param": None, "code": 503}}
    out, events = through([event(token("a")) + event(error) + event("[DONE]")])
    assert out == event(token("a"))
    assert not events.is_done
    assert (events.error.status, events.error.message) == (503, "full")


def test_more_empty_lines_than_one_and_both_kinds_of_line_ends_are_an_event_stream() -> None:
    shown = event(token("a")).replace(b"\n", b"\r\n") + event(token("b")) + b"\n"
    for pieces in (
        [shown + event(usage(9, 8, 7)) + event("[DONE]")],
        [shown[:9], shown[9:], event(usage(9, 8, 7)), event("[DONE]")],
    ):
        out, events = through(pieces, whole_first=True)
        assert out == shown + event("[DONE]")
        assert (events.error, events.is_done) == (None, True)
        assert events.usage is not None


def test_an_event_that_never_ends_is_a_fault() -> None:
    _, events = through([b"data: " + b"x" * 600_000, b"x" * 600_000])
    assert events.error is not None


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_no_bytes_raise_anything(pieces: list[bytes]) -> None:
    through(pieces, whole_first=True)
    through(pieces)


@given(VALUES)
def test_no_error_value_raises_anything(value: object) -> None:
    through([event(json.dumps({"error": value}))])
    through([event(json.dumps({"usage": value, "choices": []}))])


@pytest.mark.parametrize("filter_read", [SseScanner.filter_chunks, filter_first_chunks])
def test_flood_of_empty_events_in_small_chunks_ends_the_stream(
    filter_read: Callable[[SseScanner, list[bytes]], list[bytes]],
) -> None:
    scanner = SseScanner(strip_usage=False, max_event_bytes=65_536)
    for _ in range(3):
        assert filter_read(scanner, [b":\n\n" * 32] * 2) == [b":\n\n" * 32] * 2, "each read counts for itself"
    assert filter_read(scanner, [b":\n\n" * 32] * 64) == [b":\n\n" * 32] * 2
    assert scanner.error.status == 502


@pytest.mark.parametrize("empty", [b":\n\n", b"\n:\n\n", b"id:\n\n"])
def test_flood_of_empty_events_ends_the_stream(empty: bytes) -> None:
    shown = [event(token("a")), empty * 64, event(token("b"))]  # a stream that was paused has some
    out, events = through([*shown, empty * 65, event(token("c"))])
    assert out == b"".join(shown)
    assert events.error.status == 502


@pytest.mark.parametrize("key", ["prompt_token_ids", "token_ids"])
@pytest.mark.parametrize("has_begun", [False, True])
def test_token_ids_without_an_end_do_not_stop_the_worker(key: str, has_begun: bool) -> None:
    scanner = SseScanner(strip_usage=True, max_event_bytes=LIMIT)
    tokens = scanner.tokens = SentTokens(TokenMemory(1_000), strips=True)
    opening = b'data: {"prompt_token_ids":[5],"token_ids":[6]}\n\n'
    broken = b'data: {"%b":[7\n\n' % key.encode()
    assert scanner.filter_chunks([opening, broken] if has_begun else [broken])[-1:] == [broken]
    assert tokens.problem == ("" if has_begun and key[0] == "p" else NO_TOKEN_IDS)


_PIECES = (b"a\n", b"a\r", b"data:\n", b"data: 1\r\n", b"event: x\n", b": c\n", b"id:\n", b"retry: 1\n", b"data\r")


@pytest.mark.parametrize("read_bytes", [1_000, 65_536, 10_000_000])
@pytest.mark.parametrize(
    "grammar", [None, *{id(one.grammar): one.grammar for one in DIALECTS.values() if one.grammar}.values()]
)
@pytest.mark.parametrize("line", _PIECES)
def test_event_of_very_many_lines_is_refused_before_they_are_read(
    line: bytes, grammar: EventGrammar | None, read_bytes: int
) -> None:
    scanner = (
        SseScanner(strip_usage=True, max_event_bytes=LIMIT)
        if grammar is None
        else NamedEventScanner(grammar, max_event_bytes=LIMIT)
    )
    stream = b": x\n" + line * 10_000 + b"\n\n"
    out: list[bytes] = []
    for start in range(0, len(stream), read_bytes):
        out += scanner.filter_chunks([stream[start : start + read_bytes]])
        if scanner.error is not None:
            break
    assert scanner.error is not None
    assert "too many lines" in scanner.error.message
    assert out == []


def _calls_of(work: Callable[[], object]) -> int:
    """Returns how many calls some work makes, of Python and of C functions."""
    calls = 0

    def count(_frame: object, kind: str, _argument: object) -> None:
        nonlocal calls
        calls += kind in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


_REPEATED = (b'"token_ids":[],', b'"prompt_token_ids":[],', b'"finish_reason":"a",', b'"choices":[],', b'"usage":null,')


@pytest.mark.parametrize("tokens", [None, "", NO_TOKEN_IDS])
@pytest.mark.parametrize("member", _REPEATED)
def test_members_that_an_event_repeats_cost_no_calls_beyond_a_limit(member: bytes, tokens: str | None) -> None:
    def read(count: int) -> int:
        scanner = SseScanner(strip_usage=True, max_event_bytes=8 * LIMIT)
        if tokens is not None:
            scanner.tokens = SentTokens(TokenMemory(1_000), strips=True)
            scanner.tokens.problem = tokens
        data = b'data: {"choices":[],%b"x":1}\n\n' % (member * count)
        return _calls_of(lambda: scanner.filter_chunks([data]))

    assert read(100_000) <= read(20_000)


@pytest.mark.parametrize(("choices", "passes"), [(b"[]", False), (b"[ ]", False), (b"null", False), (b"[{}]", True)])
def test_usage_event_is_one_without_choices(choices: bytes, passes: bool) -> None:
    body = b'data: {"choices":%b,"usage":{"prompt_tokens":3}}\n\n' % choices
    out, events = through([body])
    assert out == (body if passes else b"")
    assert events.usage is not None
    assert events.usage.prompt_tokens == 3


@pytest.mark.parametrize("choices", [b"{}", b"7", b'"a"', b"true"])
def test_choices_that_are_no_list_are_a_fault(choices: bytes) -> None:
    _, events = through([b'data: {"choices":%b,"usage":null}\n\n' % choices])
    assert events.error is not None


@pytest.mark.parametrize("key", [b"prompt_token_ids", b"token_ids"])
def test_ids_of_many_bytes_are_not_decoded(key: bytes) -> None:
    scanner = SseScanner(strip_usage=True, max_event_bytes=32 * LIMIT)
    tokens = scanner.tokens = SentTokens(TokenMemory(1_000_000_000), strips=True)
    opening = b'data: {"prompt_token_ids":[5],"token_ids":[6]}\n\n'
    long = b'data: {"%b":[%b1]}\n\n' % (key, b"1," * 9_000_000)
    scanner.filter_chunks([long] if key.startswith(b"prompt") else [opening, long])
    assert tokens.problem == NO_TOKEN_IDS
    assert len(tokens.ids) <= 2
