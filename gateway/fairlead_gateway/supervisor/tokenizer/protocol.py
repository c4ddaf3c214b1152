"""What the helper and the tokenizing process say to each other: frames of msgpack, each after its length (4 bytes, big-endian)."""

import msgspec


class TokenizeRequest(msgspec.Struct, array_like=True):
    """``text``: a JSON string as it stands in a request. ``path`` is the file that says how it is cut into tokens."""

    number: int
    path: str
    text: bytes
    special: bool


class TokenizeReply(msgspec.Struct, array_like=True):
    """``tokens``: 32-bit numbers in native order. ``problem``: why there are none, in words. ``note``: what people should know
    of the tokenizer."""

    number: int
    tokens: bytes = b""
    problem: str = ""
    note: str = ""


LENGTH_BYTES = 4
"""Bytes of a frame's length."""


def encode_frame(message: TokenizeRequest | TokenizeReply) -> bytes:
    """A message with its length before it."""
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload
