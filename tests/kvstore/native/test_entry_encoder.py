"""Compiled code writes the entries of the index's stream byte for byte as Python does."""

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.index import format as index_format

NAMES = st.sampled_from(["a/8000/0", "b/8000/0", "ä", ""])
NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32])
)
HASHES = st.one_of(st.lists(NUMBERS, max_size=20), st.integers(0, 70_000).map(lambda count: [7] * count))
TIERS = st.sampled_from(INSTANCE_TIERS)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(changes.BlocksStored, NAMES, TIERS, NUMBERS, HASHES),
    st.builds(changes.BlocksRemoved, NAMES, TIERS, HASHES),
    st.builds(changes.InstanceCleared, NAMES, st.integers(0, 2**40), st.text(max_size=5)),
    st.builds(changes.InstanceDetached, NAMES),
    st.builds(changes.CompletenessChanged, NAMES, st.booleans(), st.text(max_size=5), st.floats(0, 1e9)),
    st.builds(changes.HintsAdded, st.just("default/tiny"), HASHES, st.floats(0, 1e9)),
    st.builds(changes.HintsExpired, st.just("default/tiny"), HASHES),
)


@given(st.lists(CHANGES, max_size=40), st.floats(0, 2e9), st.floats(0, 2e9))
def test_entries_have_the_same_bytes(
    native_modules: dict[str, ModuleType], offered: list[Change], wall: float, offset: float
) -> None:
    expected = index_format.encode_entry(offered, wall, offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_format, "ENCODE_CHANGES", native_modules["entry_encoder"].encode_changes)
        assert index_format.encode_entry(offered, wall, offset) == expected
        assert index_format.encode_entry(tuple(offered), wall, offset) == expected
