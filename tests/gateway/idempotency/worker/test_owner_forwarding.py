"""The bytes of forwarded requests, and which worker owns a key."""

import asyncio
from collections import Counter

import pytest

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import parse_head
from fairlead_gateway.idempotency.messages import GatewayList
from fairlead_gateway.idempotency.worker.keyed_requests import request_fingerprint
from fairlead_gateway.idempotency.worker.owner_forwarding import (
    FINAL,
    FOR_GATEWAY,
    FOR_WORKER,
    IF_KNOWN,
    OwnerForwarding,
    encode_forwarded,
    owner_index,
    rank_gateways,
)
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_testing.simulated.event_loop import running_clock

pytestmark = pytest.mark.simulated


def _request(head: bytes, body: bytes = b"{}") -> HttpRequest:
    return HttpRequest(parse_head(head, Limits()), body, "mine", 0.0, 0.0)


def test_a_forwarded_request_has_the_fields_of_its_client_and_its_own_framing() -> None:
    sent = _request(
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nHost: x:8000\r\nAuthorization: Bearer k\r\nX-Request-Id: y\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\nExpect: 100-continue\r\nIdempotency-Key: k-1"
    )
    assert b"".join(encode_forwarded(sent, "mine", FOR_WORKER)) == (
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nhost: x:8000\r\nauthorization: Bearer k\r\n"
        b"idempotency-key: k-1\r\nx-fairlead-key-owner: worker\r\nx-request-id: mine\r\ncontent-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/v1/audio/transcriptions?x=1", b"/v1/a%20b/%C3%A9"])
def test_the_owner_reads_the_same_request(target: bytes) -> None:
    sent = _request(b"POST %b HTTP/1.0\r\nContent-Type: application/json" % target)
    head, _, body = b"".join(encode_forwarded(sent, "mine", FOR_WORKER)).partition(b"\r\n\r\n")
    received = _request(head, body)
    assert (received.head.path, received.head.query) == (sent.head.path, sent.head.query)
    assert received.head.get(b"host") == b"127.0.0.1"
    assert request_fingerprint(received) == request_fingerprint(sent)


async def test_gateways_are_asked_that_may_have_computed_a_key() -> None:
    first, second, third, lost = rank_gateways(ANONYMOUS, b"k", [f"10.0.0.{number}:80" for number in range(4)])
    limits = Limits()
    forwarding = OwnerForwarding(
        WorkerRuntime(running_clock(), limits, asyncio.get_running_loop()),
        1,
        [],
        fail=lambda *_: None,
        on_owner_lost=lambda: None,
    )
    assert forwarding.owns_keys
    assert forwarding.gateways_before(ANONYMOUS, b"k") == []

    forwarding.update_gateways(GatewayList(second, [second, third]))
    assert forwarding.gateways_before(ANONYMOUS, b"k") == []
    assert forwarding.earlier_owners(ANONYMOUS, b"k") == [third]  # it was the owner until now
    await asyncio.sleep(2 * limits.idempotency_window_seconds)
    assert forwarding.earlier_owners(ANONYMOUS, b"k") == []

    forwarding.update_gateways(GatewayList(second, [first, second, third]))
    assert forwarding.gateways_before(ANONYMOUS, b"k") == [first]
    forwarding.update_gateways(GatewayList(second, [second, third], leaving=[first]))
    assert forwarding.gateways_before(ANONYMOUS, b"k") == []
    assert forwarding.earlier_owners(ANONYMOUS, b"k") == [first]
    assert forwarding.has_lost_owner(ANONYMOUS, b"k")
    forwarding.update_gateways(GatewayList(second, [second, third], lost=[first, lost]))
    assert forwarding.has_lost_owner(ANONYMOUS, b"k")
    forwarding.update_gateways(GatewayList(second, [second, third], lost=[lost]))
    assert not forwarding.has_lost_owner(ANONYMOUS, b"k")

    forwarding.update_gateways(GatewayList(second, [third]))
    assert not forwarding.owns_keys
    assert forwarding.gateways_for(ANONYMOUS, b"k") == [third]  # it takes no new keys
    assert forwarding.gateways_before(ANONYMOUS, b"k") == []
    forwarding.close()


def test_keys_are_spread_over_workers_by_caller_and_key() -> None:
    owners = Counter([owner_index(ANONYMOUS, b"%d" % number, 4) for number in range(4_000)])
    assert all(900 < count < 1_100 for count in owners.values())
    assert {owner_index(CallerKey(name), b"k", 4) for name in "abcdefgh"} == {0, 1, 2, 3}
    assert owner_index(CallerKey("a"), b"bc", 1_000) != owner_index(CallerKey("ab"), b"c", 1_000)


def test_the_loss_of_a_gateway_moves_only_its_keys() -> None:
    gateways = [f"10.0.0.{number}:8080" for number in range(1, 5)]
    orders = [rank_gateways(ANONYMOUS, b"%d" % number, gateways) for number in range(2_000)]
    assert all(400 < count < 600 for count in Counter(order[0] for order in orders).values())
    for number, order in enumerate(orders):
        lost = gateways[number % 4]
        left = [gateway for gateway in gateways if gateway != lost]
        assert rank_gateways(ANONYMOUS, b"%d" % number, left) == [gateway for gateway in order if gateway != lost]


@pytest.mark.parametrize(
    ("address", "from_gateway", "from_worker"),
    [
        ("10.0.0.2", True, False),
        ("::ffff:10.0.0.2", True, False),
        ("fd00::7", True, False),
        ("10.0.0.3", True, False),
        ("127.0.0.6", True, True),
        ("::1", True, True),
        ("10.0.0.4", False, False),
        ("10.0.0.22", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
async def test_header_of_an_owner_counts_from_listed_gateways_and_this_machine_alone(
    address: str | None, from_gateway: bool, from_worker: bool
) -> None:
    runtime = WorkerRuntime(running_clock(), Limits(), asyncio.get_running_loop())
    forwarding = OwnerForwarding(runtime, 1, [], fail=lambda *_: None, on_owner_lost=lambda: None)
    forwarding.update_gateways(
        GatewayList("10.0.0.1:80", ["10.0.0.1:80", "10.0.0.2:80", "[fd00::7]:80"], ["10.0.0.3:80"], ["10.0.0.4:80"])
    )
    for value in (FOR_GATEWAY, FOR_GATEWAY + FINAL, FOR_GATEWAY + IF_KNOWN):
        assert forwarding.is_trusted_sender(address, value) is from_gateway
    for value in (FOR_WORKER, FOR_WORKER + FINAL):
        assert forwarding.is_trusted_sender(address, value) is from_worker
