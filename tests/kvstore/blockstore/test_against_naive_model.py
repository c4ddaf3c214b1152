"""Random events, plausible or not, against a naive model with lists, counters and whole prompts as
names.

The other random test has a well-behaved engine. Here blocks are removed that were never stored,
stored under unknown parents, in three tiers, and under two handles for one content. The naive model
keeps whole prompts instead of hashes and searches lists instead of tables. The results must never
differ. The changes lead to the same blocks, or to fewer where blocks have two handles.
"""

from collections import Counter

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.events.payloads import CacheEvent, ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import BatchesLost, StreamResumed
from fairlead_testing.kvstore.block_store import apply_batch, cached_depths, instance_state, restore_snapshot

NIGHTLY = settings().max_examples > 1_000
MODEL = "default/tiny"
LIMITS = Limits(kv_orphans_per_instance=10_000)
MEDIA = {"GPU": StorageTier.GPU, "CPU": StorageTier.CPU, "DISK": StorageTier.DISK}
PATHS = st.text("ab", min_size=1, max_size=5)
Path = str
"""A prompt of one-token blocks, ``a`` or ``b`` each; its last block has the whole path as name."""


def handle_of(path: Path, alias: int) -> int:
    """Returns the engine's hash. ``alias`` 1 gives another one for the same content, as an
    unreported salt does.
    """
    return int("1" + path.translate({ord("a"): "0", ord("b"): "1"}), 2) + alias * 1_000_000


Waiting = tuple[Path, int, int, StorageTier]
"""A path, how many of its blocks come before the event, under which alias, in which tier."""


def handles_of(item: Waiting) -> list[int]:
    """Returns the handles of an event's blocks."""
    path, first, alias, _ = item
    return [handle_of(path[:end], alias) for end in range(first + 1, len(path) + 1)]


class Naive:
    """The naive model. Rows are [path, copies by tier] by handle; waiting events are a list, in
    order.
    """

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Path, Counter[StorageTier]]] = {}
        self.waiting: list[Waiting] = []
        self.gone: Counter[tuple[int, StorageTier]] = Counter()

    def stored(self, item: Waiting) -> None:
        if not self.add(item):
            self.waiting.append(item)
            return
        linked: list[Waiting] = []
        fresh = set(handles_of(item))
        while ready := [parked for parked in self.waiting if handle_of(parked[0][: parked[1]], parked[2]) in fresh]:
            self.waiting.remove(ready[0])
            self.add(ready[0])
            linked.append(ready[0])
            fresh |= set(handles_of(ready[0]))
        for parked in linked:
            for handle in handles_of(parked):
                if self.gone[handle, parked[3]]:
                    self.gone[handle, parked[3]] -= 1
                    self.take(handle, parked[3])

    def add(self, item: Waiting) -> bool:
        path, first, alias, tier = item
        start = handle_of(path[:first], alias)
        if first and start not in self.rows and handle_of(path[: first + 1], alias) not in self.rows:
            return False
        for end in range(first + 1, len(path) + 1):
            self.rows.setdefault(handle_of(path[:end], alias), (path[:end], Counter()))[1][tier] += 1
        return True

    def removed(self, handle: int, tier: StorageTier) -> None:
        if not self.take(handle, tier):
            copies = sum(handles_of(item).count(handle) for item in self.waiting if item[3] is tier)
            if self.gone[handle, tier] < copies:
                self.gone[handle, tier] += 1

    def take(self, handle: int, tier: StorageTier) -> bool:
        row = self.rows.get(handle)
        if row is None or not row[1][tier]:
            return False
        row[1][tier] -= 1
        if not sum(row[1].values()):
            del self.rows[handle]
        return True

    def content(self) -> set[tuple[Path, StorageTier]]:
        return {(path, tier) for path, copies in self.rows.values() for tier, count in copies.items() if count}


def own_of(path: Path) -> int:
    return block_hashes(chain_root(MODEL), [ord(char) for char in path], 1)[-1]


