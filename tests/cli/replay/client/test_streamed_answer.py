"""A streamed answer in pieces: token counts and last events for any split of the bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_cli.replay.client.open_loop_client import StreamedAnswer, http_error_text
from fairlead_testing.engines import scripted
from fairlead_testing.engines.scripted import event

ROLE, DONE = event(scripted.role()), event("[DONE]")


def token(text: str, finish: str | None = None) -> bytes:
    return event(scripted.token(text, finish))


def usage(prompt: int, cached: int, output: int) -> bytes:
    return event(scripted.usage(prompt, cached, output))


def full_answer(tokens: int, *, cached: int = 16) -> bytes:
    texts = [token(f" w{number}", "length" if number == tokens - 1 else None) for number in range(tokens)]
    return b"".join([ROLE, *texts, usage(40, cached, tokens), DONE])


def read(*pieces: bytes) -> StreamedAnswer:
    answer = StreamedAnswer()
    for moment, piece in enumerate(pieces):
        answer.feed(piece, float(moment))
    answer.close()
    return answer


def test_token_time_is_the_arrival_of_its_chunk() -> None:
    answer = read(ROLE, token(" a"), token(" b"), token(" c", "stop"), usage(9, 0, 3), DONE)
    assert list(answer.times) == [1.0, 2.0, 3.0]
    assert (answer.output_tokens, answer.cached_tokens, answer.finish_reason) == (3, 0, "stop")
    assert answer.error is None


def test_tokens_of_one_chunk_share_its_time() -> None:
    answer = read(ROLE + token(" a") + token(" b"), token(" c") + usage(9, 8, 3) + DONE)
    assert list(answer.times) == [0.0, 0.0, 1.0]
    assert answer.cached_tokens == 8


@given(st.integers(1, 40), st.lists(st.integers(1, 400), max_size=80))
def test_token_count_does_not_depend_on_chunk_boundaries(tokens: int, sizes: list[int]) -> None:
    body, pieces = full_answer(tokens), []
    for size in sizes:
        piece, body = body[:size], body[size:]
        pieces += [piece] if piece else []
    answer = read(*pieces, *([body] if body else []))
    assert len(answer.times) == tokens
    assert (answer.output_tokens, answer.cached_tokens, answer.error) == (tokens, 16, None)


def test_blank_line_split_over_chunks_counts_once() -> None:
    body = full_answer(5)
    split = body.index(b"\n\n", body.index(b" w2")) + 1
    assert len(read(body[:split], body[split : split + 1], body[split + 1 :]).times) == 5


def test_comments_are_not_counted_as_tokens() -> None:
    pieces = [b": alive\n\n", ROLE, b": alive\n\n", token(" a"), b": alive\n\n", token(" b")]
    assert list(read(*pieces, usage(9, 0, 2), DONE).times) == [3.0, 5.0]


def test_chunk_with_leading_colon_inside_an_event_is_no_comment() -> None:
    second = token(" b")
    split = second.index(b":", 10)
    pieces = [ROLE, token(" a"), second[:split], second[split:], usage(9, 0, 2), DONE]
    assert len(read(*pieces).times) == 2


def test_error_event_before_the_first_token_is_reported() -> None:
    answer = read(event({"error": {"message": "too many requests waiting", "code": 503}}), DONE)
    assert answer.error == "too many requests waiting"
    assert not answer.times


def test_error_event_in_mid_stream_is_not_counted_as_token() -> None:
    answer = read(ROLE, token(" a"), token(" b"), event({"error": {"message": "died"}}), DONE)
    assert answer.error == "died"
    assert len(answer.times) == 2


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([ROLE, DONE], "without a token"),
        ([ROLE, token(" a"), token(" b", "stop"), DONE], "without usage"),
        ([ROLE, token(" a", "abort"), usage(9, 0, 1), DONE], "abort"),
    ],
)
def test_incomplete_answer_is_an_error(pieces: list[bytes], message: str) -> None:
    assert message in (read(*pieces).error or "")


def test_missing_cached_tokens_are_none_not_zero() -> None:
    without_details = event({"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens_details": None}})
    answer = read(ROLE, token(" a", "stop"), without_details, DONE)
    assert (answer.output_tokens, answer.cached_tokens, answer.error) == (1, None, None)


def test_finish_event_without_text_is_not_counted_as_token() -> None:
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    answer = read(ROLE, token(" a"), token(" b"), last, usage(9, 0, 2), DONE)
    assert len(answer.times) == 2
    assert answer.finish_reason == "stop"


def test_error_body_becomes_one_line() -> None:
    assert http_error_text(404, b'{"error": {"message": "no such model"}}') == "HTTP 404: no such model"
    assert http_error_text(502, b"<html>") == "HTTP 502"
