"""Answers under idempotency keys: what is kept, for how long, in how much memory, and for whom."""

from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.errors import BadRequest, IdempotencyKeyReused
from fairlead_gateway.idempotency.answer_table import (
    FAILED,
    MEMORY,
    TOO_LONG,
    AnswerHead,
    AnswerReader,
    AnswerTable,
    KeyedAnswer,
    check_key,
)

LIMITS = replace(Limits(), idempotency_window_seconds=100.0, idempotency_answer_bytes=1_000, idempotency_bytes=10_000)
ACME, GLOBEX = CallerKey("acme"), CallerKey("globex")
PRINT = b"fingerprint"


class Reader(AnswerReader):
    """A reader that takes all chunks when it may."""

    def __init__(self, answer: KeyedAnswer) -> None:
        super().__init__()
        self.answer = answer
        self.is_paused = False
        self.read = b""
        answer.readers.append(self)

    def on_changed(self) -> None:
        """Takes what is there."""
        if not self.is_paused:
            chunks = self.answer.unread_chunks(self.position)
            self.read += b"".join(chunks)
            self.position += len(chunks)


def _start(table: AnswerTable, key: bytes = b"k", caller: CallerKey = ANONYMOUS) -> KeyedAnswer:
    return table.start(caller, key, PRINT)


def _finish(table: AnswerTable, answer: KeyedAnswer, body: bytes = b"body", status: int = 200) -> KeyedAnswer:
    answer.head = AnswerHead(status, "", "req-1", content_type="application/json")
    table.add(answer, [body])
    table.end(answer, 0.0)
    return answer


def test_one_key_finds_the_running_answer_and_then_the_ended_one() -> None:
    table = AnswerTable(LIMITS)
    assert table.find(ANONYMOUS, b"k", PRINT, 0.0) is None
    answer = _start(table)
    assert table.find(ANONYMOUS, b"k", PRINT, 0.0) is answer
    assert answer.is_running
    _finish(table, answer)
    assert table.find(ANONYMOUS, b"k", PRINT, 99.0) is answer
    assert (answer.is_running, answer.lost, answer.chunks) == (False, "", [b"body"])


def test_the_window_counts_from_the_end_of_the_answer() -> None:
    table = AnswerTable(LIMITS)
    answer = _start(table)
    assert table.find(ANONYMOUS, b"k", PRINT, 1_000.0) is answer  # it runs
    answer.head = AnswerHead(200, "", "req-1")
    table.end(answer, 1_000.0)
    assert table.find(ANONYMOUS, b"k", PRINT, 1_099.9) is answer
    assert table.find(ANONYMOUS, b"k", PRINT, 1_100.0) is None
    assert (len(table), table.size) == (0, 0)


def test_another_request_under_the_same_key_is_refused_until_the_window_is_over() -> None:
    table = AnswerTable(LIMITS)
    _finish(table, _start(table))
    with pytest.raises(IdempotencyKeyReused) as caught:
        table.find(ANONYMOUS, b"k", b"another", 1.0)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        422,
        "idempotency_key_reused",
        "idempotency-key",
    )
    assert table.find(ANONYMOUS, b"k", b"another", 100.0) is None


def test_keys_of_two_callers_never_meet() -> None:
    table = AnswerTable(LIMITS)
    _finish(table, _start(table, caller=ACME))
    assert table.find(GLOBEX, b"k", PRINT, 0.0) is None
    assert table.find(GLOBEX, b"k", b"another", 0.0) is None


