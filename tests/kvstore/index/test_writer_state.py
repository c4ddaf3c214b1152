"""When a writer stores instances again, by the bytes of its stream, and the form of its entries.

Pure.
"""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.blockstore.types import TableSnapshot
from fairlead_kvstore.index.format import decode_entry_with_time, decode_header, encode_entry
from fairlead_kvstore.index.writer_state import INDEX_STREAM_BYTES, MAX_CHANGES_PER_ENTRY, ModelWriteState

LIMITS = Limits()


def write_entry(state: ModelWriteState, instance: str, size: int) -> int | None:
    """Writes an entry of one change, and returns from where it cuts the stream."""
    state.offer([BlocksStored(instance, StorageTier.GPU, [1])], 1, 0.0)
    state.take_changes()
    trim = state.prepare_entry(bytes(size)).trim
    state.on_acknowledged()
    return trim


def led_state() -> ModelWriteState:
    state = ModelWriteState("default/tiny", LIMITS)
    state.begin_epoch(1)
    for instance in ("a", "b"):
        state.record_parts(instance, {}, 0)
    return state


def test_stream_of_a_small_redis_is_cut_at_its_share() -> None:
    state = led_state()
    write_entry(state, "a", 600)
    assert state.next_due_item(INDEX_STREAM_BYTES) is None
    for _ in range(2):
        due = state.next_due_item(1_000)
        assert due is not None
        state.record_parts(due, {}, 0)
    assert state.next_due_item(1_000) is None
    assert write_entry(state, "a", 100) == 2
    assert state.next_due_item(1_000) is None


def test_long_stream_of_an_idle_model_is_not_stored_again_and_again() -> None:
    state = led_state()
    write_entry(state, "a", 5_000)
    stored: list[str] = []
    while (due := state.next_due_item(1_000)) is not None and len(stored) < 9:
        stored.append(due)
        state.record_parts(due, {}, 0)
    assert sorted(stored) == ["a", "b"]


def test_very_many_small_changes_of_one_batch_are_written_in_several_entries() -> None:
    state, count = led_state(), 3 * MAX_CHANGES_PER_ENTRY
    offered: list[Change] = [BlocksStored("a", StorageTier.GPU, [number]) for number in range(count)]
    state.offer(offered, 1, 0.0)
    assert state.waiting_entries == 4
    written: list[Change] = []
    while state.has_waiting:
        taken = state.take_changes()
        assert len(taken) <= MAX_CHANGES_PER_ENTRY
        written += taken
    assert written == offered
    assert (state.waiting_blocks, state.waiting_entries) == (0, 1)


def test_stored_changes_keep_the_form_that_earlier_releases_read_and_wrote() -> None:
    change = BlocksStored("a", StorageTier.CPU, [1, 2])
    data = encode_entry([change], 1.5, 0.0)
    assert data == b"\x01" + msgspec.msgpack.encode([1.5, ["a"], [["s", 0, 1, 0, [1, 2]]]])
    earlier = b"\x01" + msgspec.msgpack.encode([1.5, ["a"], [["s", 0, 1, 2**63, [1, 2]]]])
    assert decode_entry_with_time(earlier, 0.0) == (1.5, [change])


NAMES = st.sampled_from(["a/8000/0", "b/8000/0", "ä", ""])
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=20)
TIERS = st.sampled_from(INSTANCE_TIERS)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(BlocksStored, NAMES, TIERS, HASHES),
    st.builds(BlocksRemoved, NAMES, TIERS, HASHES),
    st.builds(InstanceCleared, NAMES, st.integers(0, 2**40), st.text(max_size=5)),
    st.builds(InstanceDetached, NAMES),
    st.builds(CompletenessChanged, NAMES, st.booleans(), st.text(max_size=5), st.integers(0, 2**40).map(float)),
)


@given(st.lists(CHANGES, max_size=40))
def test_changes_come_out_of_an_entry_as_they_went_in(offered: list[Change]) -> None:
    assert decode_entry_with_time(encode_entry(offered, 1.5, 64.0), 64.0) == (1.5, offered)


def test_hints_of_earlier_releases_are_left_out() -> None:
    hints = [["h", [1, 2], 9.0], ["s", 0, 0, 0, [3]], ["x", [1]]]
    data = b"\x01" + msgspec.msgpack.encode([1.5, ["a"], hints])
    assert decode_entry_with_time(data, 0.0) == (1.5, [BlocksStored("a", StorageTier.GPU, [3])])


def test_header_of_an_earlier_release_is_read() -> None:
    table = {"rows": 1, "leads": [2], "content": 0, "name": ""}
    saved = {"wall": 1.5, "complete": True, "reason": "", "since": 4.5, "tables": [table], "adapters": {}}
    saved |= {"vague": [1], "awaited_until": 14.5, "last_clear": 2.5}
    value = {"epoch": 1, "sequence": 2, "slice": saved, "parts": {"0.m0": b"c:1"}}
    header = decode_header(b"\x01" + msgspec.msgpack.encode(value))
    assert (header.slice.tables, header.slice.complete) == ([TableSnapshot(1)], True)
