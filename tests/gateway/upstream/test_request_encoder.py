"""The text of what Fairlead says in heads: the same as any formatting would write, only faster."""

import re

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.upstream.request_encoder import (
    RequestPrefixCache,
    RouteHeaderCache,
    relayed_headers,
    server_timing,
)

SECONDS = st.floats(0.0, 5_000.0)


@given(SECONDS, SECONDS)
def test_times_are_milliseconds_with_three_decimals(own: float, engine: float) -> None:
    match = re.fullmatch(r"gateway;dur=(\d+\.\d{3}), engine;dur=(\d+\.\d{3})", server_timing(own, engine))
    assert abs(float(match[1]) - own * 1e3) <= 0.000501
    assert abs(float(match[2]) - engine * 1e3) <= 0.000501


def test_times_of_no_engine_are_left_out() -> None:
    assert server_timing(0.0, -1.0) == "gateway;dur=0.000"
    assert server_timing(0.000042, -1.0) == "gateway;dur=0.042"
    assert server_timing(1.25, 0.0) == "gateway;dur=1250.000, engine;dur=0.000"
    assert server_timing(0.001, -1.0, 2.0005) == "gateway;dur=1.000, queue;dur=2000.500"
    assert server_timing(0.001, 0.5, 0.0105) == "gateway;dur=1.000, engine;dur=500.000, queue;dur=10.500"


def test_the_beginning_of_a_request_is_the_same_whether_it_was_kept_or_not() -> None:
    starts = RequestPrefixCache("0123456789ab")
    for _ in range(2):
        for method, target, url, text in (
            ("POST", "/v1/a", "http://e:1", "POST /v1/a HTTP/1.1\r\nhost: e:1\r\n"),
            ("GET", "/v1/a", "http://e:1", "GET /v1/a HTTP/1.1\r\nhost: e:1\r\n"),
            ("POST", "/v1/b", "http://e:1/base/", "POST /base/v1/b HTTP/1.1\r\nhost: e:1\r\n"),
        ):
            head = starts.get(method, target, url).text
            framing = "content-type: application/json\r\ncontent-length: " if method == "POST" else ""
            assert head == f"{text}x-fairlead-hops: 0123456789ab\r\n{framing}"


def test_an_instance_is_named_in_a_way_that_a_head_can_hold() -> None:
    named = RouteHeaderCache()
    for _ in range(2):
        assert named.get("pod-1/8000/0") == "x-fairlead-instance: pod-1/8000/0\r\nx-fairlead-reason: "
        assert named.get("a\r\nb: c") == "x-fairlead-instance: a??b:?c\r\nx-fairlead-reason: "


def test_of_an_engines_head_only_what_is_listed_comes_back() -> None:
    fields = {b"x-a": b"1", b"warning": b"w\xe9", b"content-type": b"text/x", b"retry-after": b"1\r\nx: y"}
    assert relayed_headers(fields) == "content-type: text/x\r\nwarning: w\xe9\r\n"
    assert relayed_headers(fields, exclude=b"content-type") == "warning: w\xe9\r\n"
