"""A loaded index, against the block store; its matches, counts and bounds."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead.limits import Limits
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.payloads import CacheEvent, ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import BatchesLost
from fairlead_testing.kvstore.block_store import apply_batch, cached_depths, instance_state
from fairlead_testing.kvstore.changed_blocks import ChangedBlocks, match_all

MODEL = "default/tiny"
NAMES = ("a", "b", "c", "d")
SHARED = shared_store_id(MODEL)
MEDIA = {"GPU": StorageTier.GPU, "CPU": StorageTier.CPU, "DISK": StorageTier.DISK, "remote": StorageTier.REMOTE}
PATHS = st.text("ab", min_size=1, max_size=6)


def chain(path: str) -> list[int]:
    return block_hashes(chain_root(MODEL), [ord(char) for char in path], 1)


def handles(path: str) -> list[int]:
    return [int("1" + path[:end].translate({97: "0", 98: "1"}), 2) for end in range(1, len(path) + 1)]


def stored(path: str, first: int, medium: str) -> CacheEvent:
    parent = handles(path)[first - 1] if first else None
    return StoredEvent(list(handles(path)[first:]), parent, [ord(char) for char in path[first:]], 1, None, medium)


def expected(truth: BlockStore, path: Sequence[int]) -> dict[str, tuple[int, ...]]:
    lengths = {}
    for name in NAMES:
        if name in truth:
            held = cached_depths(truth, name, path)
            if any(held.values()):
                lengths[name] = tuple(held[tier] for tier in StorageTier)
    return lengths


def table_of(*block_hashes: int) -> BlockTable:
    table = BlockTable()
    for own in block_hashes:
        table.add_at(table.by_handle.seek(own), own, own, 0, 0, 0, 1, 0)
    return table


class AgainstTruth(RuleBasedStateMachine):
    """Random events at four instances; the index receives the changes only."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = BlockStore(limits=Limits(kv_blocks_per_instance=40, kv_shared_seconds=100.0))
        self.mirror = ChangedBlocks()
        self.now = 0.0
        for name in NAMES:
            self.take(self.truth.attach(name, MODEL, 0.0))

    def take(self, changed: list[Change]) -> None:
        self.mirror.apply(changed)
        self.mirror.apply(changed)  # again does no harm

    def batch(self, name: str, event: CacheEvent) -> None:
        if name in self.truth:
            self.take(apply_batch(self.truth, name, EventBatch(0.0, [event]), self.now))

    @rule(
        name=st.sampled_from(NAMES),
        path=PATHS,
        first=st.integers(0, 5),
        medium=st.sampled_from(["GPU", *sorted(MEDIA)]),
    )
    def stores(self, name: str, path: str, first: int, medium: str) -> None:
        self.batch(name, stored(path, min(first, len(path) - 1), medium))

    @rule(
        name=st.sampled_from(NAMES), paths=st.lists(PATHS, max_size=4), medium=st.sampled_from(["GPU", *sorted(MEDIA)])
    )
    def removes(self, name: str, paths: list[str], medium: str) -> None:
        self.batch(name, RemovedEvent([handles(path)[-1] for path in paths], medium))

    @rule(name=st.sampled_from(NAMES))
    def clears(self, name: str) -> None:
        self.batch(name, ClearedEvent())

    @rule(name=st.sampled_from(NAMES))
    def loses(self, name: str) -> None:
        if name in self.truth:
            self.take(self.truth.apply_at_once(name, BatchesLost(1, 1, "a test"), self.now))

    @rule(name=st.sampled_from(NAMES))
    def comes_or_goes(self, name: str) -> None:
        if name in self.truth:
            self.take(self.truth.detach(name, "gone"))
        else:
            self.take(self.truth.attach(name, MODEL, self.now))
        if not any(name in self.truth for name in NAMES):
            assert not self.mirror.shared

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        while self.truth.expire(self.now):
            pass
        self.take(self.truth.take_evictions().get(MODEL, []))

    @invariant()
    def they_agree(self) -> None:
        for path in ("aaaaaa", "ababab", "bbabab", "b", "abbbbb"):
            mine = match_all(self.mirror, chain(path))
            others = expected(self.truth, chain(path))
            assert {name: mine.get(name) for name in others} == others
            assert all(name in others for name in mine)

    @invariant()
    def blocks_are_those_of_the_truth(self) -> None:
        for name in NAMES:
            content = set(self.truth.content(name)) if name in self.truth else set()
            assert set(self.mirror.blocks_of(name)) == content
            for own in chain("ababab"):
                bits = sum(1 << tier for tier in StorageTier if (own, tier) in content)
                assert self.mirror.tiers(name, own) == bits
                if name in self.truth:
                    assert self.truth.model(MODEL).tiers(name, own) == bits

    @invariant()
    def standings_are_those_of_the_truth(self) -> None:
        for name in NAMES:
            known = self.mirror.completeness(name)
            if name not in self.truth:
                assert known is None
            else:
                state = instance_state(self.truth, name)
                assert known == (state.complete, state.reason, state.since)


