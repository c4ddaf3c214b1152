"""What gateways tell one another, as bytes: values behind a schema byte, and nothing in them is believed before it is checked.

An entry of the stream ``sent`` has two fields: ``g`` says which run of which gateway wrote it, so that a gateway passes over its own
without reading them, and ``d`` holds a ``Batch``. Hashes of prompts are 64-bit numbers, little-endian, eight bytes each; without
the installation's secret nothing can be told from them, and the prompt itself is never here.
"""

import hashlib
from typing import Annotated, Final, TypeAlias

import msgspec

from fairlead_kvstore.redis.codec import SCHEMA

GATEWAY_FIELD: Final = b"g"
DATA_FIELD: Final = b"d"
HASH_BYTES: Final = 8
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
_Tokens = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]
_Name = Annotated[str, msgspec.Meta(max_length=1_024)]
_Hash = Annotated[int, msgspec.Meta(ge=0)]
PeerLoad: TypeAlias = tuple[_Count, _Count, _Seconds, _Tokens]
"""Of one instance: requests in flight, those without a first token, seconds of prefill before them, tokens."""
SentPrompt: TypeAlias = tuple[_Name, bytes, _Hash, _Hash]
"""A prompt was sent to an instance: its id, the hashes of the prompt's blocks, the hash of its end, and that of the session (0:
none), which has the instance as a candidate for its next turn."""


class PeerBatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one gateway has to tell of one model. ``number`` counts its batches of the model from 1, so that a lost one is seen;
    ``within`` is in how many seconds at most the next one comes. ``loads`` are all that it has in flight, None where they are as
    they were. ``secret`` tells those apart whose hashes mean something else; ``leaves``: it ends in good order, and has nothing in
    flight."""

    number: _Count
    within: _Seconds
    secret: bytes = b""
    sent: tuple[SentPrompt, ...] = ()
    loads: dict[_Name, PeerLoad] | None = None
    leaves: bool = False


class HotPrefixTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """The hashes of hot prefixes, eight bytes each and sorted: of prompts for instances that answer, and for those that only
    prefill."""

    serving: bytes = b""
    prefilling: bytes = b""


_batches = msgspec.msgpack.Decoder(PeerBatch)
_tables = msgspec.msgpack.Decoder(HotPrefixTable)


def secret_fingerprint(secret: bytes) -> bytes:
    """Tells installations' secrets apart and says nothing else of them."""
    return hashlib.blake2b(b"which secret keys the hashes", key=secret[:64], digest_size=8).digest()


def decode_batch(data: bytes) -> PeerBatch | None:
    """None for what is damaged, out of bounds or of another schema."""
    if data[:1] != SCHEMA:
        return None
    try:
        batch = _batches.decode(data[1:])
    except (msgspec.DecodeError, RecursionError):
        return None
    if any(len(hashes) % HASH_BYTES or tail >> 64 or pin >> 64 for _, hashes, tail, pin in batch.sent):
        return None
    return batch


def decode_table(data: bytes, max_prefixes: int) -> HotPrefixTable | None:
    """None for what is damaged, of more than ``most`` entries, or of another schema."""
    if data[:1] != SCHEMA or len(data) > 2 * HASH_BYTES * max_prefixes + 64:
        return None
    try:
        table = _tables.decode(data[1:])
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if len(table.serving) % HASH_BYTES or len(table.prefilling) % HASH_BYTES else table
