"""A table that compiled code fills is, row by row, the one that Python fills."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import block_table
from fairlead_kvstore.blockstore.block_table import COLUMNS, BlockTable
from fairlead_kvstore.blockstore.event_runs import pending_run
from fairlead_kvstore.blockstore.event_runs.pending_run import BlockContent, PendingRun
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EventCounters
from fairlead_kvstore.events.types import AcceptBatch
from fairlead_kvstore.reader import event_application
from fairlead_kvstore.reader.event_application import AppliedEvents, EventApplication

Run = tuple[int, list[int], int, StorageTier, int]


@contextmanager
def _compiled(native_modules: dict[str, ModuleType], *, scan: bool = False) -> Iterator[None]:
    rows = native_modules["block_rows"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_run, "ADD_RUN", rows.add_run)
        patch.setattr(block_table, "FIND_ROW", rows.find_row)
        if scan:
            patch.setattr(event_application, "SCAN_EVENTS", native_modules["event_scanner"].scan_events)
        yield


def _fill(runs: list[Run], width: int) -> tuple[BlockTable, list[Any], EventCounters]:
    table, changes, counters = BlockTable(), list[Any](), EventCounters()
    for own, handles, tick, tier, released in runs:
        data = b"".join(xxhash.xxh3_64_digest(b"%d" % (handle % 50)) * width for handle in handles)
        content = BlockContent(data[: len(handles) * width], width, None)
        item = PendingRun(-1, handles, content, tier, None, tick)
        changes.append(item.add_to(table, (own, 3), 2, False, "i", counters))
        if row := table.by_handle.find(released):
            table.release(row)
    return table, changes, counters


RUNS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.one_of(st.integers(0, 60), st.integers(2**63, 2**63 + 60)), max_size=12),
        st.integers(1, 3),
        st.sampled_from(INSTANCE_TIERS),
        st.integers(0, 60),
    ),
    max_size=30,
)


def _assert_alike(found: BlockTable, expected: BlockTable) -> None:
    for name in COLUMNS:
        assert getattr(found, name) == getattr(expected, name), name
    assert found.duplicates == expected.duplicates
    assert found.columns[-1] == expected.columns[-1]
    for one, other in ((found.by_handle, expected.by_handle), (found.by_block_hash, expected.by_block_hash)):
        assert len(one) == len(other)
        assert list(one) == list(other)
        assert one.bytes == other.bytes


@given(RUNS, st.sampled_from([4, 16, 17, 32, 33, 64, 100, 128, 129, 256]))
def test_tables_are_alike(native_modules: dict[str, ModuleType], runs: list[Run], width: int) -> None:
    expected, changes, counters = _fill(runs, width)
    with _compiled(native_modules):
        found, own_changes, own_counters = _fill(runs, width)
        for handle in range(60):
            assert found.by_handle.find(handle) == expected.by_handle.find(handle)
    assert own_changes == changes
    assert own_counters == counters
    _assert_alike(found, expected)


def test_large_tables_are_alike(native_modules: dict[str, ModuleType]) -> None:
    runs: list[Run] = [
        (number, [xxhash.xxh3_64_intdigest(b"%d %d" % (number, at)) for at in range(40)], 1, StorageTier.GPU, 0)
        for number in range(100)
    ]
    expected, changes, _ = _fill(runs, 64)
    with _compiled(native_modules):
        found, own_changes, _ = _fill(runs, 64)
    assert len(found) == 4_000
    assert own_changes == changes
    _assert_alike(found, expected)


def test_saturated_copies_are_left_to_python(native_modules: dict[str, ModuleType]) -> None:
    runs: list[Run] = [(0, [1, 2], 1, StorageTier.CPU, 9)] * 300
    expected, changes, counters = _fill(runs, 64)
    with _compiled(native_modules):
        found, own_changes, own_counters = _fill(runs, 64)
    assert own_changes == changes
    assert own_counters == counters
    assert own_counters.saturated
    _assert_alike(found, expected)


@pytest.mark.parametrize(("tokens", "width", "shift"), [(10, 64, 0), (64, 0, 0), (64, 64, 24)])
def test_blocks_without_their_tokens_are_refused(
    native_modules: dict[str, ModuleType], tokens: int, width: int, shift: int
) -> None:
    table = BlockTable()
    parts = (table.columns, table.by_handle.parts, table.by_block_hash.parts, 3, bytes(8), bytes(tokens), width)
    with pytest.raises(ValueError, match="its tokens"):
        native_modules["block_rows"].add_run(*parts, 0, 0, 0, shift, 1, 0, [], False)


EVENTS = st.one_of(
    st.tuples(
        st.just("stored"),
        st.sampled_from([None, 0, 1, 2, 3, 4, 5, 6, 7]),
        st.lists(st.integers(1, 8), min_size=1, max_size=4),
        st.sampled_from(["GPU", "GPU", "GPU", "GPU", "CPU", None]),
        st.sampled_from([None, 0, 0, 0, 1]),
        st.sampled_from([None, None, None, "salt"]),
    ),
    st.tuples(st.just("removed"), st.lists(st.integers(1, 8), max_size=3), st.sampled_from([None, "GPU"])),
    st.tuples(st.just("cleared")),
)


def _payload(events: list[Any]) -> bytes:
    return msgspec.msgpack.encode([0.0, [_event(*event) for event in events], 0])


def _event(kind: str, *parts: Any) -> dict[str, Any]:
    if kind == "cleared":
        return {"type": "AllBlocksCleared"}
    if kind == "removed":
        return {"type": "BlockRemoved", "block_hashes": parts[0], "medium": parts[1]}
    parent, hashes, medium, group, salt = parts
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": [token for value in hashes for token in (value % 5, 1, 2, 3, 4)],
        "block_size": 5,
        "medium": medium,
        "extra_keys": [None if salt is None else [salt]] * len(hashes),
        "group_idx": group,
        "kv_cache_spec_kind": "full_attention" if not group else "sliding_window",
    }


def _apply(batches: list[list[Any]], seconds: list[float], limits: Limits) -> tuple[list[AppliedEvents], BlockStore]:
    store = BlockStore(limits=limits)
    store.attach("i", "default/tiny", 0.0)
    application, found = EventApplication(store, "i", limits), list[AppliedEvents]()
    for number, (events, now) in enumerate(zip(batches, seconds, strict=True)):
        application.add([AcceptBatch(number, _payload(events))])
        while application.is_busy:
            found.append(application.run(now, 1_000_000))
    return found, store


@given(
    st.lists(st.tuples(st.lists(EVENTS, max_size=4), st.floats(0.0, 20.0)), max_size=25),
    st.sampled_from([1_000_000, 6]),
    st.sampled_from([100, 600, 65_536]),
)
def test_stores_are_alike(native_modules: dict[str, ModuleType], steps: list[Any], most: int, size: int) -> None:
    batches, limits = [events for events, _ in steps], Limits(kv_blocks_per_instance=most, kv_slice_bytes=size)
    seconds = [sum(pause for _, pause in steps[: number + 1]) for number in range(len(steps))]
    expected, store = _apply(batches, seconds, limits)
    with _compiled(native_modules, scan=True):
        found, own_store = _apply(batches, seconds, limits)
        assert own_store.state("i") == store.state("i")
        assert sorted(own_store.content("i")) == sorted(store.content("i"))
    assert [one.changes for one in found] == [one.changes for one in expected]
    assert [vars(one) if hasattr(one, "__dict__") else one.batches for one in found] == [
        vars(one) if hasattr(one, "__dict__") else one.batches for one in expected
    ]
