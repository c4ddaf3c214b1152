"""A fuzz target: the header that names the gateways which a request has passed.

The second reader splits the header by hand. A request that passes is forwarded: the next gateway
sees this gateway and all before it, and this gateway refuses it when it comes back.
"""

import re
from collections.abc import Hashable, Sequence

import httptools
from fuzzing.target import Target, refused

from fairlead_gateway.errors import BadRequest, GatewayLoop
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.upstream.request_encoder import (
    HOP_HEADER,
    check_hops,
    create_hop_id,
    encode_request,
    request_prefix,
)
from fairlead_gateway.upstream.request_encoder import HOPS as MAX_HOPS

OWN = create_hop_id(b"this gateway")
_HEX = frozenset(b"0123456789abcdef")
_ID_BYTES = 12
_URL = "http://10.0.0.1:8000"


def check(data: bytes) -> Hashable:
    """Checks the verdict on the header lines in `data`, one a line, and what is forwarded."""
    values = [line.strip(b" \t\r") for line in data.split(b"\n")]
    meant = expected(values)
    outcome = verdict(values, OWN)
    assert outcome == meant, f"{outcome}, not {meant}"
    if outcome != "passes":
        return outcome, len(values)
    ids = named(values)
    sent = forwarded(values, OWN)
    assert named(sent) == [OWN, *ids], "the next gateway sees other gateways"
    assert verdict(sent, OWN) == "loop", "the request may come back"
    hops, number = sent, 0
    while verdict(hops, other := f"{number:012x}") == "passes":
        hops, number = forwarded(hops, other), number + 1
    assert number <= MAX_HOPS, "a chain of gateways has no end"
    return outcome, len(ids), len(values)


def expected(values: Sequence[bytes]) -> str:
    """Returns the verdict of the second reader."""
    joined = b",".join(values)
    if joined != joined.strip(b" \t"):
        return "malformed"
    parts = [part.strip(b" \t") for part in joined.split(b",")]
    if any(len(part) != _ID_BYTES or not _HEX.issuperset(part) for part in parts):
        return "malformed"
    if OWN.encode() in parts:
        return "loop"
    return "loop" if len(parts) > MAX_HOPS else "passes"


def verdict(values: Sequence[bytes], own: str) -> str:
    """Returns the verdict of a gateway with this id."""
    try:
        check_hops(head_of(values), own)
    except GatewayLoop:
        return "loop"
    except BadRequest as error:
        refused(error)
        return "malformed"
    return "passes"


def head_of(values: Sequence[bytes]) -> RequestHead:
    """Returns a request with these header lines among others."""
    fields = [(b"host", b"x"), *((HOP_HEADER, value) for value in values), (b"connection", HOP_HEADER)]
    return RequestHead("POST", "/v1/completions", fields, 11, 2, keep_alive=True, expects_continue=False)


def named(values: Sequence[bytes]) -> list[str]:
    """Returns the ids in order."""
    return [part.strip(b" \t").decode() for value in values for part in value.split(b",")]


class _HopReader:
    """Reads the header lines of a request with llhttp."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Records one line."""
        if name.lower() == HOP_HEADER:
            self.values.append(value)


def forwarded(values: Sequence[bytes], own: str) -> list[bytes]:
    """Returns the header lines that an engine gets."""
    prefix = request_prefix("POST", "/v1/completions", _URL, own)
    reader = _HopReader()
    message = b"".join(encode_request(prefix, head_of(values), b"{}", "req-1", dp_rank=None, extra_headers=""))
    httptools.HttpRequestParser(reader).feed_data(message)
    return reader.values


_OTHERS = [f"{number:012x}".encode() for number in (1, 0xABCDEF, 2**48 - 1)]
WORDS = [
    *_OTHERS, OWN.encode(), OWN.upper().encode(), OWN[:-1].encode(), b"0" * 13, b",", b", ", b" ,\t", b"\n", b" ", b"\t",
    b"\r", b";", b"\0", b"\xff", b"g" * 12, b"0x0123456789", b",,", b"\xc2\xa0",
]  # fmt: skip
PIECES = re.compile(rb"[0-9a-f]+|[^0-9a-f]")
SEEDS = [
    *_OTHERS,
    OWN.encode(),
    b", ".join(_OTHERS),
    b"\n".join(_OTHERS),
    b",".join([*_OTHERS, *_OTHERS]),
    b" , ".join([*_OTHERS, OWN.encode()]),
]
HOPS = Target("hops", "the header of passed gateways", check, SEEDS, WORDS, PIECES, 0.02)