class AgainstNaive(RuleBasedStateMachine):
    """An instance that receives events, and a copy that receives its changes."""

    ALIASES = 1

    def __init__(self) -> None:
        super().__init__()
        self.truth = BlockStore(limits=LIMITS)
        self.truth.attach("i", MODEL, 0.0)
        self.naive = Naive()
        self.copy: set[tuple[int, StorageTier]] = set()
        self.late_copy: set[tuple[int, StorageTier]] = set()
        self.now = 0.0

    @rule(path=PATHS, first=st.integers(0, 4), alias=st.integers(0, 1), medium=st.sampled_from(sorted(MEDIA)))
    def stored(self, path: Path, first: int, alias: int, medium: str) -> None:
        alias %= self.ALIASES
        first = min(first, len(path) - 1)
        hashes = [handle_of(path[:end], alias) for end in range(first + 1, len(path) + 1)]
        parent = handle_of(path[:first], alias) if first else None
        tokens = [ord(char) for char in path[first:]]
        self.apply(StoredEvent(list(hashes), parent, list(tokens), 1, None, medium))
        self.naive.stored((path, first, alias, MEDIA[medium]))

    @rule(paths=st.lists(PATHS, max_size=4), alias=st.integers(0, 1), medium=st.sampled_from(sorted(MEDIA)))
    def removed(self, paths: list[Path], alias: int, medium: str) -> None:
        alias %= self.ALIASES
        handles = [handle_of(path, alias) for path in paths]
        self.apply(RemovedEvent(list(handles), medium))
        for handle in handles:
            self.naive.removed(handle, MEDIA[medium])

    @rule()
    def cleared(self) -> None:
        self.apply(ClearedEvent())
        self.naive = Naive()

    @rule()
    def lost(self) -> None:
        self.take(self.truth.apply_at_once("i", BatchesLost(1, 1, "a test"), self.now))
        self.naive = Naive()

    @rule(wall=st.sampled_from([-1_000.0, 0.0, 1_000.0]))
    def the_indexer_is_restarted(self, wall: float) -> None:
        """Starts another indexer from a snapshot, which has no orphans."""
        kept, rows = self.truth.take_snapshot("i", wall)
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=InstanceSnapshot)
        self.now += wall
        before, self.truth = instance_state(self.truth, "i"), BlockStore(limits=LIMITS)
        self.truth.attach("i", MODEL, self.now)
        assert restore_snapshot(self.truth, "i", kept, rows, 0.0, self.now) == [
            changes.CompletenessChanged("i", False, "the indexer restarted", self.now)
        ]
        self.truth.apply_at_once("i", StreamResumed(), self.now)
        after = instance_state(self.truth, "i")
        assert (after.complete, after.reason, after.since - before.since) == (before.complete, before.reason, wall)
        self.naive.waiting.clear()
        self.naive.gone.clear()

    @rule()
    def a_consumer_starts_from_a_snapshot(self) -> None:
        """Starts a second copy from the rows, and the changes that follow."""
        self.late_copy = set(self.truth.content("i"))

    @invariant()
    def they_agree(self) -> None:
        expected = {(own_of(path), tier) for path, tier in self.naive.content()}
        assert set(self.truth.content("i")) == expected
        assert self.copy <= expected
        assert self.late_copy <= expected
        assert self.ALIASES > 1 or self.copy == expected
        state = instance_state(self.truth, "i")
        assert state.blocks == len(self.naive.rows) == self.truth.block_count
        assert state.orphans == sum(len(path) - first for path, first, *_ in self.naive.waiting)

    @invariant()
    def depths_are_those_of_the_naive_model(self) -> None:
        there = self.naive.content()
        for path in ("aaaaa", "abbab"):
            expected, depth = {}, 0
            for tier in (StorageTier.GPU, StorageTier.CPU, StorageTier.DISK):
                while depth < 5 and any((path[: depth + 1], upto) in there for upto in range(tier + 1)):
                    depth += 1
                expected[tier] = depth
            expected[StorageTier.REMOTE] = depth
            assert (
                cached_depths(self.truth, "i", block_hashes(chain_root(MODEL), [ord(char) for char in path], 1))
                == expected
            )

    def apply(self, event: CacheEvent) -> None:
        self.now += 1.0
        self.take(apply_batch(self.truth, "i", EventBatch(0.0, [event]), self.now))

    def take(self, reported: list[changes.Change]) -> None:
        for change in reported:
            for copy in (self.copy, self.late_copy):
                if isinstance(change, changes.BlocksStored):
                    copy |= {(own, change.tier) for own in change.hashes}
                elif isinstance(change, changes.BlocksRemoved):
                    copy -= {(own, change.tier) for own in change.hashes}
                elif isinstance(change, changes.InstanceCleared):
                    copy.clear()


class AgainstNaiveWithSecondHandles(AgainstNaive):
    """The same, with blocks under two handles."""

    ALIASES = 2


for machine in (AgainstNaive, AgainstNaiveWithSecondHandles):
    machine.TestCase.settings = settings(
        max_examples=10_000 if NIGHTLY else 60, stateful_step_count=40 if NIGHTLY else 30
    )
TestAgainstNaive = pytest.mark.timeout(3_600)(AgainstNaive.TestCase)
TestSecondHandles = pytest.mark.timeout(3_600)(AgainstNaiveWithSecondHandles.TestCase)
