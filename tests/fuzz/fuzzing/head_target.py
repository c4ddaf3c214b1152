"""A fuzz target: the bytes of a client's connection.

However the bytes arrive, they give the same requests, and a second reader sees the same ones.

The second reader is llhttp, which engines and other servers use. Where both accept, method, body
and the next request must be the same; else a request could be hidden in another. llhttp also reads
the message for the engine: one request, framed by its length, without the client's own framing.
"""

import re
from collections.abc import Hashable
from zlib import crc32

import httptools
from fuzzing.splice_target import FLEET
from fuzzing.target import CANARY, Target, cuttings, refused

from fairlead.limits import Limits
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_parser import RequestHead, RequestParser, SharedTemplates
from fairlead_gateway.openai.request import is_passthrough_path, parse_passthrough_request, total_timeout
from fairlead_gateway.upstream.request_encoder import encode_request, request_prefix

LIMITS = Limits()
TIGHT = Limits(
    request_line_bytes=64, header_bytes=200, headers_count=6, body_bytes=64, trailer_bytes=48, body_wire_factor=3
)
_HOPS = frozenset(
    {b"transfer-encoding", b"te", b"trailer", b"upgrade", b"keep-alive", b"expect", b"cookie", b"authorization"}
)
_TARGET = re.compile(r"[!-~]+")
_OURS = frozenset(
    {b"host", b"content-length", b"content-type", b"x-request-id", b"x-data-parallel-rank", b"x-fairlead-hops"}
)
_URL = "http://10.0.0.1:8000"
Requests = list[tuple[RequestHead, bytes]]


def judged(pieces: list[bytes], limits: Limits) -> tuple[Requests, GatewayError | None]:
    """Returns the requests in these pieces, and the refusal after them."""
    reader = RequestParser(limits, SharedTemplates())
    requests: Requests = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (request := reader.next_request()) is not None:
                requests.append(request)
        reader.on_eof()
    except GatewayError as error:
        return requests, refused(error)
    return requests, None


def check(data: bytes) -> Hashable:
    """Checks that whole and cut bytes, llhttp and the message for the engine agree."""
    requests, refusal = judged([data], LIMITS)
    for pieces in cuttings(data):
        again, refusal_again = judged(pieces, LIMITS)
        assert summaries(again) == summaries(requests), "cut otherwise, other requests"
        assert said(refusal_again) == said(refusal), "cut otherwise, another refusal"
    tight, _ = judged(next(cuttings(data)), TIGHT)
    assert summaries(tight) == summaries(requests)[: len(tight)], "limits change what a request is"
    second(data, requests, refusal)
    for head, body in requests[:2]:
        forwarded(head, body)
    code = said(refusal)
    return (
        code,
        len(requests),
        tuple(
            (head.method, head.version, head.length is None, head.keep_alive, len(head.fields))
            for head, _ in requests[:3]
        ),
    )


def summaries(requests: Requests) -> list[tuple[object, ...]]:
    """Returns the properties of each request."""
    return [
        (head.method, head.path, head.query, head.version, head.length, head.keep_alive, tuple(head.fields), body)
        for head, body in requests
    ]


def said(refusal: GatewayError | None) -> tuple[int, str] | None:
    """Returns a refusal without its text."""
    return (refusal.status, refusal.code) if refusal is not None else None


