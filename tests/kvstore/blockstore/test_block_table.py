"""The block table: open addressing against a dict, and the memory of a block."""

import random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fairlead_kvstore.blockstore import block_table
from fairlead_kvstore.blockstore.block_table import MAX_ROWS_AT_ONCE, BlockTable, RowIndex

KEYS = st.one_of(st.integers(0, 40), st.integers(0, 30).map(lambda number: number * 13), st.integers(2**63, 2**64 - 1))
STEPS = st.lists(st.tuples(KEYS, st.booleans()), max_size=200)


def add_row(blocks: BlockTable, handle: int, *values: int) -> int:
    """Adds a row for a new handle: block hash, parent, depth, adapter, copies and tick."""
    return blocks.add_at(blocks.by_handle.seek(handle), handle, *values)


@given(STEPS)
def test_row_index_agrees_with_a_dict(steps: list[tuple[int, bool]]) -> None:
    blocks, known = BlockTable(), dict[int, int]()
    for key, adding in steps:
        row = blocks.by_handle.find(key)
        assert (key in known) == bool(row)
        if adding and not row:
            known[key] = key * 3 % 2**64
            add_row(blocks, key, known[key], 0, 0, 0, 1, 0)
        elif row and not adding:
            del known[key]
            blocks.release(row)
        assert len(blocks) == len(known)
    for key, own in known.items():
        row = blocks.by_handle.find(key)
        assert blocks.handles[row] == key
        assert blocks.block_hashes[row] == own
    assert {blocks.handles[row] for row in blocks.by_handle} == set(known)


class _CountedKeys(list[int]):
    """Keys that count how often one is compared."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


@pytest.mark.parametrize("step", [1, 3_001, 2**32, 2**44])
def test_hashes_that_an_engine_chooses_make_no_search_long(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The factor is random in use: with one in some hundreds, searches are longer by chance.
    monkeypatch.setattr(block_table, "HASH_FACTOR", random.Random(step).getrandbits(64) | 1 << 63 | 1)
    keys: Any = _CountedKeys([0])
    index = RowIndex(keys)
    for number in range(1, 2_001):
        keys.append(number * step)
        index.put(number)
    keys.reads, cells = 0, index.bytes // 4
    for number in range(1, 1_001):
        assert not index.find(number * step + 1_000_003 * cells)
    assert keys.reads < 60_000


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4), st.booleans()), max_size=100))
def test_block_hash_leads_to_the_first_handle_until_that_is_removed(steps: list[tuple[int, int, bool]]) -> None:
    blocks, known, first = BlockTable(), dict[int, int](), dict[int, int]()
    for handle, own, adding in steps:
        row = blocks.by_handle.find(handle)
        if adding and not row:
            other = add_row(blocks, handle, own, 99, 0, 0, 1, 0)
            assert bool(other) == (own in first)
            assert not other or blocks.handles[other] == first[own]
            first.setdefault(own, handle)
            known[handle] = own
        elif row and not adding:
            own = known.pop(handle)
            if first.get(own) == handle:
                del first[own]
            other = blocks.release(row)
            assert (blocks.handles[other] if other else None) == first.get(own)
    assert {blocks.handles[row] for row in blocks.by_handle} == set(known)
    for own in range(5):
        assert bool(blocks.copies(own)) == (own in first)
    assert len(blocks.by_block_hash) == len(first)


def test_released_rows_are_reused() -> None:
    blocks = BlockTable()
    for number in range(10_000):
        add_row(blocks, number, number, 0, 0, 0, 1, 0)
        if number >= 100:
            blocks.release(blocks.by_handle.find(number - 100))
    assert len(blocks) == 100
    assert len(blocks.handles) <= 102


def test_block_takes_less_than_seventy_bytes_at_any_table_size() -> None:
    blocks, worst = BlockTable(), 0.0
    for number in range(1, 60_000):
        value = number * 0x9E37_79B9_7F4A_7C15 % 2**64
        add_row(blocks, value, value ^ 0xFFFF, 0, 0, 0, 1, 0)
        if number > 20_000 and not number % 500:
            worst = max(worst, blocks.bytes / number)
    assert worst < 70


def test_oldest_rows_are_ends_of_chains_first() -> None:
    blocks = BlockTable()
    for depth in range(4):
        add_row(blocks, 10 + depth, 10 + depth, 9 + depth, depth, 0, 1, 5)
        add_row(blocks, 20 + depth, 20 + depth, 19 + depth, depth, 0, 1, 3)
    assert [blocks.handles[row] for row in blocks.oldest(6)] == [23, 22, 21, 20, 13, 12]


def test_work_on_a_large_table_is_bounded_whatever_an_engine_stores() -> None:
    blocks, size = BlockTable(), MAX_ROWS_AT_ONCE + 40_000
    for number in range(1, size + 1):
        add_row(blocks, number, number, number - 1, number, 0, 1, 1)
    rest = blocks.touch(size, 7)
    assert sum(tick == 7 for tick in blocks.ticks) == size - rest == 2_048
    while rest > 40_000:
        rest = blocks.touch(rest, 7)
    used = sum(tick == 7 for tick in blocks.ticks)
    assert used == size - rest
    first, second = blocks.oldest(6_000), blocks.oldest(6_000)
    assert [blocks.ticks[row] for row in first] == [1] * 6_000
    assert set(first).isdisjoint(second)
    for row in [*first, *second]:
        blocks.release(row)
    assert len(blocks) == size - 12_000
    while len(blocks):
        for row in blocks.oldest(len(blocks) // 2 + 1):
            blocks.release(row)


@pytest.mark.parametrize("step", [1, 2**44])
def test_index_that_grows_moves_a_few_rows_at_a_time(step: int) -> None:
    keys: Any = _CountedKeys([0])
    index = RowIndex(keys)
    for number in range(1, 30_000):
        keys.append(number * step)
        keys.reads, before = 0, index.bytes
        assert not index.put(number)
        assert keys.reads < 1_500
        assert index.bytes - before < 8_192 + before // 16
        assert index.find(number // 2 * step) == number // 2
    assert sorted(index) == list(range(1, 30_000))


def test_keys_with_one_hash_in_the_directory_share_a_larger_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead_kvstore.blockstore.block_table.HASH_FACTOR", 1)
    keys: Any = [0]
    index = RowIndex(keys)
    for number in range(1, 5_000):
        keys.append(number << 41)
        index.put(number)
    assert [index.find(number << 41) for number in range(1, 5_000)] == list(range(1, 5_000))
    assert index.bytes < 100_000


def test_touch_renews_all_earlier_blocks() -> None:
    blocks = BlockTable()
    for depth in range(4):
        add_row(blocks, 10 + depth, 10 + depth, 9 + depth, depth, 0, 1, 1)
    blocks.touch(12, 7)
    assert [blocks.ticks[blocks.by_block_hash.find(own)] for own in range(10, 14)] == [7, 7, 7, 1]
