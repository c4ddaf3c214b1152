"""Counts of blocks by instance, and the ranking of removals by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.analysis.block_counts import BlockCounts, count_blocks
from fairlead_kvstore.analysis.removal_ranking import RemovalRank, rank_removals
from fairlead_kvstore.blockstore.changes import BlocksStored, CompletenessChanged, InstanceCleared, InstanceDetached
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.index.replica import IndexReplica


def test_block_in_two_tiers_counts_once_and_empty_instances_are_listed() -> None:
    mirror = IndexReplica()
    mirror.apply(
        [
            BlocksStored("a", StorageTier.GPU, [1, 2, 3]),
            BlocksStored("a", StorageTier.CPU, [2]),
            BlocksStored("b", StorageTier.DISK, [3]),
        ]
    )
    mirror.apply([CompletenessChanged("c", False, "no KV event was read yet", 0.0)])
    assert count_blocks(mirror) == {
        "a": BlockCounts(gpu=3, cpu=1, disk=0, blocks=3, unique=2),
        "b": BlockCounts(gpu=0, cpu=0, disk=1, blocks=1, unique=0),
        "c": BlockCounts(),
    }


def test_clear_makes_shared_blocks_unique_to_other_instances() -> None:
    mirror = IndexReplica()
    mirror.apply([BlocksStored(name, StorageTier.GPU, [1, 2]) for name in "ab"])
    mirror.apply([InstanceCleared("a", 2, "restarted"), InstanceDetached("a")])
    assert count_blocks(mirror) == {"b": BlockCounts(gpu=2, blocks=2, unique=2)}
    assert list(mirror.blocks_of("a")) == []


@pytest.mark.property
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(INSTANCE_TIERS), st.sets(st.integers(1, 30), min_size=1)),
        max_size=12,
    )
)
def test_counts_equal_a_naive_count(reported: list[tuple[str, StorageTier, set[int]]]) -> None:
    mirror = IndexReplica()
    held: dict[str, set[tuple[int, StorageTier]]] = {}
    for name, tier, blocks in reported:
        mirror.apply([BlocksStored(name, tier, sorted(blocks))])
        held.setdefault(name, set()).update((own, tier) for own in blocks)
    counts = count_blocks(mirror)
    assert set(counts) == set(held)
    for name, content in held.items():
        assert set(mirror.blocks_of(name)) == content
        mine = {own for own, _ in content}
        others = {own for other, there in held.items() if other != name for own, _ in there}
        tiers = [sum(1 for _, tier in content if tier is wanted) for wanted in INSTANCE_TIERS]
        assert counts[name] == BlockCounts(*tiers, blocks=len(mine), unique=len(mine - others))
    assert sum(count for _, count in mirror.holder_sets()) == len(mirror)


def order(ranks: tuple[RemovalRank, ...]) -> list[tuple[str, int | None]]:
    return [(entry.instance, entry.rank) for entry in ranks]


def test_recently_used_blocks_weigh_more_and_incomplete_instances_have_no_rank() -> None:
    counted = {
        "old": BlockCounts(blocks=900, unique=800),
        "busy": BlockCounts(blocks=300, unique=200),
        "copy": BlockCounts(blocks=500, unique=0),
        "dark": BlockCounts(blocks=5, unique=5),
    }
    ranks = rank_removals(counted, {"dark": "the replay starts later"}, {"busy": 150, "old": 2})
    assert order(ranks) == [("copy", 1), ("old", 2), ("busy", 3), ("dark", None)]
    assert [entry.reason for entry in ranks] == [
        "other instances have all of its 500 blocks",
        "it alone has 800 of its 900 blocks, 2 of them used recently",
        "it alone has 200 of its 300 blocks, 150 of them used recently",
        "unknown: the replay starts later",
    ]
    assert order(rank_removals(counted, {}, None)) == [("copy", 1), ("dark", 2), ("busy", 3), ("old", 4)]


def test_count_unique_counts_blocks_of_one_attached_instance_in_any_tier() -> None:
    mirror = IndexReplica()
    mirror.apply(
        [
            BlocksStored("a", StorageTier.GPU, [1, 2, 3]),
            BlocksStored("a", StorageTier.CPU, [3]),
            BlocksStored("b", StorageTier.DISK, [2, 4]),
        ]
    )
    assert mirror.count_unique([1, 2, 3, 4, 5]) == {"a": 2, "b": 1}
    mirror.apply([InstanceDetached("b")])
    assert mirror.count_unique([1, 2, 3, 4, 5]) == {"a": 3}


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.integers(1, 20), min_size=1)), max_size=8))
def test_count_unique_of_all_blocks_equals_the_unique_block_counts(reported: list[tuple[str, set[int]]]) -> None:
    mirror = IndexReplica()
    for name, blocks in reported:
        mirror.apply([BlocksStored(name, StorageTier.GPU, sorted(blocks))])
    unique = {name: counts.unique for name, counts in count_blocks(mirror).items() if counts.unique}
    assert mirror.count_unique(range(1, 21)) == unique
