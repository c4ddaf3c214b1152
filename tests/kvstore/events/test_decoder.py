"""The decoder: both encodings, deviations of engines, and invalid bytes."""

from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError, MalformedEvents, OversizedEvents
from fairlead_kvstore.events.payloads import ClearedEvent, RemovedEvent, StoredEvent
from fairlead_testing.kvstore.block_store import apply_batch, decode_events, instance_state

pack = msgspec.msgpack.encode
STORED: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [2**64 - 1, b"\x01" * 32],
    "parent_block_hash": 2**63,
    "token_ids": [1, 2, 3, 4],
    "block_size": 2,
    "lora_id": 3,
    "medium": "GPU",
    "lora_name": "bot",
    "extra_keys": [["bot", ["image", -3], "salt"], None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}
AS_ARRAY = ["BlockStored", *list(STORED.values())[1:]]
OPTIONAL = ["lora_id", "medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind"]


def stored(event: Any) -> StoredEvent:
    assert isinstance(event, StoredEvent)
    return event


@pytest.mark.parametrize("event", [STORED, AS_ARRAY], ids=["map", "array"])
def test_both_encodings_decode_equally(event: Any) -> None:
    batch = decode_events(pack([1_700_000_000.5, [event], 1]))
    assert (batch.wall, batch.unknown, batch.refused) == (1_700_000_000.5, 0, 0)
    decoded = stored(batch.events[0])
    assert {name: getattr(decoded, name) for name in list(STORED)[1:]} == {
        name: STORED[name] for name in list(STORED)[1:]
    }


@pytest.mark.parametrize("rank", [[], [None], [0], [3]])
def test_rank_is_optional(rank: list[Any]) -> None:
    assert decode_events(pack([0.5, [], *rank])).wall == 0.5


def test_sglang_arrays_end_with_the_medium_and_have_signed_hashes() -> None:
    events = [
        ["BlockStored", [-5, 6], -7, [1, 2], 1, None, "GPU"],
        ["BlockRemoved", [-5], "CPU_PINNED"],
        ["AllBlocksCleared"],
    ]
    first, second, third = decode_events(pack([0.0, events])).events
    assert stored(first).block_hashes == [-5, 6]
    assert isinstance(second, RemovedEvent)
    assert second.medium == "CPU_PINNED"
    assert isinstance(third, ClearedEvent)


def test_oldest_vllm_sends_no_medium() -> None:
    batch = decode_events(pack([0.0, [["BlockStored", [1], None, [1, 2], 2, None], ["BlockRemoved", [1]]]]))
    assert [getattr(event, "medium", "") for event in batch.events] == [None, None]


@pytest.mark.parametrize("left_out", OPTIONAL)
def test_fields_with_default_values_are_optional(left_out: str) -> None:
    event = {name: value for name, value in STORED.items() if name != left_out}
    assert getattr(stored(decode_events(pack([0.0, [event]])).events[0]), left_out) is None


def test_unknown_events_are_skipped_and_counted() -> None:
    fields = {**STORED, "locality": "LOCAL", "ownership": {"node": [1, {"deep": 2}]}, "session_id": "S2"}
    events = [
        {"type": "BlockMoved", "from": [1, 2]},
        fields,
        ["BlockTransferred", 3, {"a": 1}],
        [*AS_ARRAY, None, 7, 8, 9],
    ]
    batch = decode_events(pack([0.0, events, 0]))
    assert (len(batch.events), batch.unknown, batch.refused) == (2, 2, 0)


@pytest.mark.parametrize(("field", "value"), [
    ("token_ids", [1, 2, 3]),
    ("token_ids", [1, 2, 3, -1]),
    ("token_ids", [1, 2, 3, 2**32]),
    ("token_ids", [[1, 2], [3, 4]]),
    ("block_size", 0),
    ("block_size", -2),
    ("block_size", 70_000),
    ("extra_keys", [None]),
    ("block_hashes", ["text"]),
    ("block_hashes", [1.5]),
    ("parent_block_hash", "text"),
])  # fmt: skip
def test_inconsistent_store_is_skipped_and_counted(field: str, value: Any) -> None:
    """A skipped store costs a cache hit; the rest of the batch still counts."""
    removed = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}
    batch = decode_events(pack([0.0, [{**STORED, field: value}, removed]]))
    assert (len(batch.events), batch.unknown, batch.refused) == (1, 0, 1)


