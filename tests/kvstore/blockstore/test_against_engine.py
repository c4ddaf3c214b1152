"""Random streams with every observed fault, against the engine that published them.

The engine of ``fairlead_testing.kvstore.prefix_cache_engine`` has a cache with vLLM's rules, so its
blocks are known. Its frames are lost, repeated, reordered and delayed; it restarts, clears its
cache and loses its replay buffer. Whenever all frames have arrived, the block store has no block
that the engine lacks (no ghosts). When it is ``complete``, it has exactly the engine's blocks,
except for an adapter that was loaded again. A copy that applies the changes one by one has the same
blocks.
"""

from collections import Counter, deque

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, CompletenessChanged, InstanceCleared
from fairlead_kvstore.blockstore.snapshot import RowParts
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep, InstanceSnapshot
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import EventFrame, StreamOutcome, StreamPosition
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_testing.kvstore.block_store import (
    block_extras,
    cached_depths,
    cached_tokens,
    instance_state,
    restore_snapshot,
)
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

NIGHTLY = settings().max_examples > 1_000
MODEL = "default/tiny"
SIZE = 4
PROMPTS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 23))
SALTS = st.sampled_from([None, None, "acme"])
ADAPTERS = st.sampled_from([None, None, "bot"])


def tokens_of(prompt: tuple[int, int, int]) -> list[int]:
    """Returns a prompt that shares its head with others: (head, where they part, length)."""
    head, tail, length = prompt
    return [head * 100 + index if index < 10 else tail * 1_000 + head * 100 + index for index in range(length)]


