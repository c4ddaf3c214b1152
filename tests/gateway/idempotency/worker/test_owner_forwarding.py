"""The bytes of forwarded requests, and which worker owns a key."""

from collections import Counter

import pytest

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import parse_head
from fairlead_gateway.idempotency.worker.keyed_requests import request_fingerprint
from fairlead_gateway.idempotency.worker.owner_forwarding import encode_forwarded, owner_index


def _request(head: bytes, body: bytes = b"{}") -> HttpRequest:
    return HttpRequest(parse_head(head, Limits()), body, "mine", 0.0, 0.0)


def test_a_forwarded_request_has_the_fields_of_its_client_and_its_own_framing() -> None:
    sent = _request(
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nHost: x:8000\r\nAuthorization: Bearer k\r\nX-Request-Id: y\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\nExpect: 100-continue\r\nIdempotency-Key: k-1"
    )
    assert b"".join(encode_forwarded(sent, "mine")) == (
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nhost: x:8000\r\nauthorization: Bearer k\r\n"
        b"idempotency-key: k-1\r\nx-fairlead-key-owner: 1\r\nx-request-id: mine\r\ncontent-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/v1/audio/transcriptions?x=1", b"/v1/a%20b/%C3%A9"])
def test_the_owner_reads_the_same_request(target: bytes) -> None:
    sent = _request(b"POST %b HTTP/1.0\r\nContent-Type: application/json" % target)
    head, _, body = b"".join(encode_forwarded(sent, "mine")).partition(b"\r\n\r\n")
    received = _request(head, body)
    assert (received.head.path, received.head.query) == (sent.head.path, sent.head.query)
    assert received.head.get(b"host") == b"127.0.0.1"
    assert request_fingerprint(received) == request_fingerprint(sent)


def test_keys_are_spread_over_workers_by_caller_and_key() -> None:
    owners = Counter([owner_index(ANONYMOUS, b"%d" % number, 4) for number in range(4_000)])
    assert all(900 < count < 1_100 for count in owners.values())
    assert {owner_index(CallerKey(name), b"k", 4) for name in "abcdefgh"} == {0, 1, 2, 3}
    assert owner_index(CallerKey("a"), b"bc", 1_000) != owner_index(CallerKey("ab"), b"c", 1_000)
