"""The stream of ZMTP: however its bytes are cut, and whatever bytes a peer sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.events.zmtp import ZmtpStream, message

MAX_BYTES = 4_000
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"
MESSAGES = st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=4), max_size=8)


def stream() -> ZmtpStream:
    return ZmtpStream("SUB", max_bytes=MAX_BYTES, max_parts=3)


def received(reader: ZmtpStream) -> list[list[bytes]]:
    messages = []
    while (parts := reader.next_message()) is not None:
        if parts:
            messages.append(parts)
    return messages


@given(MESSAGES, st.lists(st.integers(1, 700), min_size=1))
def test_messages_are_the_same_however_their_bytes_are_cut(messages: list[list[bytes]], cuts: list[int]) -> None:
    sent = GREETING + READY + b"".join(map(message, messages))
    reader, read, at, turn = stream(), [], 0, 0
    while at < len(sent):
        size = cuts[turn % len(cuts)]
        reader.feed(sent[at : at + size])
        read += received(reader)
        at, turn = at + size, turn + 1
    assert read == messages
    assert reader.held_bytes == 0


@given(st.binary(max_size=20_000), st.booleans())
def test_any_bytes_are_refused_or_held_within_the_bound(sent: bytes, shakes_hands: bool) -> None:
    reader = stream()
    if shakes_hands:
        sent = GREETING + READY + sent
    try:
        for at in range(0, len(sent), 512):
            reader.feed(sent[at : at + 512])
            received(reader)
            assert reader.held_bytes <= MAX_BYTES + 512
            assert len(reader.outgoing) <= 200 + 64 * (len(sent) // 7)
    except ProtocolError:
        pass


def test_parts_beyond_the_bound_are_dropped_but_counted() -> None:
    reader = stream()
    reader.feed(GREETING + READY + message([b"a"] * 20) + message([b"b"]))
    assert received(reader) == [[b"a"] * 4, [b"b"]], "one more than allowed, so that the reader sees it"
    reader.feed(message([b""] * (MAX_BYTES // 2 + 1)))
    with pytest.raises(ProtocolError, match="a message of more than 4000 bytes"):
        received(reader)


def test_largest_message_is_taken_and_a_larger_one_is_refused_before_it_arrives() -> None:
    reader = stream()
    reader.feed(GREETING + READY + message([bytes(MAX_BYTES - 9)]))
    assert received(reader) == [[bytes(MAX_BYTES - 9)]]
    reader.feed(message([bytes(MAX_BYTES - 8)])[:9])
    with pytest.raises(ProtocolError):
        received(reader)


@pytest.mark.parametrize(("minor", "subscription"), [(0, b"\x00\x01\x01"), (1, b"\x04\x0a\x09SUBSCRIBE")])
def test_it_subscribes_in_the_words_of_the_peer_s_version(minor: int, subscription: bytes) -> None:
    reader = stream()
    reader.outgoing.clear()
    reader.feed(GREETING[:11] + bytes([minor]) + GREETING[12:] + READY)
    assert received(reader) == []
    assert reader.outgoing == subscription


def test_very_many_parts_take_many_short_calls() -> None:
    reader = ZmtpStream("SUB", max_bytes=65_536, max_parts=3)
    sent = message([b""] * 16_384)
    reader.feed(GREETING + READY + sent)
    held, steps = len(sent), []
    while not (parts := reader.next_message()):
        assert parts == []
        steps.append(held - reader.held_bytes)
        held = reader.held_bytes
    assert parts == [b""] * 4
    assert max(steps[1:]) == 128, "64 frames"