class _Second:
    """The requests that llhttp reads."""

    def __init__(self) -> None:
        self.whole: list[tuple[str, bytes, bool, bytes, list[tuple[bytes, bytes]]]] = []
        self.upgraded = False
        self.on_message_begin()

    def on_message_begin(self) -> None:
        """Starts a request."""
        self.url = b""
        self.parts: list[bytes] = []
        self.fields: list[tuple[bytes, bytes]] = []
        self.in_head = True

    def on_url(self, part: bytes) -> None:
        """Adds a piece of the target."""
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a field; trailers follow the body."""
        if self.in_head:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Ends the head."""
        self.in_head = False

    def on_body(self, part: bytes) -> None:
        """Adds a piece of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """Ends the request."""
        method = self.parser.get_method().decode()
        self.whole.append((method, self.url, self.parser.should_keep_alive(), b"".join(self.parts), self.fields))

    def read(self, data: bytes) -> bool:
        """Feeds bytes; returns whether llhttp accepts all of them."""
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.upgraded = True
        except httptools.HttpParserError:
            return False
        return True


def second(data: bytes, requests: Requests, refusal: GatewayError | None) -> None:
    """Checks that llhttp completes the same requests before it refuses or stops."""
    if not requests:
        return
    other = _Second()
    other.read(data)
    for (head, body), (method, target, keep, body_other, _) in zip(requests, other.whole, strict=False):
        if method == "CONNECT" or head.get(b"upgrade") is not None:
            return  # llhttp changes the protocol here, which Fairlead does not
        assert (head.method, body) == (method, body_other), "llhttp sees another request"
        assert target.isascii()
        if not head.keep_alive or not keep:
            return  # the rest is not read
    if refusal is None and not other.upgraded:
        assert len(other.whole) <= len(requests), "llhttp sees more requests"


def forwarded(head: RequestHead, body: bytes) -> None:
    """Checks that an engine reads one request with the same body, framed by length."""
    target, method = head.path, "POST"
    try:
        total_timeout(head, bool(len(body) % 2), LIMITS)
    except GatewayError as error:
        refused(error)
    if is_passthrough_path(head.path):
        try:
            ask = parse_passthrough_request(head, body, FLEET, LIMITS)
            target, method, body = ask.target or head.path, ask.method, ask.body
        except GatewayError as error:
            refused(error)
    else:
        target = "/v1/completions"
    assert _TARGET.fullmatch(target), target
    prefix = request_prefix(method, target, _URL, "0123456789ab")
    message = b"".join(encode_request(prefix, head, body, "req-1", dp_rank=crc32(body) % 4, extra_headers=""))
    engine = _Second()
    assert engine.read(message), "llhttp refuses what engines get"
    ((method_read, target_read, keep, body_read, fields),) = engine.whole
    names = [name.lower() for name, _ in fields]
    assert (method_read, target_read, keep, body_read) == (method, target.encode(), True, body)
    assert not _HOPS.intersection(names), "a field of the client's connection is passed on"
    assert not any(b"_" in name for name in names)
    assert names.count(b"host") == 1
    assert names.count(b"content-length") == (method != "GET")
    assert names.count(b"x-request-id") == names.count(b"x-data-parallel-rank") == 1
    named = head.get(b"connection") or b""
    for hop in named.split(b","):
        assert hop.strip(b" \t").lower() not in set(names) - _OURS


WORDS = [
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b" ", b"\t", b":", b": ", b"\0", b"\x7f", b"\xff", b",", b";", b"=", b'"',
    b"0\r\n\r\n", b"5\r\nhello\r\n",
    b"3;a=b\r\nabc\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0\r\nContent-Length: 3\r\n\r\n",
    b"00000000000000005\r\nhello\r\n", b"fffffffffffffff\r\n",
    b"GET / HTTP/1.1\r\n", b"GET /v1/models?model=tiny HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\n",
    b"POST /v1/odd?a=b%20c&model=tiny HTTP/1.1\r\n",
    b"GET /v1/odd?model=tiny&kv_transfer_params=x HTTP/1.1\r\n", b"GET http://x:1/v1/a%2fb HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Host: x\r\n", b"host: [::1]:80\r\n",
    b"Host : x\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"content-length:5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
    b"Content_Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:\tChunked \r\n",
    b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive, x-a\r\n", b"X-A: b\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Content-Encoding: identity\r\n",
    b"Content-Type: application/json\r\n",
    b"X-Fairlead-Instance: x\r\n", b"X-Request-Id: a\r\n", b"Cookie: a\r\n", b"Authorization: Bearer a\r\n",
    b" folded\r\n", b"\tfolded\r\n", b"X: \xe4\r\n", b"X-Request-Timeout: 2.5\r\n",
    b"X-Request-Timeout: \xb2\r\n", b"X-Request-Timeout: 1e400\r\n", b"X-Request-Timeout: 1m30s\r\n",
    b"X-Request-Timeout: nan\r\n",
    b"hello", b'{"model":"tiny"}', b"Content-Length: 16\r\n", CANARY, b"X-" + CANARY + b": " + CANARY + b"\r\n",
]  # fmt: skip
PIECES = re.compile(rb"[^\r\n]*\r\n|[^\r\n]+|[\r\n]")
_PLAIN = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
_CHUNKED = (
    b"POST /v1/odd HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    b"3;a=b\r\n\r\n\r\r\n4\r\n\n\r\n\r\r\n0\r\nTrailer: x\r\n\r\n"
)
_GET = b"GET /v1/odd?model=tiny&x=%20 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x-a\r\nX-A: c\r\nX_B: d\r\n\r\n"
_JSON = (
    b'POST /v1/odd HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\nContent-Type: application/json\r\n\r\n{"model":"tiny"}'
)
_OLD = b"POST /a%20b HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}"
SEEDS = [
    _PLAIN,
    _CHUNKED,
    _GET,
    _JSON,
    _OLD,
    _PLAIN + _CHUNKED + b"\r\n" + _GET,
    _CHUNKED + _PLAIN,
    _GET + _GET + _JSON,
    b"\r\n\r\n" + _PLAIN,
]
HEAD = Target(
    "head", "client bytes: head, chunked body, pipelining; framing for engines", check, SEEDS, WORDS, PIECES, 0.16
)
