"""The compiled scanner reads the events that the decoder in Python reads."""

from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_hash import parent_hash, token_bytes
from fairlead_kvstore.blockstore.event_runs.pending_run import handle_list
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.decoder import decode_events
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent

LIMITS = Limits(kv_event_blocks=6, kv_event_block_tokens=8, kv_events_in_batch=5)
_MASK = (1 << 64) - 1
_PACK = msgspec.msgpack.Encoder().encode
HASHES = st.one_of(
    st.integers(0, _MASK),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 127, 128, 255, 256, -1, -32, -33, -129]),
)
GROUPS = st.sampled_from([None, 0, 1, 7, 300, -1, 2**40])
KINDS = st.sampled_from([None, "full_attention", "mla_attention", "unknown", "ä"])
MEDIA = st.sampled_from(["GPU", "GPU", "GPU", None, "CPU", "gpu"])


@st.composite
def stored_events(draw: st.DrawFn) -> dict[str, Any]:
    """Events that store blocks, some of them unusual or inconsistent."""
    size = draw(st.integers(0, 9))
    hashes = draw(st.lists(st.one_of(HASHES, HASHES, HASHES, HASHES, st.binary(max_size=3)), max_size=7))
    tokens = st.one_of(st.integers(0, 200_000), st.sampled_from([0, 127, 128, 65_535, 65_536, 2**32 - 1]))
    count = max(0, size * len(hashes) + draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1])))
    event: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": draw(st.one_of(st.none(), HASHES)),
        "token_ids": draw(st.lists(tokens, min_size=count, max_size=count)),
        "block_size": size,
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "lora_id": st.sampled_from([None, None, None, 3]),
        "medium": MEDIA,
        "lora_name": st.sampled_from([None, None, None, "a"]),
        "extra_keys": st.one_of(st.none(), st.just([None] * len(hashes)), st.just([["salt"]] * len(hashes))),
        "group_idx": GROUPS,
        "kv_cache_spec_kind": KINDS,
        "kv_cache_spec_sliding_window": st.sampled_from([None, 4_096]),
        "locality": st.sampled_from([None, None, "remote"]),
        "block_hash": st.none(),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(optional)), unique=True))
    return event | {name: draw(optional[name]) for name in optional if name in chosen}


def removed_events() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"type": st.just("BlockRemoved"), "block_hashes": st.lists(HASHES, max_size=7)},
        optional={"medium": MEDIA, "group_idx": GROUPS, "locality": st.sampled_from([None, "remote"])},
    )


def other_events() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([{"type": "AllBlocksCleared"}, {"type": "Other"}, {}, {"block_hashes": [1]}])


EVENTS = st.one_of(stored_events(), stored_events(), removed_events(), other_events())


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Batches of events as maps or arrays."""
    events: list[Any] = draw(st.lists(EVENTS, max_size=6))
    if draw(st.booleans()):
        fields = [field.name for field in msgspec.structs.fields(StoredEvent)]
        removed = [field.name for field in msgspec.structs.fields(RemovedEvent)]
        events = [_as_array(event, fields if event.get("type") == "BlockStored" else removed) for event in events]
    batch: list[Any] = [draw(st.floats(allow_nan=False)), events]
    return _PACK(batch + draw(st.sampled_from([[], [None], [0], [3], ["x"]])))


def _as_array(event: dict[str, Any], fields: list[str]) -> list[Any]:
    found = [event.get("type"), *[event.get(name) for name in fields]]
    while found and found[-1] is None:
        found.pop()
    return found


def _scan(native_modules: dict[str, ModuleType], payload: bytes) -> Any:
    limits = LIMITS
    scan = native_modules["event_scanner"].scan_events
    return scan(payload, limits.kv_events_in_batch, limits.kv_event_blocks, limits.kv_event_block_tokens)


def _expected(batch: EventBatch, medium: str | None) -> list[Any]:
    found: list[Any] = []
    for event in batch.events:
        assert not isinstance(event, ClearedEvent)
        assert event.medium == medium
        assert event.locality is None
        handles = [value & _MASK for value in event.block_hashes if isinstance(value, int)]
        if isinstance(event, RemovedEvent):
            found.append((handles, event.group_idx))
            continue
        assert event.lora_id is None
        assert event.lora_name is None
        assert not any(event.extra_keys or ())
        parent, kind = parent_hash(event.parent_block_hash), event.kv_cache_spec_kind
        data, extras = token_bytes(event.token_ids), event.extra_keys is not None
        start = -1 if parent is None else parent
        found.append((start, handles, data, event.block_size, extras, event.group_idx, kind))
    return found


def _check(native_modules: dict[str, ModuleType], payload: bytes) -> bool:
    """Compares both ways, and returns whether the batch is accepted."""
    scanned = _scan(native_modules, payload)
    if scanned is None:
        return False
    batch = decode_events(payload, LIMITS)
    wall, medium, blocks, events = scanned
    assert (batch.unknown, batch.refused) == (0, 0)
    assert wall == batch.wall
    assert blocks == sum(len(event.block_hashes) for event in batch.events if not isinstance(event, ClearedEvent))
    found = [
        (handle_list(event[0]), event[1]) if len(event) == 2 else (event[0], handle_list(event[1]), *event[2:])
        for event in events
    ]
    assert found == _expected(batch, medium)
    return True


@given(payloads())
def test_accepted_batches_have_the_same_events(native_modules: dict[str, ModuleType], payload: bytes) -> None:
    _check(native_modules, payload)


USUAL = _PACK(
    [
        1.5,
        [
            {
                "type": "BlockStored",
                "block_hashes": [2**63, 5],
                "parent_block_hash": 9,
                "token_ids": [1, 200, 70_000, 2**32 - 1],
                "block_size": 2,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None, None],
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            },
            {"type": "BlockRemoved", "block_hashes": [-7], "medium": "GPU", "group_idx": 0},
        ],
        0,
    ]
)


@given(at=st.integers(0, len(USUAL) - 1), byte=st.integers(0, 255))
@example(at=len(USUAL) - 1, byte=0)
def test_a_changed_byte_is_read_alike(native_modules: dict[str, ModuleType], at: int, byte: int) -> None:
    changed = bytearray(USUAL)
    changed[at] = byte
    _check(native_modules, bytes(changed))


def test_no_cut_batch_is_accepted(native_modules: dict[str, ModuleType]) -> None:
    assert _check(native_modules, USUAL)
    for end in range(len(USUAL)):
        assert _scan(native_modules, USUAL[:end]) is None
        with pytest.raises(EventsError):
            decode_events(USUAL[:end], LIMITS)
    assert _scan(native_modules, USUAL + b"\0") is None


def test_usual_events_of_engines_are_accepted(native_modules: dict[str, ModuleType]) -> None:
    vllm = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 1}
    sglang = ["BlockStored", [-5], 7, [1, 2], 2, None, "GPU"]
    assert _check(native_modules, _PACK([0.0, [vllm], 0]))
    assert _check(native_modules, _PACK([0.0, [sglang, ["BlockRemoved", [-5], "GPU"]]]))