@pytest.mark.parametrize("event", [
    {"type": "BlockRemoved", "block_hashes": "all", "medium": "GPU"},
    {"type": "BlockRemoved", "medium": "GPU"},
    {"type": "AllBlocksCleared", "medium": 3},
    ["BlockRemoved"],
    [],
    {"type": 5},
    "BlockRemoved",
    None,
    7,
], ids=repr)  # fmt: skip
def test_unreadable_removal_makes_the_batch_unreadable(event: Any) -> None:
    """A skipped removal would leave a ghost, so the batch counts as lost."""
    with pytest.raises(MalformedEvents):
        decode_events(pack([0.0, [STORED, event]]))


@pytest.mark.parametrize("payload", [
    b"",
    b"\xc1",
    b"\x80\x04\x95\x10",  # a pickle
    pack({"ts": 0.0, "events": []}),
    pack([0.0]),
    pack(["now", []]),
    pack([0.0, {}]),
    pack([0.0, []]) + b"\x00",
    b"\x93\xcb" + bytes(8) + b"\xdd\xff\xff\xff\xff",
    b"\x93\xcb" + bytes(8) + b"\x91\x84\xa4type\xabBlockStored\xacblock_hashes\xdd\x7f\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x93\xcb" + bytes(8) + b"\x91\x82\xa4type\xa3New\xa1x" + b"\x91" * 100_000,
], ids=range(12))  # fmt: skip
def test_invalid_batch_raises_malformed_events(payload: bytes) -> None:
    with pytest.raises(MalformedEvents) as caught:
        decode_events(payload)
    assert caught.value.reason in ("shape", "kind")


@pytest.mark.parametrize(("limits", "reason"), [
    (Limits(kv_events_bytes=50), "bytes"),
    (Limits(kv_events_in_batch=1), "events"),
    (Limits(kv_event_blocks=2), "blocks"),
])  # fmt: skip
def test_oversized_payload_names_its_limit(limits: Limits, reason: str) -> None:
    removed = {"type": "BlockRemoved", "block_hashes": [1, 2, 3], "medium": "GPU"}
    with pytest.raises(OversizedEvents) as caught:
        decode_events(pack([0.0, [removed, removed]]), limits)
    assert caught.value.reason == reason


def test_store_of_too_many_blocks_is_skipped() -> None:
    assert decode_events(pack([0.0, [STORED]]), Limits(kv_event_blocks=1)).refused == 1


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=40)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
HASHES = st.lists(st.one_of(st.integers(-2, 6), st.binary(min_size=1, max_size=2)), max_size=3)
TAMPERED = st.builds(
    lambda names, values: {**STORED, **dict(zip(names, values, strict=False))},
    st.lists(st.sampled_from(list(STORED)), max_size=3, unique=True),
    st.lists(VALUES, min_size=3, max_size=3),
)
EVENTS = st.one_of(
    TAMPERED,
    st.builds(
        lambda hashes, medium: {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium}, HASHES, VALUES
    ),
    st.builds(
        lambda *values: ["BlockStored", *values],
        HASHES,
        VALUES,
        st.lists(st.integers(0, 9), max_size=4),
        VALUES,
        VALUES,
    ),
    st.just(["AllBlocksCleared"]),
    VALUES,
)


@given(st.one_of(st.binary(max_size=300), st.builds(lambda value: pack(value), VALUES)))
def test_random_bytes_are_events_or_events_error(payload: bytes) -> None:
    reason = "read"
    try:
        decode_events(payload)
    except EventsError as error:
        reason = error.reason
    assert reason in ("read", "bytes", "events", "blocks", "shape", "kind", "removal")


@given(st.lists(EVENTS, max_size=5), VALUES)
def test_decoded_batches_can_be_applied(events: list[Any], rank: Any) -> None:
    truth = BlockStore()
    truth.attach("i", "default/tiny", 0.0)
    try:
        batch = decode_events(pack([0.0, events, rank]))
    except EventsError:
        return
    for now in (1.0, 2.0):
        apply_batch(truth, "i", batch, now)
    assert instance_state(truth, "i").blocks == truth.block_count


@given(st.data())
def test_mutated_payload_is_events_or_events_error(data: st.DataObject) -> None:
    payload = bytearray(
        pack([0.0, [STORED, AS_ARRAY, {"type": "BlockRemoved", "block_hashes": [1, 2], "medium": "GPU"}], 0])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch = decode_events(bytes(payload))
    except EventsError:
        return
    truth = BlockStore()
    truth.attach("i", "default/tiny", 0.0)
    apply_batch(truth, "i", batch, 1.0)