def named(tokens: tuple[int, ...], adapter: str | None, salt: str | None) -> list[int]:
    """Returns the block hashes of a prompt, as a gateway computes them."""
    return block_hashes(chain_root(MODEL, adapter), tokens, SIZE, block_extras(len(tokens) // SIZE, SIZE, salt=salt))


class FaultyStream(RuleBasedStateMachine):
    """One engine, one faulty stream and one reader."""

    @initialize(
        capacity=st.integers(4, 14),
        maps=st.booleans(),
        replayable=st.booleans(),
        buffer=st.sampled_from([1, 3, 10_000]),
        held=st.sampled_from([2, 4_096]),
        known=st.sampled_from([1, 2, 128]),
        room=st.sampled_from([6, 1_000]),
        late=st.integers(0, 3),
    )
    def start(
        self, capacity: int, maps: bool, replayable: bool, buffer: int, held: int, known: int, room: int, late: int
    ) -> None:
        self.settings = {"capacity": capacity, "maps": maps, "buffer": buffer}
        self.limits = Limits(
            kv_replay_buffered=held, kv_sequences_known=known, kv_blocks_per_instance=room, kv_orphans_per_instance=8
        )
        self.replayable, self.seed, self.now = replayable, 0, 0.0
        self.engine = PrefixCacheEngine(block_size=SIZE, seed=0, **self.settings)
        self.engine.load("bot", "a")
        self.prompts: set[tuple[tuple[int, ...], str | None, str | None]] = set()
        self.wire: deque[EventFrame] = deque()
        self.answers: deque[EventFrame | None] = deque()
        self.copy: set[tuple[int, StorageTier]] = set()
        self.marked: bool | None = None
        self.kept: tuple[InstanceSnapshot, RowParts, StreamPosition | None] | None = None
        self.truth = BlockStore(limits=self.limits)
        self.truth.attach("i", MODEL, self.now)
        self.stream = EventSequencer(replayable=replayable, buffer=buffer, limits=self.limits)
        for tail in range(late):
            self.prompt((0, tail, 23), None, None, 0.0)
        self.wire.clear()
        self.handle(self.stream.on_connected())

    # --- the engine -----------------------------------------------------------------------------------------------------

    @rule(prompt=PROMPTS, adapter=ADAPTERS, salt=SALTS, seconds=st.sampled_from([0.0, 0.5, 9.0]))
    def prompt(self, prompt: tuple[int, int, int], adapter: str | None, salt: str | None, seconds: float) -> None:
        self.now += seconds
        tokens = tokens_of(prompt)
        self.engine.serve_prompt(tokens, adapter, salt)
        self.prompts.add((tuple(tokens), adapter, salt))
        self.publish()

    @rule(path=st.sampled_from(["a", "b"]))
    def load(self, path: str) -> None:
        """Loads the adapter, or loads it again."""
        self.engine.load("bot", path)

    @rule()
    def clear(self) -> None:
        self.engine.clear()
        self.publish()

    @rule(same=st.booleans(), seen=st.integers(0, 2))
    def restart(self, same: bool, seen: int) -> None:
        """Ends the process with some of its last batches in flight; ZeroMQ reports the
        disconnect.
        """
        for _ in range(seen):
            self.deliver()
        self.seed += not same
        self.engine = PrefixCacheEngine(block_size=SIZE, seed=self.seed, **self.settings)
        self.engine.load("bot", "a")
        self.reconnect()

    @rule()
    def sleep(self) -> None:
        """Lets the idle engine clear its cache, which it reports with its next batch.

        Earlier frames are still in flight.
        """
        self.engine.clear()
        self.apply(self.truth.apply_at_once("i", EngineSleep(is_asleep=True), self.now))

    @rule()
    def wake_up(self) -> None:
        """Learns from the fleet that the engine is awake; earlier frames may still be in flight."""
        self.apply(self.truth.apply_at_once("i", EngineSleep(is_asleep=False), self.now))

    # --- the wire -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self) -> None:
        if self.wire:
            self.handle(self.stream.on_live_frame(self.wire.popleft()))

    @precondition(lambda self: self.wire)
    @rule()
    def drop(self) -> None:
        self.wire.popleft()

    @precondition(lambda self: self.wire)
    @rule()
    def repeat(self) -> None:
        self.wire.appendleft(self.wire[0])

    @precondition(lambda self: len(self.wire) > 1)
    @rule()
    def swap(self) -> None:
        self.wire.rotate(1)

    @rule()
    def reconnect(self) -> None:
        self.wire.clear()
        self.answers.clear()
        self.handle(self.stream.on_disconnected())
        self.handle(self.stream.on_connected())

    @precondition(lambda self: self.answers)
    @rule(count=st.integers(1, 4))
    def answer(self, count: int) -> None:
        for _ in range(count):
            if self.answers:
                self.handle(self.stream.on_replayed_frame(self.answers.popleft()))

    @precondition(lambda self: self.stream.is_replaying)
    @rule()
    def refuse(self) -> None:
        self.answers.clear()
        self.handle(self.stream.on_replay_failed("no answer"))

    # --- the indexer ----------------------------------------------------------------------------------------------------

    @rule()
    def keep(self) -> None:
        """Takes a snapshot of the instance and the stream's position."""
        kept, rows = self.truth.take_snapshot("i", 7.0)
        self.kept = (
            msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=InstanceSnapshot),
            rows,
            self.stream.position,
        )

    @rule()
    def another_indexer(self) -> None:
        """Starts another indexer from the snapshot, which may be old; frames in flight are lost."""
        self.wire.clear()
        self.answers.clear()
        self.truth = BlockStore(limits=self.limits)
        self.truth.attach("i", MODEL, self.now)
        position = None
        if self.kept is not None:
            kept, rows, position = self.kept
            if position is not None:
                restore_snapshot(self.truth, "i", kept, rows, 7.0, self.now)
        self.copy = set(self.truth.content("i"))
        self.marked = None
        self.stream = EventSequencer(
            replayable=self.replayable, buffer=self.settings["buffer"], limits=self.limits, position=position
        )
        self.handle(self.stream.on_connected())

    @rule()
    def settle(self) -> None:
        """Delivers all frames, then one more batch that reveals missing ones."""
        self.arrive()
        for adapter in (None, "bot"):
            start = 10_000 + self.engine.number * 10
            self.engine.serve_prompt([start + index for index in range(SIZE)], adapter)
            self.publish()
        self.arrive()
        self.compare()

    # --- what must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def the_copy_is_the_truth(self) -> None:
        if hasattr(self, "truth"):
            assert self.copy == set(self.truth.content("i"))
            assert self.marked in (None, instance_state(self.truth, "i").complete)
            assert (
                self.truth.block_count == instance_state(self.truth, "i").blocks <= self.limits.kv_blocks_per_instance
            )

    def teardown(self) -> None:
        if hasattr(self, "truth"):
            self.settle()

    def compare(self) -> None:
        held = {own for own, _ in self.truth.content("i")}
        known: dict[int, bool] = {}
        for tokens, adapter, salt in self.prompts:
            values = self.engine.chain(tokens, adapter, salt)
            for own, value in zip(named(tokens, adapter, salt), values, strict=True):
                known[own] = self.engine.has_block(value)
        assert not [own for own in held if not known.get(own, True)], "ghosts"
        complete = instance_state(self.truth, "i").complete
        for tokens, adapter, salt in self.prompts:
            depth = cached_depths(self.truth, "i", named(tokens, adapter, salt))[StorageTier.GPU]
            predicted = cached_tokens(depth, len(tokens), SIZE)
            hit = self.engine.hit_blocks(tokens, adapter, salt) * SIZE
            assert predicted <= hit
            if complete:
                assert predicted == hit

    # --- the reader -----------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        frame = self.engine.publish(self.now)
        if frame is not None:
            self.wire.append(frame)

    def handle(self, outcomes: list[StreamOutcome]) -> None:
        counts = Counter[str]()
        applied = apply_outcomes(self.truth, "i", outcomes, self.now, self.limits, counts)
        assert not [name for name in counts if name.startswith("unreadable")]
        self.apply(applied.changes)
        if applied.replay_from is not None:
            self.answers += [*self.engine.replay(applied.replay_from), None]

    def apply(self, changes: list[object]) -> None:
        for change in changes:
            if isinstance(change, BlocksStored):
                assert not self.copy & {(own, change.tier) for own in change.hashes}
                self.copy |= {(own, change.tier) for own in change.hashes}
            elif isinstance(change, BlocksRemoved):
                assert self.copy >= {(own, change.tier) for own in change.hashes}
                self.copy -= {(own, change.tier) for own in change.hashes}
            elif isinstance(change, InstanceCleared):
                self.copy.clear()
            elif isinstance(change, CompletenessChanged):
                self.marked = change.complete

    def arrive(self) -> None:
        for _ in range(1_000):
            if self.answers:
                self.handle(self.stream.on_replayed_frame(self.answers.popleft()))
            elif self.wire:
                self.deliver()
            else:
                return
        raise AssertionError("it never comes to rest")


FaultyStream.TestCase.settings = settings(
    max_examples=10_000 if NIGHTLY else 25, stateful_step_count=40 if NIGHTLY else 30
)
TestFaultyStream = pytest.mark.timeout(3_600)(FaultyStream.TestCase)
