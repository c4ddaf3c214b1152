"""Messages from Redis are validated when they are decoded."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.peers.peer_messages import (
    PEER_LOADS,
    PeerBatch,
    PeerLoad,
    decode_batch,
    secret_fingerprint,
    split_loads,
)
from fairlead_gateway.routing.prefix.prefix_hash import PREFIX_BLOCKS
from fairlead_kvstore.redis.codec import encode

GOOD = PeerBatch(3, 0.5, b"print", (("e-0", bytes(16), 2**64 - 1, 2**64 - 2),), {"e-0": (1, 0, 0.5, 10.0)})


def test_what_was_written_is_read() -> None:
    assert decode_batch(encode(GOOD)) == GOOD


@pytest.mark.parametrize(
    "changed",
    [
        {"number": -1},
        {"within": math.nan},
        {"within": math.inf},
        {"within": -1.0},
        {"within": 61.0},
        {"sent": [["e-0", b"1234567", 0, 0]]},
        {"sent": [["e-0", bytes(8 * (PREFIX_BLOCKS + 1)), 0, 0]]},
        {"sent": [["e-0", b"", 2**64, 0]]},
        {"sent": [["x" * 2_000, b"", 0, 0]]},
        {"sent": [["e-0", b"", 0, 2**64]]},
        {"sent": "prompts"},
        {"sent": [["e-0", b"", 0, 0]] * 1_025},
        {"loads": {"e-0": [1, 1, math.inf, 0.0]}},
        {"loads": {"e-0": [-1, 0, 0.0, 0.0]}},
        {"loads": {"e-0": [2**62, 0, 0.0, 0.0]}},
        {"loads": {"e-0": [1]}},
    ],
)
def test_what_is_out_of_bounds_is_passed_over(changed: dict[str, object]) -> None:
    fields = msgspec.msgpack.decode(encode(GOOD)[1:]) | changed
    try:
        data = msgspec.msgpack.encode(fields)
    except OverflowError:
        return
    assert decode_batch(b"\x01" + data) is None


def test_batch_larger_than_any_gateway_writes_is_passed_over() -> None:
    prompts = tuple(("e-0", bytes(8 * 512), 1, 0) for _ in range(1_100))
    assert decode_batch(encode(PeerBatch(1, 0.5, sent=prompts[:500]))) is not None
    assert decode_batch(encode(PeerBatch(1, 0.5, sent=prompts))) is None


def test_requests_that_wait_in_a_gateway_are_apart_so_that_older_ones_read_the_loads() -> None:
    loads: dict[str, PeerLoad] = {"e-0": (5, 4, 0.5, 10.0, 3), "e-1": (1, 0, 0.0, 7.0, 0)}
    assigned, queued = split_loads(loads)
    assert (assigned["e-0"], queued) == ((5, 4, 0.5, 10.0), {"e-0": 3})
    assert decode_batch(encode(PeerBatch(1, 0.5, loads=assigned, queued=queued))).peer_loads() == loads
    assert PeerBatch(1, 0.5, loads=assigned).peer_loads() == {"e-0": (5, 4, 0.5, 10.0, 0), "e-1": loads["e-1"]}
    assert PeerBatch(1, 0.5, loads=assigned, queued={"e-1": 9}).peer_loads() == {
        "e-0": (5, 4, 0.5, 10.0, 0),
        "e-1": (1, 0, 0.0, 7.0, 1),
    }, "no more wait than are in flight"
    assert PeerBatch(1, 0.5, queued={"e-1": 9}).peer_loads() is None


def test_text_that_is_not_utf_8_is_passed_over() -> None:
    for data in (encode(GOOD), encode(PeerBatch(1, 1.0, loads={"e-0": (0, 0, 0.0, 0.0)}))):
        assert decode_batch(data) is not None
        assert decode_batch(data.replace(b"e-0", b"e\xff0")) is None


def test_another_schema_and_damage_are_passed_over_and_later_fields_are_ignored() -> None:
    data = encode(GOOD)
    assert decode_batch(b"\x02" + data[1:]) is None
    assert decode_batch(data[:-1]) is None
    later = msgspec.msgpack.encode(msgspec.msgpack.decode(data[1:]) | {"later": 1})
    assert decode_batch(b"\x01" + later) == GOOD


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    decode_batch(b"\x01" + data)


def test_fingerprints_of_secrets_differ() -> None:
    assert secret_fingerprint(b"one") != secret_fingerprint(b"two")
    assert len(secret_fingerprint(b"x" * 1_000)) == 8


def test_loads_of_more_instances_than_a_fleet_has_are_passed_over() -> None:
    most = PEER_LOADS
    loads = {f"i{number}": (1, 0, 0.5, 10.0) for number in range(most)}
    assert decode_batch(encode(PeerBatch(1, 0.5, loads=loads))) is not None
    assert decode_batch(encode(PeerBatch(1, 0.5, loads={**loads, "more": (1, 0, 0.5, 10.0)}))) is None