@pytest.mark.parametrize(
    ("status", "lost"), [(200, ""), (400, ""), (404, ""), (408, FAILED), (409, FAILED), (429, FAILED), (503, FAILED)]
)
def test_answers_that_are_to_be_tried_again_are_not_kept(status: int, lost: str) -> None:
    table = AnswerTable(LIMITS)
    assert _finish(table, _start(table), status=status).lost == lost


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_broken_stream_is_not_kept(is_cut: bool) -> None:
    table = AnswerTable(LIMITS)
    answer = _start(table)
    answer.head = AnswerHead(200, "", "req-1")
    answer.is_cut = is_cut
    table.end(answer, 0.0, has_failed=not is_cut)
    assert answer.lost == FAILED
    found = table.find(ANONYMOUS, b"k", PRINT, 0.0)
    assert found is answer
    again = _start(table)
    assert table.find(ANONYMOUS, b"k", PRINT, 0.0) is again


def test_an_answer_that_grows_too_long_is_lost_and_its_readers_go_on() -> None:
    table = AnswerTable(LIMITS)
    answer = _start(table)
    quick, slow = Reader(answer), Reader(answer)
    table.add(answer, [b"a" * 600])
    answer.notify()
    slow.is_paused = True
    table.add(answer, [b"b" * 600])
    answer.notify()
    assert answer.lost == TOO_LONG
    assert [len(chunk) for chunk in answer.chunks] == [600]  # what the slow reader has not read
    slow.is_paused = False
    answer.notify()
    assert answer.chunks == []
    assert quick.read == slow.read == b"a" * 600 + b"b" * 600


def test_memory_is_taken_from_the_caller_with_most_and_its_oldest_answer() -> None:
    table = AnswerTable(LIMITS)
    small = _finish(table, _start(table, b"0", ACME))
    large = [_finish(table, _start(table, b"%d" % number, GLOBEX), b"x" * 900) for number in range(5)]
    assert table.size <= LIMITS.idempotency_bytes
    assert small.lost == ""
    assert [answer.lost for answer in large] == [MEMORY, "", "", "", ""]
    assert large[0].chunks == []


def test_any_number_of_keys_stays_within_the_bound() -> None:
    table = AnswerTable(LIMITS)
    for number in range(200):
        _finish(table, _start(table, b"%d" % number))
        assert table.size <= LIMITS.idempotency_bytes
    assert len(table) < 20
    table.expire(1_000.0)
    assert (len(table), table.size) == (0, 0)


def test_without_ended_answers_the_one_that_grows_is_lost() -> None:
    table = AnswerTable(LIMITS)
    running = [_start(table, b"%d" % number) for number in range(8)]
    for answer in running:
        table.add(answer, [b"x" * 900])
    assert running[-1].lost == MEMORY
    assert table.size <= LIMITS.idempotency_bytes + 1_024
    for answer in running:
        answer.head = AnswerHead(200, "", "req-1")
        table.end(answer, 0.0)
    table.expire(1_000.0)
    assert (len(table), table.size) == (0, 0)


def test_chunks_of_an_ended_answer_are_joined_for_later_readers() -> None:
    table = AnswerTable(LIMITS)
    answer = _start(table)
    reader = Reader(answer)
    answer.head = AnswerHead(200, "", "req-1")
    for _ in range(10):
        table.add(answer, [b"abc"])
    table.end(answer, 0.0)
    answer.notify()
    table.compact(answer)
    assert answer.chunks == [b"abc" * 10]
    later = Reader(answer)
    answer.notify()
    assert reader.read == later.read == b"abc" * 10


@pytest.mark.parametrize("values", [[b""], [b"\xff"], [b"a\tb"], [b"x" * 256], [b"a", b"a"]])
def test_invalid_keys_are_refused_by_the_name_of_the_header(values: list[bytes]) -> None:
    with pytest.raises(BadRequest) as caught:
        check_key(values, 255)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "invalid_idempotency_key",
        "idempotency-key",
    )
    assert str(caught.value).startswith("Idempotency-Key: ")


def test_keys_are_opaque_text() -> None:
    for key in (b"x" * 255, b'"8e03978e-40d5-43dd-bc93-6894a57f9324"', b"stainless-python-retry-1"):
        assert check_key([key], 255) == key