AgainstTruth.TestCase.settings = settings(stateful_step_count=40)
TestAgainstTruth = pytest.mark.property(AgainstTruth.TestCase)


def test_slower_tiers_extend_faster_ones_and_the_shared_store_comes_last() -> None:
    mirror = LoadedIndex()
    path = list(range(10, 20))
    for instance in ("x", "a", "y"):
        mirror.apply([changes.BlocksStored(instance, StorageTier.GPU, path[:2])])
    mirror.apply(
        [
            changes.BlocksStored("a", StorageTier.CPU, path[:5]),
            changes.BlocksStored("a", StorageTier.DISK, path[5:6]),
        ]
    )
    mirror.apply([changes.BlocksStored(SHARED, StorageTier.GPU, path[2:8])], 1_000.0)
    mirror.apply([changes.BlocksStored("y", StorageTier.GPU, path[7:9])])
    assert list(match_all(mirror, path).items()) == [("a", (2, 5, 6, 8)), ("y", (2, 2, 2, 9)), ("x", (2, 2, 2, 8))]
    assert (mirror.used_at(SHARED, path[2]), mirror.used_at("a", path[7])) == (1_000.0, None)
    mirror.apply([changes.BlocksRemoved(SHARED, StorageTier.GPU, path[6:8])])
    assert (
        SHARED in mirror.instances(),
        len({own for name in mirror.instances() for own, _ in mirror.blocks_of(name)}),
    ) == (False, 8)
    assert {name: blocks[StorageTier.REMOTE] for name, blocks in match_all(mirror, path).items()} == {
        "a": 6,
        "x": 6,
        "y": 6,
    }


def test_rows_of_a_snapshot_can_be_loaded() -> None:
    truth, mirror = BlockStore(), LoadedIndex()
    truth.attach("a", MODEL, 0.0)
    for medium in ("GPU", "CPU"):
        apply_batch(truth, "a", EventBatch(0.0, [stored("abab", 0, medium), stored("aab", 0, medium)]), 0.0)
    apply_batch(truth, "a", EventBatch(0.0, [RemovedEvent([handles("abab")[-1]], "GPU")]), 0.0)
    mirror.add_table("a", truth.instance("a").blocks, 1_000.0)
    assert match_all(mirror, chain("abab")) == {"a": (3, 4, 4, 4)}
    assert mirror.used_at("a", chain("abab")[0]) == 1_000.0
    mirror.apply([changes.BlocksStored("a", StorageTier.GPU, chain("abab")[:1])], 2_000.5)
    assert mirror.used_at("a", chain("abab")[0]) == 2_000.5
    mirror.apply([changes.BlocksStored("a", StorageTier.GPU, chain("abab")[:2])], float("nan"))
    assert [mirror.used_at("a", own) for own in chain("abab")[:2]] == [2_000.5, 1_000.0]
    assert mirror.used_at("a", 77) is None


def test_blocks_above_the_limit_are_not_credited() -> None:
    index = LoadedIndex(max_blocks=3)
    index.apply([changes.BlocksStored("a", StorageTier.GPU, [1, 2, 3, 4, 5])])
    index.add_table("b", table_of(1, 9), 0.0)
    assert match_all(index, [1, 2, 3, 4]) == {"a": (3, 3, 3, 3)}
    index.apply([changes.BlocksRemoved("a", StorageTier.GPU, [3])])
    index.add_table("b", table_of(1, 9), 0.0)
    assert len({own for name in index.instances() for own, _ in index.blocks_of(name)}) == 2
    assert match_all(index, [1]) == {"a": (1, 1, 1, 1), "b": (1, 1, 1, 1)}


def test_instances_above_the_limit_are_not_credited() -> None:
    index = LoadedIndex(max_instances=2)
    names = [f"e{number}" for number in range(1_000)]
    index.apply([changes.BlocksStored(name, StorageTier.GPU, [number + 1]) for number, name in enumerate(names)])
    index.apply([changes.CompletenessChanged(name, True, "", 0.0) for name in names])
    index.add_table("another", table_of(1, 2), 0.0)
    assert index.instances() == ("e0", "e1")
    index.apply([changes.InstanceDetached("e0"), changes.BlocksStored("later", StorageTier.GPU, [7])])
    assert list(index.blocks_of("later")) == [(7, StorageTier.GPU)]
