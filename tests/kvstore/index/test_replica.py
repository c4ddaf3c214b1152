"""The index replica, against the block store; bits of removed instances are reused."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.payloads import CacheEvent, ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import BatchesLost
from fairlead_kvstore.index.replica import IndexReplica, InstanceMatch, KnownCompleteness
from fairlead_kvstore.index.sink import LocalSink
from fairlead_testing.kvstore.block_store import apply_batch, cached_depths

MODEL = "default/tiny"
NAMES = ("a", "b", "c", "d")
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


class AgainstTruth(RuleBasedStateMachine):
    """Random events at four instances; the replica receives the changes only."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = BlockStore(limits=Limits(kv_blocks_per_instance=40, kv_shared_seconds=100.0))
        self.mirror = IndexReplica()
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
        if not any(name in self.truth for name in NAMES):  # the model is gone, and its hints with it
            self.mirror = IndexReplica()

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.truth.expire(self.now))
        assert self.mirror.expire(self.now) == []

    @rule(most=st.integers(0, 8))
    def sweeps(self, most: int) -> None:
        self.mirror.sweep(most)

    @invariant()
    def they_agree(self) -> None:
        for path in ("aaaaaa", "ababab", "bbabab", "b", "abbbbb"):
            mine = {held.instance: held.blocks for held in self.mirror.match(chain(path))}
            others = expected(self.truth, chain(path))
            assert {name: mine.get(name) for name in others} == others
            assert all(name in others for name in mine)

    @invariant()
    def holders_are_those_of_the_truth(self) -> None:
        content = {name: set(self.truth.content(name)) for name in NAMES if name in self.truth}
        for own in chain("ababab"):
            there = {name: tuple(t for t in StorageTier if (own, t) in blocks) for name, blocks in content.items()}
            assert self.mirror.holders(own) == {name: tiers for name, tiers in there.items() if tiers}

    @invariant()
    def standings_are_those_of_the_truth(self) -> None:
        for name in NAMES:
            known = self.mirror.completeness(name)
            if name not in self.truth:
                assert known is None
            else:
                state = self.truth.state(name)
                assert known == KnownCompleteness(state.complete, state.reason, state.since)


AgainstTruth.TestCase.settings = settings(stateful_step_count=40)
TestAgainstTruth = pytest.mark.property(AgainstTruth.TestCase)


def test_match_returns_the_longest_run_of_each_instance_deepest_first() -> None:
    mirror = IndexReplica()
    path = list(range(10, 20))
    mirror.apply(
        [changes.BlocksStored("a", StorageTier.GPU, path[:4]), changes.BlocksStored("b", StorageTier.GPU, path)]
    )
    mirror.apply([changes.BlocksStored("c", StorageTier.GPU, path[1:])])  # it lacks the first
    assert mirror.match(path) == (InstanceMatch("b", (10, 10, 10, 10)), InstanceMatch("a", (4, 4, 4, 4)))
    mirror.apply([changes.BlocksRemoved("b", StorageTier.GPU, [path[2]])])  # a hole in the middle
    assert mirror.match(path) == (InstanceMatch("a", (4, 4, 4, 4)), InstanceMatch("b", (2, 2, 2, 2)))
    assert mirror.match([]) == ()
    assert mirror.match([99]) == ()


def test_slower_tiers_extend_faster_ones_and_hints_come_last() -> None:
    mirror = IndexReplica()
    path = list(range(10, 20))
    for instance in ("x", "a", "y"):
        mirror.apply([changes.BlocksStored(instance, StorageTier.GPU, path[:2])])
    mirror.apply(
        [
            changes.BlocksStored("a", StorageTier.CPU, path[:5]),
            changes.BlocksStored("a", StorageTier.DISK, path[5:6]),
        ]
    )
    mirror.apply([changes.HintsAdded(MODEL, path[6:8], 50.0), changes.BlocksStored("y", StorageTier.GPU, path[7:9])])
    mirror.apply([changes.HintsAdded(MODEL, path[2:6], 60.0)])
    assert mirror.match(path) == (
        InstanceMatch("a", (2, 5, 6, 8)),
        InstanceMatch("y", (2, 2, 2, 9)),
        InstanceMatch("x", (2, 2, 2, 8)),
    )
    assert mirror.expire(55.0) == path[6:8]
    assert {held.instance: held.blocks[StorageTier.REMOTE] for held in mirror.match(path)} == {"a": 6, "x": 6, "y": 6}


def test_rows_of_a_snapshot_can_be_loaded() -> None:
    truth, mirror = BlockStore(), IndexReplica()
    truth.attach("a", MODEL, 0.0)
    for medium in ("GPU", "CPU"):
        apply_batch(truth, "a", EventBatch(0.0, [stored("abab", 0, medium), stored("aab", 0, medium)]), 0.0)
    apply_batch(truth, "a", EventBatch(0.0, [RemovedEvent([handles("abab")[-1]], "GPU")]), 0.0)
    blocks = truth._instances["a"].blocks
    mirror.load_rows("a", blocks.block_hashes, blocks.counts)
    assert {matched.instance: matched.blocks for matched in mirror.match(chain("abab"))} == {"a": (3, 4, 4, 4)}


