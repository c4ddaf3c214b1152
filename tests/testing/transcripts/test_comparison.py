"""Recordings and comparison of answers: masks, shapes and reported differences."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.transcripts import comparison
from fairlead_testing.transcripts.recording import (
    HttpResponse,
    is_complete,
    is_recording,
    parse_response,
    read_recording,
)

HEADERS = (("date", "Thu, 01 Jan 2026 00:00:00 GMT"), ("server", "uvicorn"), ("content-length", "9"))


def answer(
    document: Any, *, status: int = 200, spaced: bool = False, more: tuple[tuple[str, str], ...] = ()
) -> HttpResponse:
    """Returns a JSON answer."""
    body = json.dumps(document, separators=None if spaced else (",", ":")).encode()
    return HttpResponse(status, "OK", (*HEADERS, ("content-type", "application/json"), *more), body)


def stream(*events: Any, chunks: int | None = None) -> HttpResponse:
    """Returns a stream of these events, one chunk each."""
    framed = [
        b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n" for event in events
    ]
    body = b"".join(framed)
    head = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))
    return HttpResponse(200, "OK", head, body, tuple(framed) if chunks is None else (body,) * chunks)


def token(text: str, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    """Returns a content event of a chat stream."""
    return {
        "id": "chatcmpl-0123456789abcdef",
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}],
    }


def test_a_recording_is_read_with_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "00-x.txt"
    path.write_bytes(
        b"# 00-x:\n# who\n===== REQUEST =====\nPOST /v1/x HTTP/1.1\r\nHost: a:1\r\nContent-Length: 2\r\n\r\n{}"
        b"\n===== RESPONSE =====\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-A: b: c\r\n\r\n[]"
        b"\n===== RECV TIMELINE (s since send, bytes) =====\n0.1:3\n"
    )
    recording = read_recording(path)
    assert (recording.request.method, recording.request.target, recording.request.body) == ("POST", "/v1/x", b"{}")
    assert recording.response is not None
    assert (recording.response.status, recording.response.body) == (200, b"[]")
    assert recording.response.fields["x-a"] == "b: c"


def test_a_recording_whose_line_ends_were_lost_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(
        b'===== REQUEST =====\nPOST / HTTP/1.1\nHost: a:1\nContent-Length: 90\n\n{"a": 1}\n===== RESPONSE =====\n'
        b"HTTP/1.1 404 Not Found\ncontent-length: 99\n\n{}\n===== RECV TIMELINE"
    )
    recording = read_recording(path)
    assert recording.request.to_bytes("b:2").endswith(b'Host: b:2\r\nContent-Length: 8\r\n\r\n{"a": 1}')
    assert recording.response is not None
    assert (recording.response.reason, recording.response.body) == ("Not Found", b"{}")


def test_a_recording_without_an_answer_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(
        b"===== REQUEST =====\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\n===== RESPONSE =====\n\n===== RECV TIMELINE"
    )
    assert read_recording(path).response is None


def test_notes_of_a_scenario_are_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"run 1: silence\n")
    assert not is_recording(path.read_bytes())
    with pytest.raises(ValueError, match="not a request/response recording"):
        read_recording(path)


def test_chunks_are_taken_apart() -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    parsed = parse_response(raw)
    assert (parsed.body, parsed.chunks) == (b"abcde", (b"abc", b"de"))
    assert [is_complete(raw[:cut]) for cut in (10, len(raw) - 5, len(raw))] == [False, False, True]


def test_a_plain_body_is_whole_at_its_length() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    assert [is_complete(raw[:cut]) for cut in (20, len(raw) - 1, len(raw))] == [False, False, True]


def test_ids_times_and_generated_text_are_masked_and_nothing_else() -> None:
    document = {
        "id": "chatcmpl-0123456789abcdef",
        "created": 1_795_151_084,
        "model": "tiny",
        "system_fingerprint": "vllm-0.32.0-720638f4",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "blah"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9},
    }
    masked = comparison.mask_document(document)
    assert (masked["id"], masked["created"], masked["system_fingerprint"]) == ("chatcmpl-*", "*", "vllm-0.32.0-*")
    assert masked["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "*"},
        "finish_reason": "length",
    }
    assert (masked["model"], masked["usage"]) == ("tiny", {"prompt_tokens": 9})


def test_an_id_that_the_client_chose_is_not_masked() -> None:
    assert comparison.mask_document({"id": "cmpl-client-req-42"}) == {"id": "cmpl-client-req-42"}
    assert comparison.mask_header("X-Request-Id", "abc-123") == ("x-request-id", "abc-123")


def test_what_is_not_generated_keeps_its_text() -> None:
    assert comparison.mask_document({"text": "a", "content": "b", "token_ids": [1]}) == {
        "text": "a",
        "content": "b",
        "token_ids": [1],
    }


def test_answers_that_differ_in_ids_and_text_alone_are_exactly_alike() -> None:
    first = {"id": "cmpl-0123456789abcdef", "created": 1, "choices": [{"text": "abc", "token_ids": [1, 2]}]}
    second = {"id": "cmpl-fedcba9876543210", "created": 2, "choices": [{"text": "x", "token_ids": [3]}]}
    assert comparison.compare_exact(answer(first), answer(second)) == []


@pytest.mark.parametrize(
    "live",
    [
        answer({"error": {"code": 400, "message": "b"}}),
        answer({"error": {"message": "a", "code": 400}}),
        answer({"error": {"code": 400, "message": "a"}}, spaced=True),
        answer({"error": {"code": 400, "message": "a"}}, status=401),
        answer({"error": {"code": 400, "message": "a"}}, more=(("vary", "Origin"),)),
    ],
    ids=["a word", "the order of keys", "spaces", "the status", "a header"],
)
def test_an_exact_comparison_sees(live: HttpResponse) -> None:
    assert comparison.compare_exact(answer({"error": {"code": 400, "message": "a"}}), live)


def test_a_shape_is_keys_and_types_at_every_depth() -> None:
    recorded = answer({"a": [{"b": 1}, {"b": 2.5}], "c": None})
    assert comparison.compare_shape(recorded, answer({"c": None, "a": [{"b": 3}]})) == []
    assert comparison.compare_shape(recorded, answer({"a": [{"b": "3"}], "c": None})) == [
        'body.a[].b: recorded "number", live "string"'
    ]
    assert comparison.compare_shape(recorded, answer({"a": [{"b": 3, "d": 0}], "c": None}))
    assert comparison.compare_shape(recorded, answer({"a": [], "c": None}))
    assert comparison.compare_shape(recorded, answer({"a": [{"b": 3}]})) == ['body.c: missing, recorded as "null"']


def test_a_shape_keeps_words_of_closed_sets_and_whether_something_was_cached() -> None:
    recorded = answer({"finish_reason": "length", "usage": {"cached_tokens": 384}})
    assert comparison.compare_shape(recorded, answer({"finish_reason": "length", "usage": {"cached_tokens": 16}})) == []
    assert comparison.compare_shape(recorded, answer({"finish_reason": "stop", "usage": {"cached_tokens": 16}}))
    assert comparison.compare_shape(recorded, answer({"finish_reason": "length", "usage": {"cached_tokens": 0}}))


def test_maps_keyed_by_tokens_have_the_shape_of_their_values() -> None:
    recorded = answer({"top_logprobs": [None, {" a": -1.0, "b": -2.0}]})
    assert comparison.compare_shape(recorded, answer({"top_logprobs": [{"z": -9.5}, None]})) == []
    assert comparison.compare_shape(recorded, answer({"top_logprobs": [None, {"z": "-9"}]}))


def test_streams_of_unlike_length_have_the_same_shape_but_are_not_equal() -> None:
    short = stream(token("a"), token("b", finish="length"), "[DONE]")
    long = stream(token("a"), token("x"), token("y"), token("b", finish="length"), "[DONE]")
    assert comparison.compare_shape(short, long) == []
    assert comparison.compare_exact(short, long)
    assert comparison.compare_exact(short, stream(token("q"), token("r", finish="length"), "[DONE]")) == []


def test_choices_may_interleave() -> None:
    first = stream(token("a", 0), token("b", 1), token("c", 0, "stop"), token("d", 1, "stop"), "[DONE]")
    second = stream(token("a", 0), token("c", 0, "stop"), token("b", 1), token("d", 1, "stop"), "[DONE]")
    assert comparison.compare_shape(first, second) == []


def test_a_missing_end_mark_or_another_kind_of_event_is_seen() -> None:
    recorded = stream(token("a"), token("b", finish="length"), {"choices": [], "usage": {}}, "[DONE]")
    assert comparison.compare_shape(recorded, stream(token("a"), token("b", finish="length"), "[DONE]"))
    assert comparison.compare_shape(
        recorded, stream(token("a"), token("b", finish="length"), {"choices": [], "usage": {}})
    )
    assert comparison.compare_shape(recorded, stream({"error": {"code": 500}}, "[DONE]"))


def test_an_exact_stream_has_one_chunk_an_event() -> None:
    events = (token("a"), token("b", finish="length"), "[DONE]")
    assert comparison.compare_exact(stream(*events), stream(*events, chunks=1)) == [
        "stream: only one of the two has one event per chunk"
    ]
