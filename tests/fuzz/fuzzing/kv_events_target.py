"""A fuzz target: payloads of KV events.

They give events or one kind of error, and a store that its own changes can rebuild. The second
reader counts the events without parsing them.
"""

import re
from collections.abc import Hashable

import msgspec
from fuzzing.target import Target

from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, InstanceCleared
from fairlead_kvstore.blockstore.storage_tiers import shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.payloads import EventBatch
from fairlead_testing.kvstore.block_store import apply_batch, decode_events


def check(data: bytes) -> Hashable:
    """Checks that no other error occurs, lost events are counted, and replays change nothing."""
    try:
        batch = decode_events(data)
    except EventsError as error:
        return type(error).__name__, error.reason
    whole = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
    sent = len(msgspec.msgpack.decode(whole[1], type=list[msgspec.Raw]))
    assert sent == len(batch.events) + batch.unknown + batch.refused, "an event vanished"
    content, again = applied(batch), applied(batch)
    assert content == again
    return len(batch.events), batch.unknown, batch.refused, len(content)


def applied(batch: EventBatch) -> set[tuple[str, int, int]]:
    """Returns what the changes give after the batch came twice: fewer blocks than there are only
    where a block has two handles.
    """
    truth = BlockStore()
    truth.attach("i", "default/tiny", 0.0)
    copy: set[tuple[str, int, int]] = set()
    for now in (1.0, 20.0):
        for change in apply_batch(truth, "i", batch, now):
            if isinstance(change, BlocksStored):
                copy |= {(change.instance, own, change.tier) for own in change.hashes}
            elif isinstance(change, BlocksRemoved):
                copy -= {(change.instance, own, change.tier) for own in change.hashes}
            elif isinstance(change, InstanceCleared):
                copy = {block for block in copy if block[0] != change.instance}
    places = [place for place in ("i", shared_store_id("default/tiny")) if place in truth]
    assert copy <= {(place, *block) for place in places for block in truth.content(place)}, "the changes leave a ghost"
    return copy


def _stored(hashes: list[int | bytes], parent: int | bytes | None, adapter: str | None = None) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": [7 + index for index in range(2 * len(hashes))],
        "block_size": 2,
        "lora_id": 1 if adapter else None,
        "medium": "GPU",
        "lora_name": adapter,
        "extra_keys": [[adapter, "salt", ["image", -3]] if adapter else None for _ in hashes],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


_PACK = msgspec.msgpack.encode
_REMOVED = {"type": "BlockRemoved", "block_hashes": [2], "medium": "GPU", "group_idx": 0}
_EVENTS = [_stored([1, 2, 3], None), _stored([4, b"\x05" * 32], 3), _stored([6], None, "bot"), _REMOVED]
_ARRAYS = [list(event.values()) for event in _EVENTS]
SEEDS = [
    _PACK([0.5, _EVENTS, 0]),
    _PACK([0.5, _ARRAYS, 1]),
    _PACK([0.5, [_stored([9], 8), _stored([8], None), {"type": "AllBlocksCleared"}, _stored([1], None)]]),
    _PACK(
        [
            0.5,
            [
                ["BlockStored", [-1, 2], None, [1, 2], 1, None, "GPU"],
                ["BlockRemoved", [-1], "CPU"],
                ["AllBlocksCleared"],
            ],
        ]
    ),
    _PACK(
        [
            0.5,
            [{**_EVENTS[0], "medium": "cpu"}, {**_EVENTS[0], "medium": "CPU", "extra_keys": None}, {"type": "New"}],
            None,
        ]
    ),
]
_FIELDS = [_PACK(name) for name in _EVENTS[0]]
WORDS = [
    *_FIELDS, _PACK("BlockStored"), _PACK("BlockRemoved"), _PACK("AllBlocksCleared"), _PACK("New"), _PACK(["AllBlocksCleared"]),
    _PACK(_REMOVED), _PACK("GPU"), _PACK("CPU"), _PACK("cpu"), _PACK("STORAGE"), _PACK("bot"), _PACK("sliding_window"),
    _PACK([1, 2]), _PACK([7, 8]), _PACK([None]), _PACK([["salt"]]), _PACK(2**64 - 1), _PACK(-(2**63)), _PACK(b"\x05" * 32),
    b"\x90", b"\x91", b"\x92", b"\x93", b"\x80", b"\x81", b"\x84", b"\xc0", b"\xc1", b"\xcb" + bytes(8),
    b"\xdc\x00\x02", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd4\x01\x02", b"\x91" * 40,
    b"\x00", b"\x01", b"\x02", b"\xff", b"\xcc\xff", b"\xcf" + b"\xff" * 8, b"\xa1x", b"\xa4type",
]  # fmt: skip
PIECES = re.compile(rb"[\xa1-\xbf][a-zA-Z_]+|\xcf.{8}|\xcb.{8}|\xc4.[^\x80-\xff]*|.", re.DOTALL)
KV_EVENTS = Target("kv_events", "payloads of engines' KV events", check, SEEDS, WORDS, PIECES, 0.05)