@pytest.mark.parametrize("tier", [StorageTier.GPU, StorageTier.CPU])
def test_cached_match_is_right_after_any_change(tier: StorageTier) -> None:
    """Instances reach different depths, so results are cached; each equals that of a fresh
    replica.
    """
    path = list(range(1, 13))
    reported: list[Change] = []
    mirror = IndexReplica()

    def agrees() -> None:
        fresh = IndexReplica()
        fresh.apply(reported)
        for some in (path, path[:6], [*path, 77, 78], [*path[:6], 99, *path[6:]], [99, *path]):
            for _ in range(2):
                mine = {held.instance: held.blocks for held in mirror.match(some)}
                assert mine == {held.instance: held.blocks for held in fresh.match(some)}

    def apply_to_both(*some: Change) -> None:
        reported.extend(some)
        mirror.apply(some)
        agrees()

    for number in range(10):
        name = f"i{number}"
        apply_to_both(changes.BlocksStored(name, StorageTier.GPU, path[: number + 2]))
        apply_to_both(changes.BlocksStored(name, tier, path[number + 1 : number + 4]))
    assert mirror._chain_results, "these are kept"
    apply_to_both(changes.BlocksRemoved("i9", StorageTier.GPU, [path[4]]))
    apply_to_both(changes.BlocksStored("i9", StorageTier.GPU, [path[4]]))
    apply_to_both(changes.InstanceCleared("i5", 2, "a test"))
    apply_to_both(changes.InstanceDetached("i6"))
    mirror.sweep(1_000)
    agrees()
    apply_to_both(changes.BlocksStored("new", StorageTier.GPU, path[:9]))
    apply_to_both(changes.BlocksStored("i5", StorageTier.GPU, path[:3]))
    apply_to_both(changes.HintsAdded(MODEL, [77], 5.0))
    apply_to_both(changes.HintsExpired(MODEL, [77]))


def test_detached_instance_is_dropped_at_once_and_its_bits_are_reused() -> None:
    mirror = IndexReplica()
    for number in range(1_000):
        name = f"i{number}"
        mirror.apply(
            [
                changes.BlocksStored(name, StorageTier.GPU, [1, 2, number + 10]),
                changes.CompletenessChanged(name, True, "", 0.0),
            ]
        )
        assert [held.instance for held in mirror.match([1, 2])] == [name]
        mirror.apply([changes.InstanceCleared(name, 2, "gone"), changes.InstanceDetached(name)])
        assert mirror.match([1, 2]) == ()
        assert mirror.instances() == ()
    while mirror.sweep(1):
        pass
    assert len(mirror) == 0
    assert mirror._gpu_bits.bit_length() < 3 * 70, "a thousand came and went, a few at a time"


def test_engine_that_clears_its_cache_with_each_event_causes_no_sweep_of_all_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror, swept = IndexReplica(), 0
    many = list(range(1, 50_001))
    mirror.apply([changes.BlocksStored("other", StorageTier.GPU, many)])
    sweep = mirror.sweep

    def counted(most: int) -> bool:
        nonlocal swept
        swept += min(most, len(mirror))
        return sweep(most)

    monkeypatch.setattr(mirror, "sweep", counted)
    pair = (changes.BlocksStored("flaps", StorageTier.GPU, [1, 2]), changes.InstanceCleared("flaps", 2, "cleared"))
    mirror.apply(pair * 4_000)
    for _ in range(100):
        mirror.apply(pair)
    assert swept < 60_000, "in proportion to the events, and not all blocks of the model again and again"
    assert mirror._by_bit.keys() < {1 << 3 * place for place in range(1_100)}, "and bits do not grow without end"
    assert mirror.match([1, 2]) == (InstanceMatch("other", (2, 2, 2, 2)),)
    while mirror.sweep(10_000):
        pass
    mirror.apply(pair[:1])
    assert mirror.match([1, 2])[1:] == (InstanceMatch("flaps", (2, 2, 2, 2)),), "it is credited again after a sweep"


def test_blocks_above_the_limit_are_counted_and_not_credited() -> None:
    mirror = IndexReplica(max_blocks=3)
    mirror.apply([changes.BlocksStored("a", StorageTier.GPU, [1, 2, 3, 4, 5])])
    mirror.load_rows("b", [1, 9], [1, 1])
    assert (len(mirror), mirror.dropped) == (3, 3)
    assert mirror.match([1, 2, 3, 4]) == (InstanceMatch("a", (3, 3, 3, 3)), InstanceMatch("b", (1, 1, 1, 1)))


def test_instances_above_the_limit_are_counted_and_not_credited() -> None:
    mirror = IndexReplica(max_instances=2)
    names = [f"e{number}" for number in range(1_000)]
    mirror.apply([changes.BlocksStored(name, StorageTier.GPU, [number + 1]) for number, name in enumerate(names)])
    mirror.apply([changes.CompletenessChanged(name, True, "", 0.0) for name in names])
    mirror.load_rows("another", [1, 2], [1, 1])
    assert (mirror.instances(), mirror.dropped) == (("e0", "e1"), 1_000)
    mirror.apply([changes.InstanceDetached("e0"), changes.BlocksStored("later", StorageTier.GPU, [7])])
    assert mirror.holders(7) == {"later": (StorageTier.GPU,)}


def test_local_sink_updates_replicas_without_redis() -> None:
    heard: list[tuple[str, int]] = []
    sink = LocalSink(on_changes=lambda key, reported: heard.append((key, len(sink.replica(key)))))
    sink.offer(MODEL, [changes.BlocksStored("a", StorageTier.GPU, [1, 2])])
    sink.offer(MODEL, [])
    sink.offer("default/other", [changes.BlocksStored("b", StorageTier.GPU, [1])])
    assert sink.replica(MODEL).match([1, 2]) == (InstanceMatch("a", (2, 2, 2, 2)),)
    assert heard == [(MODEL, 2), ("default/other", 1)], "each is told after the mirror has it"
