"""Compiled code divides bytes into the messages that Python finds, however they arrive."""

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.events import zmtp
from fairlead_kvstore.events.zmtp import ZmtpStream, message

OVERHEAD = 256
PARTS = st.one_of(st.binary(max_size=8), st.integers(0, 600).map(bytes))
MESSAGES = st.lists(PARTS, min_size=1, max_size=4) | st.lists(PARTS, min_size=3, max_size=3)
COMMAND = b"\x04\x05\x04PING"


def _stream() -> ZmtpStream:
    stream = ZmtpStream("SUB", max_bytes=1_300, max_parts=3)
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x03PUB"
    stream.feed(zmtp._GREETING + bytes((4, len(ready))) + ready)
    assert stream.next_message() == []
    return stream


def _read(chunks: list[bytes], most: int) -> tuple[list[list[bytes]], int, str]:
    """Returns all messages, what is left unread, and the error that ended the reading."""
    stream, found = _stream(), list[list[bytes]]()
    for chunk in chunks:
        stream.feed(chunk)
        while True:
            before = len(found)
            cost = stream.read_messages(OVERHEAD, most, found)
            assert cost == sum(sum(map(len, parts)) + OVERHEAD for parts in found[before:])
            try:
                parts = stream.next_message()
            except ProtocolError as error:
                return found, stream.held_bytes, error.message
            if parts is None:
                break
            if parts:
                found.append(parts)
    return found, stream.held_bytes, ""


@given(st.lists(MESSAGES | st.just([]), max_size=12), st.data())
def test_messages_are_the_same(
    native_modules: dict[str, ModuleType], messages: list[list[bytes]], data: st.DataObject
) -> None:
    text = bytearray(b"".join(message(parts) if parts else COMMAND for parts in messages))
    for at in data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=2)):
        if text:
            text[at] = data.draw(st.integers(0, 255))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [bytes(text[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = _read(chunks, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zmtp, "READ_MESSAGES", native_modules["frame_reader"].read_messages)
        for most in (1, 700, 100_000):
            assert _read(chunks, most) == expected


def test_nothing_is_read_before_the_first_byte(native_modules: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match="outside"):
        native_modules["frame_reader"].read_messages(bytearray(8), -1, 100, 0, 100, [])
