"""The messages between gateways in Redis: values behind a schema byte, validated when read.

An entry of the stream `sent` has two fields. `g` names the run of the gateway that wrote it, so
that a gateway skips its own entries. `d` is a `PeerBatch`. Hashes of prompts are 64-bit numbers,
little-endian. Without the installation's secret they reveal nothing, and the prompt itself is never
here.

The in-flight load of other gateways, in a row of the memory that workers read for a decision.

The supervisor writes it when a peer's message arrives. Workers read it like a sibling's row.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

import msgspec

from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import PREFIX_BLOCKS
from fairlead_kvstore.redis.codec import SCHEMA

PEER_LOADS: Final = 4_096
"""Limit: instances whose load one message of another gateway states; a message with more is
dropped.
"""
PEER_TENANTS: Final = 4_096
"""Limit: tenants of a model whose service gateways tell one another; that of more counts in one
gateway only.
"""

GATEWAY_FIELD: Final = b"g"
DATA_FIELD: Final = b"d"
HASH_BYTES: Final = 8
ENTRY_OVERHEAD_BYTES: Final = 128
"""Bytes per prompt besides its hashes: the instance's id and the hash of the prompt's end."""
DISPATCH_ENTRY_BYTES: Final = 65_536
"""Limit: one entry of the dispatch stream; more become several."""
_MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""The loads of all instances of a model take some 1 MiB, and prompts are split into batches."""
_MAX_PROMPT_BYTES: Final = HASH_BYTES * PREFIX_BLOCKS
"""The hashes of one prompt. Gateways send fewer, and this one keeps something for each length."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
_Tokens = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]
_BatchSeconds = Annotated[float, msgspec.Meta(ge=0.0, le=60.0)]
_Name = Annotated[str, msgspec.Meta(max_length=1_024)]
_Hash = Annotated[int, msgspec.Meta(ge=0)]
PeerLoad: TypeAlias = tuple[int, int, float, float, int]
"""Load of one instance: requests in flight, those without a first token, seconds of prefill,
tokens, and requests that wait in their gateway.
"""
_Loads = Annotated[dict[_Name, tuple[_Count, _Count, _Seconds, _Tokens]], msgspec.Meta(max_length=PEER_LOADS)]
_Queued = Annotated[dict[_Name, _Count], msgspec.Meta(max_length=PEER_LOADS)]
_Service = Annotated[
    dict[_Name, Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]], msgspec.Meta(max_length=PEER_TENANTS)
]
SentPrompt: TypeAlias = tuple[_Name, bytes, _Hash, _Hash]
"""A dispatch: the instance's id, hashes of the prompt's blocks, of its end, and of the session (0:
none).
"""
_MAX_PROMPTS: Final = 2 * DISPATCH_ENTRY_BYTES // ENTRY_OVERHEAD_BYTES
"""Twice as many as a gateway puts into a batch: a prompt without hashes takes a dozen bytes."""
_Sent = Annotated[tuple[SentPrompt, ...], msgspec.Meta(max_length=_MAX_PROMPTS)]


class PeerBatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch of what one gateway publishes of one model.

    - number: counts its batches of the model from 1, so that a lost one is detected.
    - within: maximum number of seconds until the next batch.
    - secret: fingerprint; hashes under another secret are not comparable.
    - loads: all that it has in flight, of `peer_loads` instances at most; None: unchanged.
    - queued: how many of these requests wait in the gateway, by instance. Apart from the loads, so
      that gateways of release 0.2.0 read both.
    - leaves: the gateway exits and has nothing in flight.
    - service: what it served of each tenant since the batch before, in engine seconds divided by
      weight.
    """

    number: _Count
    within: _BatchSeconds
    secret: bytes = b""
    sent: _Sent = ()
    loads: _Loads | None = None
    leaves: bool = False
    service: _Service = {}
    queued: _Queued = {}

    def peer_loads(self) -> dict[str, PeerLoad] | None:
        """Returns the loads with the queued requests; None if they are unchanged."""
        if self.loads is None:
            return None
        queued = self.queued
        return {name: (*load, min(load[0], queued.get(name, 0))) for name, load in self.loads.items()}


def split_loads(
    loads: Mapping[str, PeerLoad],
) -> tuple[dict[str, tuple[int, int, float, float]], dict[str, int]]:
    return {name: load[:4] for name, load in loads.items()}, {name: load[4] for name, load in loads.items() if load[4]}


_batches = msgspec.msgpack.Decoder(PeerBatch)


def secret_fingerprint(secret: bytes) -> bytes:
    return hashlib.blake2b(b"which secret keys the hashes", key=secret[:64], digest_size=8).digest()


def decode_batch(data: bytes) -> PeerBatch | None:
    """Returns a batch; None if it is damaged, too large, out of bounds or of another schema."""
    if data[:1] != SCHEMA or len(data) > _MAX_BATCH_BYTES:
        return None
    try:
        batch = _batches.decode(data[1:])
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        return None
    if any(
        len(hashes) % HASH_BYTES or len(hashes) > _MAX_PROMPT_BYTES or tail >> 64 or pin >> 64
        for _, hashes, tail, pin in batch.sent
    ):
        return None
    return batch


class PeerLoadRow:
    """The row of all other gateways; `row` is its index in the shared load table."""

    def __init__(self, cells: memoryview, slots_each: int, row: int) -> None:
        self.row = row
        self._rows = SharedLoadTable(cells, slots_each, row)
        self._slots: Mapping[str, int] = {}
        self._written: set[str] = set()
        self._loads: Mapping[str, tuple[int, int, float, float, int]] = {}

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Sets the slot of each instance, and writes the loads there."""
        self._slots = slots
        self._rows.set_slots(slots)
        self.set_loads(self._loads)

    def set_loads(self, loads: Mapping[str, tuple[int, int, float, float, int]]) -> None:
        """Sets the total load of other gateways.

        loads: by instance: requests, those without a first token, seconds of prefill, tokens, and
        requests that wait in their gateways.
        """
        self._loads = loads
        for instance in self._written - loads.keys():
            self._rows.write(instance, 0, 0, 0.0, 0.0)
        self._written = {instance for instance in loads if instance in self._slots}
        for instance in self._written:
            self._rows.write(instance, *loads[instance])
