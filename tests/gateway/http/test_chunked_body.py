"""Chunked bodies that arrive in tiny parts: the work grows with the bytes and with nothing else."""

import re
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_gateway.errors import BodyTooLarge, GatewayError, HeadTooLarge
from fairlead_gateway.http import request_parser
from fairlead_gateway.http.request_parser import ChunkedBody

LIMITS = Limits()
pytestmark = pytest.mark.skipif(
    not (request_parser.__file__ or "").endswith(".py"), reason="patterns of a compiled module cannot be counted"
)


class CountedPattern:
    """A pattern that counts the bytes that it may read."""

    def __init__(self, pattern: re.Pattern[bytes], counts: list[int]) -> None:
        self._pattern = pattern
        self._counts = counts

    def match(self, data: bytes, position: int = 0) -> re.Match[bytes] | None:
        match = self._pattern.match(data, position)
        self._counts.append(match.end() - position if match is not None else len(data) - position)
        return match

    def fullmatch(self, data: bytes, position: int = 0) -> re.Match[bytes] | None:
        self._counts.append(len(data) - position)
        return self._pattern.fullmatch(data, position)


def examined_bytes(monkeypatch: pytest.MonkeyPatch, data: bytes) -> int:
    """Returns how many bytes patterns read while `data` arrives byte by byte."""
    counts: list[int] = []
    with monkeypatch.context() as patches:
        for name, value in list(vars(request_parser).items()):
            if isinstance(value, re.Pattern):
                counted: Any = CountedPattern(value, counts)
                patches.setattr(request_parser, name, counted)
        feed_bytes(ChunkedBody(LIMITS), data)
    return sum(counts)


def feed_bytes(body: ChunkedBody, data: bytes) -> None:
    """Feeds the bytes one by one."""
    for position in range(len(data)):
        body.feed(data[position : position + 1])


@pytest.mark.parametrize("start", [b"0\r\nx: ", b"0\r\n"], ids=["the text of a trailer", "the name of a trailer"])
def test_a_trailer_that_arrives_byte_by_byte_is_read_in_linear_time(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = start + b"a" * 4_000
    assert examined_bytes(monkeypatch, data) < 4 * len(data)


def test_an_extension_that_arrives_byte_by_byte_is_read_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (b"1;" + b"a" * 250 + b"\r\nx\r\n") * 10
    assert examined_bytes(monkeypatch, data) < 4 * len(data)


@pytest.mark.parametrize("whole", [True, False])
def test_an_extension_of_more_than_256_bytes_is_refused(whole: bool) -> None:
    def feed(extension: int) -> ChunkedBody:
        body, data = ChunkedBody(LIMITS), b"1;" + b"a" * extension + b"\r\nx\r\n"
        for part in [data] if whole else [data[n : n + 1] for n in range(len(data))]:
            body.feed(part)
        return body

    assert feed(256).body() == b"x"
    with pytest.raises(BodyTooLarge, match="longer than 256 bytes"):
        feed(257)


def test_an_extension_without_an_end_is_refused_while_it_arrives() -> None:
    body = ChunkedBody(LIMITS)
    body.feed(b"1;")
    with pytest.raises(BodyTooLarge, match="extension"):
        feed_bytes(body, b"a" * 300)


def test_a_trailer_without_an_end_is_refused_while_it_arrives() -> None:
    body = ChunkedBody(LIMITS)
    body.feed(b"0\r\nx:")
    with pytest.raises(HeadTooLarge):
        feed_bytes(body, b"a" * (LIMITS.trailer_bytes + 1))


@pytest.mark.parametrize(
    "data",
    [b"1;a\rb", b"1;a\x00", b"0\r\nx:a\rb", b"0\r\nx ", b"0\r\nx:\x00", b"0\r\n\rx", b"1\rx", b"0\r\n:"],
)
def test_a_malformed_line_is_refused_at_its_first_wrong_byte(data: bytes) -> None:
    body = ChunkedBody(LIMITS)
    feed_bytes(body, data[:-1])
    with pytest.raises(GatewayError, match="malformed"):
        body.feed(data[-1:])
