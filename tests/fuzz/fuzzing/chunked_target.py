"""A fuzz target: chunked bodies with extensions and trailers, with low limits.

The second reader looks for line ends in the whole input. Where it finds a complete body, the parser
finds the same one, however the bytes arrive. What the parser refuses has no valid continuation.
"""

import re
from collections.abc import Hashable
from itertools import pairwise

from fuzzing.target import CANARY, Target, cuttings, refused

from fairlead.limits import Limits
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.request_parser import ChunkedBody

LIMITS = Limits(body_bytes=64, chunk_extension_bytes=12, trailer_bytes=40, body_wire_factor=1_000)
FRUGAL = Limits(body_bytes=64, chunk_extension_bytes=12, trailer_bytes=40, body_wire_factor=2)
_HEX = frozenset(b"0123456789abcdefABCDEF")
_NAME = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TEXT = frozenset(b"\t") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))
_FORBIDDEN = (b"content-length", b"transfer-encoding", b"host")
_CONTINUATIONS = (
    *(b"\r\n0\r\n\r\n", b"\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"\n\r\n", b"\n", b"\r\n", b"x:\r\n\r\n"),
    *(b"x\r\n0\r\n\r\n", b":\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n", b";\r\nx\r\n0\r\n\r\n", b"x\n0\r\n\r\n"),
)
Result = tuple[str, bytes, bytes]
"""`complete` with body and rest, `refused` or `waits`."""


def check(data: bytes) -> Hashable:
    """Checks that parser and second reader agree, however the bytes arrive."""
    meant = expected(data)
    outcome = read([data], LIMITS)
    if meant[0] == "complete" or outcome[0] == "complete":
        assert outcome == meant, "another body"
    if meant[0] == "refused":
        assert outcome[0] == "refused", "a malformed body is accepted"
    if meant[0] == "waits" and outcome[0] == "refused":
        assert all(expected(data + more)[0] != "complete" for more in _CONTINUATIONS), "a good start is refused"
    singles = [data[number : number + 1] for number in range(len(data))]
    for pieces in (*cuttings(data), singles):
        assert read(pieces, LIMITS) == outcome, "cut otherwise, another body"
        assert read(pieces, FRUGAL) in (outcome, ("refused", b"", b"")), "limits change what a body is"
    return outcome[0], min(len(outcome[1]), 9), outcome[2] != b"", min(data.count(b";"), 4), min(data.count(b":"), 4)


def read(pieces: list[bytes], limits: Limits) -> Result:
    """Returns what the parser finds in these pieces."""
    reader = ChunkedBody(limits)
    rest: bytes | None = None
    try:
        for piece in pieces:
            if rest is not None:
                rest += piece
                continue
            rest = reader.feed(piece)
            assert len(reader) <= sum(map(len, pieces)), "more is kept than has arrived"
    except GatewayError as error:
        refused(error)
        return "refused", b"", b""
    return ("waits", b"", b"") if rest is None else ("complete", reader.body(), rest)


def expected(data: bytes) -> Result:
    """Returns what the second reader finds."""
    body, at = b"", 0
    while True:
        line, after = _line(data, at)
        if line is None:
            return "waits", b"", b""
        size, _, extension = line.partition(b";")
        if not size or len(size) > 16 or not _HEX.issuperset(size) or not _TEXT.issuperset(extension):
            return "refused", b"", b""
        if len(extension) > LIMITS.chunk_extension_bytes:
            return "refused", b"", b""
        count = int(size, 16)
        if not count:
            return _trailers(data, after, body)
        if len(body) + count > LIMITS.body_bytes:
            is_too_long = count > LIMITS.body_bytes or len(body) + len(data) - after > LIMITS.body_bytes
            return ("refused" if is_too_long else "waits"), b"", b""
        body, at = body + data[after : after + count], after + count + 2
        if len(data) < at:
            return _partial_end(data[at - 2 :])
        if data[at - 2 : at] != b"\r\n":
            return "refused", b"", b""


def _partial_end(arrived: bytes) -> Result:
    """Returns whether the bytes behind a chunk may become its end."""
    return ("waits" if b"\r\n".startswith(arrived) else "refused"), b"", b""


def _trailers(data: bytes, at: int, body: bytes) -> Result:
    count = 0
    while True:
        line, after = _line(data, at)
        if line is None:
            return "waits", b"", b""
        if not line:
            return "complete", body, data[after:]
        name, colon, value = line.partition(b":")
        count += after - at
        if not name or not colon or not _NAME.issuperset(name) or not _TEXT.issuperset(value):
            return "refused", b"", b""
        if name.lower() in _FORBIDDEN or count > LIMITS.trailer_bytes:
            return "refused", b"", b""
        at = after


def _line(data: bytes, at: int) -> tuple[bytes | None, int]:
    """Returns the line that starts at `at`, and where the next one does; None if it has no end."""
    end = data.find(b"\r\n", at)
    return (None, at) if end < 0 else (data[at:end], end + 2)


WORDS = [
    b"\r\n", b"\r", b"\n", b"0\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"3;a=b\r\nabc\r\n", b"1;\r\nx\r\n", b";", b":", b"=",
    b'1;a="\r\n"\r\nx\r\n', b"x:y\r\n", b"Trailer: x\r\n", b"content-length: 3\r\n", b"Host: x\r\n", b" : x\r\n", b"\t", b" ",
    b"transfer-encoding:chunked\r\n", b"0000000000000001\r\nx\r\n", b"00000000000000001", b"fffffffffffffff\r\n", b"40\r\n",
    b"0x1\r\n", b"+1\r\n", b"-1\r\n", b"1 \r\n", b"e" * 13, b"y" * 40, b"\0", b"\x7f", b"\xff", b"\x0b", CANARY,
]  # fmt: skip
PIECES = re.compile(rb"[^\r\n]*\r\n|[^\r\n]+|[\r\n]")
_PLAIN = [
    b"5\r\nhello\r\n",
    b"3;a=b\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0;last\r\nx: y\r\nz:\r\n\r\n",
    b"1;aaaaaaaaaaaa\r\nx\r\n",
]
SEEDS = [
    *_PLAIN,
    *[first + second for first, second in pairwise(_PLAIN)],
    b"".join(_PLAIN),
    _PLAIN[0] + _PLAIN[3] + b"GET /",
]
CHUNKED = Target("chunked", "chunk extensions and trailers", check, SEEDS, WORDS, PIECES, 0.04)
