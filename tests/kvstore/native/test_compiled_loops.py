"""Compiled loops over events and rows, compared with the code in Python."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import block_table, changes
from fairlead_kvstore.blockstore.block_hash import parent_hash, token_bytes
from fairlead_kvstore.blockstore.block_table import COLUMNS, BlockTable
from fairlead_kvstore.blockstore.pending_runs import PendingRun, handle_list
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError, ProtocolError
from fairlead_kvstore.events import zmtp
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import AcceptBatch
from fairlead_kvstore.events.zmtp import ZmtpStream, message
from fairlead_kvstore.reader import event_application
from fairlead_kvstore.reader.event_application import AppliedEvents, EventApplication
from fairlead_testing.kvstore.block_store import decode_events, instance_state

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
    stream, messages = _stream(), list[list[bytes]]()
    for chunk in chunks:
        stream.feed(chunk)
        while True:
            before = len(messages)
            cost = stream.read_messages(OVERHEAD, most, messages)
            assert cost == sum(sum(map(len, parts)) + OVERHEAD for parts in messages[before:])
            try:
                parts = stream.next_message()
            except ProtocolError as error:
                return messages, stream.held_bytes, error.message
            if parts is None:
                break
            if parts:
                messages.append(parts)
    return messages, stream.held_bytes, ""


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
    values = [event.get("type"), *[event.get(name) for name in fields]]
    while values and values[-1] is None:
        values.pop()
    return values


def _scan(native_modules: dict[str, ModuleType], payload: bytes) -> Any:
    limits = LIMITS
    scan = native_modules["event_scanner"].scan_events
    return scan(payload, limits.kv_events_in_batch, limits.kv_event_blocks, limits.kv_event_block_tokens)


def _expected(batch: EventBatch, medium: str | None) -> list[Any]:
    rows: list[Any] = []
    for event in batch.events:
        assert not isinstance(event, ClearedEvent)
        assert event.medium == medium
        assert event.locality is None
        handles = [value & _MASK for value in event.block_hashes if isinstance(value, int)]
        if isinstance(event, RemovedEvent):
            rows.append((handles, event.group_idx))
            continue
        assert event.lora_id is None
        assert event.lora_name is None
        assert not any(event.extra_keys or ())
        parent, kind = parent_hash(event.parent_block_hash), event.kv_cache_spec_kind
        data, extras = token_bytes(event.token_ids), event.extra_keys is not None
        start = -1 if parent is None else parent
        rows.append((start, handles, data, event.block_size, extras, event.group_idx, kind))
    return rows


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
    rows = [
        (handle_list(event[0]), event[1]) if len(event) == 2 else (event[0], handle_list(event[1]), *event[2:])
        for event in events
    ]
    assert rows == _expected(batch, medium)
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


Run = tuple[int, list[int], int, StorageTier, int]


@contextmanager
def _compiled(native_modules: dict[str, ModuleType], *, scan: bool = False) -> Iterator[None]:
    rows = native_modules["block_rows"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_table, "ADD_RUN", rows.add_run)
        patch.setattr(block_table, "FIND_ROW", rows.find_row)
        patch.setattr(block_table, "ENTER_ROWS", rows.enter_rows)
        patch.setattr(block_table, "MOVE_ROWS", rows.move_rows)
        patch.setattr(block_table, "TOUCH_ROWS", rows.touch_rows)
        if scan:
            patch.setattr(event_application, "SCAN_EVENTS", native_modules["event_scanner"].scan_events)
        yield


def _fill(runs: list[Run], width: int) -> tuple[BlockTable, list[Any]]:
    table, changes = BlockTable(), list[Any]()
    for own, handles, tick, tier, released in runs:
        data = b"".join(xxhash.xxh3_64_digest(b"%d" % (handle % 50)) * width for handle in handles)
        item = PendingRun(-1, handles, data[: len(handles) * width], None, tier, tick)
        changes.append(item.add_to(table, (own, 3), 2, False))
        if row := table.by_handle.find(released):
            table.release(row)
    return table, changes


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


def _assert_alike(table: BlockTable, expected: BlockTable) -> None:
    for name in COLUMNS:
        assert getattr(table, name) == getattr(expected, name), name
    assert table.columns[-1] == expected.columns[-1]
    for mapping, other in ((table.by_handle, expected.by_handle), (table.by_block_hash, expected.by_block_hash)):
        assert len(mapping) == len(other)
        assert list(mapping) == list(other)
        assert mapping.bytes == other.bytes


@given(RUNS, st.sampled_from([4, 16, 17, 32, 33, 64, 100, 128, 129, 256]))
def test_tables_are_alike(native_modules: dict[str, ModuleType], runs: list[Run], width: int) -> None:
    expected, changes = _fill(runs, width)
    with _compiled(native_modules):
        table, own_changes = _fill(runs, width)
        for handle in range(60):
            assert table.by_handle.find(handle) == expected.by_handle.find(handle)
    assert own_changes == changes
    _assert_alike(table, expected)


def test_large_tables_are_alike(native_modules: dict[str, ModuleType]) -> None:
    runs: list[Run] = [
        (number, [xxhash.xxh3_64_intdigest(b"%d %d" % (number, at)) for at in range(40)], 1, StorageTier.GPU, 0)
        for number in range(100)
    ]
    expected, changes = _fill(runs, 64)
    with _compiled(native_modules):
        table, own_changes = _fill(runs, 64)
    assert len(table) == 4_000
    assert own_changes == changes
    _assert_alike(table, expected)


def _load(table: BlockTable, more: dict[int, int]) -> tuple[bool, BlockTable]:
    """Loads the columns of a table as a snapshot; ``more``: handles that rows get instead."""
    columns = {name: array(getattr(table, name).typecode, getattr(table, name)) for name in COLUMNS}
    for row, handle in more.items():
        columns["handles"][row % len(columns["handles"])] = handle
    loaded = BlockTable()
    steps = loaded.load_steps(columns)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, loaded


@given(RUNS, st.dictionaries(st.integers(1, 200), st.integers(0, 60), max_size=2))
def test_loaded_tables_are_alike(native_modules: dict[str, ModuleType], runs: list[Run], more: dict[int, int]) -> None:
    table, _ = _fill(runs, 64)
    is_consistent, expected = _load(table, more)
    with _compiled(native_modules):
        assert _load(table, more)[0] is is_consistent
        _assert_alike(_load(table, more)[1], expected)
    if not more:
        assert is_consistent
        assert sorted(expected.by_block_hash) == sorted(table.by_block_hash)


def test_a_loaded_table_of_many_segments_grows_where_one_is_full(native_modules: dict[str, ModuleType]) -> None:
    rows = 40_000
    keys = [xxhash.xxh3_64_intdigest(b"%d" % at) for at in range(rows)]
    full = range(1, 400)  # the hashes of these share their first bits
    inverse = pow(block_table.HASH_FACTOR, -1, 1 << 64)
    keys[1:400] = [(number << 20) * inverse % (1 << 64) for number in full]
    numbers = {name: array(code, [0] * rows) for name, code in COLUMNS.items()}
    numbers |= {"handles": array("Q", keys), "block_hashes": array("Q", keys), "counts": array("I", [1] * rows)}
    expected = BlockTable()
    list(expected.load_steps({name: array(column.typecode, column) for name, column in numbers.items()}))
    with _compiled(native_modules):
        table = BlockTable()
        list(table.load_steps(numbers))
        assert all(table.by_handle.find(key) == row for row, key in enumerate(keys) if row)
    _assert_alike(table, expected)
    assert len(table) == rows - 1
    with pytest.raises(ValueError, match="so many rows"):
        native_modules["block_rows"].enter_rows(table.by_handle.parts, table.handles, table.counts, 1, 0, rows + 1, [])


@pytest.mark.parametrize("depth", [0, 1, 2_047, 2_048, 4_999])
def test_chains_are_marked_alike(native_modules: dict[str, ModuleType], depth: int) -> None:
    handles = list(range(1, 5_001))
    runs: list[Run] = [(0, handles, 1, StorageTier.GPU, 0), (0, handles[:100], 3, StorageTier.CPU, 0)]
    expected, table = (_fill(runs, 64)[0] for _ in range(2))
    block_hash = table.block_hashes[table.by_handle.find(handles[depth])]
    left = expected.touch(block_hash, 2)
    with _compiled(native_modules):
        assert table.touch(block_hash, 2) == left
    _assert_alike(table, expected)
    assert (left > 0) is (depth > 2_147)


def test_rows_without_room_are_refused(native_modules: dict[str, ModuleType]) -> None:
    move, cells, keys = native_modules["block_rows"].move_rows, array("I", [1, 0, 2]), array("Q", [0, 5, 6])
    for size, other, bit in ((2, 2, 0), (3, 4, 0), (3, 3, 64)):
        first, second = (array("I", bytes(4 * number)) for number in (size, other))
        with pytest.raises(ValueError, match="no room"):
            move(cells, first, second, keys, 1, bit)


def test_saturated_copies_are_left_to_python(native_modules: dict[str, ModuleType]) -> None:
    runs: list[Run] = [(0, [1, 2], 1, StorageTier.CPU, 9)] * 300
    expected, changes = _fill(runs, 64)
    with _compiled(native_modules):
        table, own_changes = _fill(runs, 64)
    assert own_changes == changes
    _assert_alike(table, expected)


@pytest.mark.parametrize(("tokens", "width", "shift"), [(10, 64, 0), (64, 0, 0), (64, 64, 24)])
def test_blocks_without_their_tokens_are_refused(
    native_modules: dict[str, ModuleType], tokens: int, width: int, shift: int
) -> None:
    table = BlockTable()
    parts = (table.columns, table.by_handle.parts, table.by_block_hash.parts, 3, bytes(8), bytes(tokens), width)
    with pytest.raises(ValueError, match="its tokens"):
        native_modules["block_rows"].add_run(*parts, 0, 0, 0, shift, 1, 0, [])


BLOCK_ROWS_EVENTS = st.one_of(
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
    application, applied = EventApplication(store, "i", limits), list[AppliedEvents]()
    for number, (events, now) in enumerate(zip(batches, seconds, strict=True)):
        application.add([AcceptBatch(number, _payload(events))])
        while application.is_busy:
            applied.append(application.run(now, 1_000_000))
    return applied, store


def _by_block(applied: list[AppliedEvents]) -> list[tuple[Any, ...]]:
    """Returns the changes of all steps, each of one block."""
    found: list[tuple[Any, ...]] = []
    for change in (change for step in applied for change in step.changes):
        if isinstance(change, changes.BlocksStored | changes.BlocksRemoved):
            found += [(type(change), change.tier, value) for value in change.hashes]
        else:
            found.append((change,))
    return found


@given(
    st.lists(st.tuples(st.lists(BLOCK_ROWS_EVENTS, max_size=4), st.floats(0.0, 20.0)), max_size=25),
    st.sampled_from([1_000_000, 6]),
    st.sampled_from([100, 600, 65_536]),
)
def test_stores_are_alike(native_modules: dict[str, ModuleType], steps: list[Any], most: int, size: int) -> None:
    batches, limits = [events for events, _ in steps], Limits(kv_blocks_per_instance=most, kv_slice_bytes=size)
    seconds = [sum(pause for _, pause in steps[: number + 1]) for number in range(len(steps))]
    expected, store = _apply(batches, seconds, limits)
    with _compiled(native_modules, scan=True):
        applied, own_store = _apply(batches, seconds, limits)
        assert instance_state(own_store, "i") == instance_state(store, "i")
        assert sorted(own_store.content("i")) == sorted(store.content("i"))
    assert _by_block(applied) == _by_block(expected)
    if size < 65_536:
        return  # where a slice is small, more is applied at once
    assert [step.changes for step in applied] == [step.changes for step in expected]
    assert [(step.batches, step.wall) for step in applied] == [(step.batches, step.wall) for step in expected]


def test_a_waiting_orphan_leaves_only_its_ancestors_to_python(native_modules: dict[str, ModuleType]) -> None:
    store = BlockStore()
    store.attach("i", "default/tiny", 0.0)
    store.apply_at_once("i", decode_events(_payload([("stored", 8, [9], "GPU", 0, None)])), 1.0)
    with _compiled(native_modules):
        for parent, handle, done in ((None, 1, 1), (1, 2, 1), (2, 8, 0)):
            scanned = _scan(native_modules, _payload([("stored", parent, [handle], "GPU", 0, None)]))
            assert store.apply_scanned("i", scanned, 1.0, []) == done
    assert instance_state(store, "i").orphans == 1
