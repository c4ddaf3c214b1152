"""The compiled table of masks holds what the one in Python holds."""

from array import array
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.native.dict_mask_table import DictMaskTable

KEYS = st.one_of(st.integers(0, 30), st.integers(0, 30).map(lambda n: n << 8), st.integers(2**64 - 20, 2**64 - 1))
HASHES = st.lists(KEYS, max_size=30)
BITS = st.integers(0, 80).map(lambda place: 1 << place)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), HASHES, BITS, st.sampled_from([1_000, 20])),
        st.tuples(st.just("remove"), HASHES, BITS),
        st.tuples(st.just("load"), HASHES, st.lists(st.integers(0, 3), min_size=30, max_size=30)),
        st.tuples(st.just("sweep"), st.integers(0, 2**20), st.sampled_from([1, 10, 1_000])),
    ),
    max_size=25,
)


def _run(table: Any, step: tuple[Any, ...]) -> Any:
    if step[0] == "add":
        return table.add(step[1], step[2], step[3])
    if step[0] == "remove":
        return table.remove(step[1], step[2])
    if step[0] == "load":
        counts = array("I", step[2][: len(step[1])])
        return table.load(array("Q", step[1]), counts, {1: 1, 2: 1 << 70, 3: 1 << 70 | 4}, 100)
    table.begin_sweep()
    while not table.sweep(step[1], step[2]):
        pass
    return None


@given(STEPS, st.lists(KEYS, max_size=6))
def test_tables_are_alike(native_modules: dict[str, ModuleType], steps: list[Any], chain: list[int]) -> None:
    expected, found = DictMaskTable(), native_modules["mask_table"].NativeMaskTable()
    for step in steps:
        assert _run(found, step) == _run(expected, step)
        assert len(found) == len(expected)
    assert {own: found.get(own) for own in found} == {own: expected.get(own) for own in expected}
    for own in range(60):
        assert found.get(own) == expected.get(own)
        assert (own in found) == (own in expected)
    masks = list(expected.masks_of(chain))
    if None in masks:
        del masks[masks.index(None) + 1 :]
    assert found.masks_of(chain) == masks


def test_equal_masks_are_one_object(native_modules: dict[str, ModuleType]) -> None:
    table = native_modules["mask_table"].NativeMaskTable()
    table.add([1, 2], 1 << 70, 10)
    table.add([1], 1 << 80, 10)
    table.add([2], 1 << 80, 10)
    assert table.get(1) is table.get(2)


def test_a_block_takes_24_bytes_and_blocks_that_left_are_given_back(native_modules: dict[str, ModuleType]) -> None:
    table = native_modules["mask_table"].NativeMaskTable()
    block_hashes = array("Q", [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(200_000)])
    assert not table.load(block_hashes, array("I", [1]) * len(block_hashes), {1: 1}, len(block_hashes))
    assert len(table) == len(block_hashes)
    assert table.bytes / len(table) < 32
    assert all(table.get(own) == 1 for own in block_hashes)
    table.remove(block_hashes, 1)
    assert not len(table)
    assert list(table) == []


def test_columns_that_do_not_fit_are_refused(native_modules: dict[str, ModuleType]) -> None:
    table = native_modules["mask_table"].NativeMaskTable()
    with pytest.raises(ValueError, match="do not fit"):
        table.load(array("Q", [1]), array("I", [1, 2]), {1: 1, 2: 2}, 10)
    with pytest.raises(ValueError, match="do not fit"):
        table.load(array("I", [1]), array("I", [1]), {1: 1}, 10)
