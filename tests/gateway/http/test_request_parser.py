"""The request parser: any cutting of bytes gives the same requests, any bytes requests
or an error.
"""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_parser import RARE_FIELDS, RequestHead, RequestParser, SharedTemplates, parse_head
from fairlead_gateway.openai.request import TIMEOUT_HEADER
from fairlead_gateway.upstream.request_encoder import HOP_HEADER

LIMITS = Limits()
Requests = list[tuple[str, str, bytes]]

_PLAIN = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
_CHUNKED = (
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;a=b\r\n\r\n\r\r\n4\r\n\n\r\n\r\r\n0\r\nTrailer: x\r\n\r\n"
)
_WHOLE = _PLAIN + _CHUNKED + b"\r\n" + b"GET /b?c=d HTTP/1.1\r\nHost: x\r\n\r\n" + _CHUNKED + _PLAIN
_EXPECTED: Requests = [
    ("POST", "/v1/completions", b"hello"),
    ("POST", "/a", b"\r\n\r\n\r\n\r"),
    ("GET", "/b", b""),
    ("POST", "/a", b"\r\n\r\n\r\n\r"),
    ("POST", "/v1/completions", b"hello"),
]


def take(reader: RequestParser, requests: Requests) -> None:
    while (request := reader.next_request()) is not None:
        head: RequestHead = request[0]
        requests.append((head.method, head.path, request[1]))


@given(st.lists(st.integers(0, len(_WHOLE)), max_size=30))
def test_however_the_bytes_are_cut_the_requests_are_the_same(cuts: list[int]) -> None:
    reader = RequestParser(LIMITS, SharedTemplates())
    requests: Requests = []
    edges = [0, *sorted(cuts), len(_WHOLE)]
    for start, stop in itertools.pairwise(edges):
        reader.feed(_WHOLE[start:stop])
        take(reader, requests)
    assert requests == _EXPECTED
    assert reader.is_empty


def test_one_byte_at_a_time() -> None:
    reader = RequestParser(LIMITS, SharedTemplates())
    requests: Requests = []
    for number in range(len(_WHOLE)):
        reader.feed(_WHOLE[number : number + 1])
        take(reader, requests)
    assert requests == _EXPECTED


@given(st.binary(max_size=200), st.integers(0, len(_WHOLE)), st.integers(0, 40))
@example(b"\r", 0, 0)
@example(b"\n", 0, 0)
@example(b"\r\n", 0, 0)
@example(b"\r\n\r", 0, 0)
def test_any_bytes_anywhere_give_requests_or_a_refusal_and_nothing_else(noise: bytes, place: int, eaten: int) -> None:
    assert judged(_WHOLE[:place] + noise + _WHOLE[place + eaten :], 64)[1] in range(200, 500)


FRAGMENTS = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /v1 HTTP/1.1", b"GET / HTTP/1.0", b"!x / HTTP/1.1", b"GET http://x HTTP/1.1", b"\r\n", b"\r", b"\n",
        b"\r\n\r\n", b"Host: x", b"Host: y", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked",
        b"Expect: 100-continue", b"Connection: close", b"abc", b"0\r\n\r\n", b"3\r\nabc\r\n", b"0\r\nA: b\r\n\r\n", b" ", b":", b"\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
    ]
)  # fmt: skip


def judged(data: bytes, size: int, templates: SharedTemplates | None = None) -> tuple[Requests, int]:
    """Returns the requests in ``data``, read in pieces of ``size``, and the refusal's status."""
    reader = RequestParser(LIMITS, templates or SharedTemplates())
    requests: Requests = []
    try:
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
            take(reader, requests)
        reader.on_eof()
    except GatewayError as error:
        if not 400 <= error.status < 500:
            raise
        return requests, error.status
    return requests, 200


@given(st.lists(FRAGMENTS | st.binary(max_size=3), max_size=12))
def test_heads_of_other_connections_change_no_verdict(parts: list[bytes]) -> None:
    templates = SharedTemplates()
    for head in (b"Host: x\r\nContent-Length: 3", b"Content-Length: 3\r\nHost: x"):
        assert judged(b"POST /v1 HTTP/1.1\r\n%b\r\n\r\nabc" % head, 1_000, templates)[1] == 200
    data = b"".join(parts)
    assert judged(data, 1_000, templates) == judged(data, 1_000)


@pytest.mark.parametrize("length", [b"4", b"17", b"017", b"999999999999999", b"1000000000000000", b"-1", b"", b"0"])
def test_connection_takes_the_parsed_head_of_another_with_its_own_length(length: bytes) -> None:
    start = b"POST /v1?a=b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: "
    end = b"\r\nconnection: close\r\n\r\n"
    templates = SharedTemplates()
    first = RequestParser(LIMITS, templates)
    first.feed(start + b"3" + end + b"abc")
    parsed = first.next_request()
    assert parsed is not None
    data = start + length + end + b"abcdefghijklmnopqrstuvwxyz"
    assert judged(data, 1_000, templates) == judged(data, 1_000)
    if length in (b"4", b"17"):
        second = RequestParser(LIMITS, templates)
        second.feed(data)
        request = second.next_request()
        assert request is not None
        head, body = request
        assert (head.length, len(body)) == (int(length), int(length))
        assert head.fields is parsed[0].fields, "both connections hold one copy"
        assert (head.method, head.path, head.query, head.keep_alive) == ("POST", "/v1", b"a=b", False)


@pytest.mark.parametrize("name", sorted(RARE_FIELDS))
def test_rare_fields_are_found_in_the_first_head_and_in_its_copies(name: bytes) -> None:
    head = parse_head(b"POST /a HTTP/1.1\r\nHost: x\r\n%b: v" % name.title(), LIMITS)
    assert [head.get_rare(name), head.with_content_length(3).get_rare(name)] == [b"v", b"v"]
    plain = parse_head(b"POST /a HTTP/1.1\r\nHost: x", LIMITS)
    assert [plain.get_rare(name), plain.with_content_length(3).get_rare(name)] == [None, None]


def test_the_fields_that_most_requests_lack_are_among_the_rare_ones() -> None:
    assert {TIMEOUT_HEADER, HOP_HEADER} < RARE_FIELDS


def test_shared_heads_are_bounded_and_long_ones_are_not_shared() -> None:
    templates = SharedTemplates()

    def shares(head: bytes) -> bool:
        raw = b"POST /v1 HTTP/1.1\r\nhost: x\r\nx-a: %b\r\ncontent-length: 3" % head
        reader = RequestParser(LIMITS, templates)
        reader.feed(raw + b"\r\n\r\nabc")
        assert reader.next_request() is not None
        return templates.find(raw) is not None

    assert shares(b"first")
    assert all(shares(b"%d" % number) for number in range(64))
    assert templates.find(b"POST /v1 HTTP/1.1\r\nhost: x\r\nx-a: first\r\ncontent-length: 3") is None
    assert not shares(b"a" * 4_096)


@example([b"!x / HTTP/1.1", b"\r\n", b"Host: x", b"\r\n\r\n"])
@given(st.lists(FRAGMENTS | st.binary(max_size=3), max_size=12))
def test_whole_and_byte_by_byte_the_same_bytes_are_judged_the_same(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert judged(data, max(1, len(data))) == judged(data, 1)
