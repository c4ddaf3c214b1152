"""What each instance holds and nobody else does: the same as counted by hand, for any sets of blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.index.census import Census, census
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.truth.changes import Cleared, Gone, Marked, Stored
from fairlead_kvstore.truth.tiers import EXACT, Tier


def test_a_block_in_two_tiers_counts_once_and_an_instance_of_which_nothing_was_stored_is_there() -> None:
    mirror = IndexMirror()
    mirror.apply([Stored("a", Tier.GPU, 0, [1, 2, 3]), Stored("a", Tier.CPU, 0, [2]), Stored("b", Tier.DISK, 0, [3])])
    mirror.apply([Marked("c", False, "nothing was seen yet", 0.0)])
    assert census(mirror) == {
        "a": Census(gpu=3, cpu=1, disk=0, blocks=3, unique=2),
        "b": Census(gpu=0, cpu=0, disk=1, blocks=1, unique=0),
        "c": Census(),
    }


def test_what_a_cleared_instance_held_is_unique_to_the_others_at_once() -> None:
    mirror = IndexMirror()
    mirror.apply([Stored(name, Tier.GPU, 0, [1, 2]) for name in "ab"])
    mirror.apply([Cleared("a", 2, "restarted"), Gone("a")])
    assert census(mirror) == {"b": Census(gpu=2, blocks=2, unique=2)}
    assert list(mirror.content("a")) == []


@pytest.mark.property
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(EXACT), st.sets(st.integers(1, 30), min_size=1)), max_size=12
    )
)
def test_the_census_is_what_counting_by_hand_gives(told: list[tuple[str, Tier, set[int]]]) -> None:
    mirror = IndexMirror()
    held: dict[str, set[tuple[int, Tier]]] = {}
    for name, tier, blocks in told:
        mirror.apply([Stored(name, tier, 0, sorted(blocks))])
        held.setdefault(name, set()).update((own, tier) for own in blocks)
    found = census(mirror)
    assert set(found) == set(held)
    for name, content in held.items():
        assert set(mirror.content(name)) == content
        mine = {own for own, _ in content}
        others = {own for other, there in held.items() if other != name for own, _ in there}
        tiers = [sum(1 for _, tier in content if tier is one) for one in EXACT]
        assert found[name] == Census(*tiers, blocks=len(mine), unique=len(mine - others))
    assert sum(count for _, count in mirror.sets()) == len(mirror)
