"""The compiled hashes of a prompt's blocks are those of the package xxhash."""

from types import ModuleType

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

STATES = st.integers(0, (1 << 64) - 1)


@given(
    seed=STATES,
    sizes=st.lists(st.one_of(st.sampled_from([256, 1_024, 4_096]), st.integers(241, 3_000)), max_size=5),
    start=st.integers(0, 70),
    state=STATES,
)
def test_hashes_are_those_of_xxhash(
    native_modules: dict[str, ModuleType], seed: int, sizes: list[int], start: int, state: int
) -> None:
    words = (xxhash.xxh3_64_digest(b"%d" % number, seed) for number in range((start + sum(sizes)) // 8 + 1))
    text = b"".join(words)
    ends, expected, previous = [], [], state
    for size in sizes:
        begin = start + (ends[-1] if ends else 0)
        ends.append(begin - start + size)
        previous = xxhash.xxh3_64_intdigest(text[begin : begin + size], previous)
        expected.append(previous)
    assert native_modules["block_hashes"].block_hashes(text, start, tuple(ends), state) == tuple(expected)


@pytest.mark.parametrize(("start", "ends"), [(0, (240,)), (0, (1_001,)), (-1, (256,)), (800, (256,)), (0, (512, 256))])
def test_blocks_outside_of_the_text_are_refused(
    native_modules: dict[str, ModuleType], start: int, ends: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="outside of the text"):
        native_modules["block_hashes"].block_hashes(bytes(1_000), start, ends, 0)
