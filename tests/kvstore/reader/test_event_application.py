"""From frames to changes: the effect of each outcome on the block store."""

from collections import Counter

import msgspec

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, CompletenessChanged, InstanceCleared
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.events.payloads import EventBatch, StoredEvent
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import AcceptBatch, EventFrame, StreamComplete, StreamOutcome
from fairlead_kvstore.reader.event_application import AppliedEvents, EventApplication, apply_outcomes
from fairlead_testing.kvstore.block_store import apply_batch, instance_state
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

ADAPTER = {"block_size": 1, "lora_id": 2, "medium": "GPU", "lora_name": "a"}


class Reader:
    """One stream and its block store."""

    def __init__(self) -> None:
        self.truth, self.stream, self.counts = BlockStore(), EventSequencer(replayable=True), Counter[str]()
        self.truth.attach("i", "default/tiny", 0.0)
        self.follow(self.stream.on_connected())
        self.follow(self.stream.on_replayed_frame(None))

    def follow(self, outcomes: list[StreamOutcome]) -> AppliedEvents:
        return apply_outcomes(self.truth, "i", outcomes, 1.0, counts=self.counts)


def test_first_batch_makes_an_instance_complete() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(13)))
    frame = engine.publish()
    assert frame is not None
    applied = reader.follow(reader.stream.on_live_frame(frame))
    assert [type(change) for change in applied.changes] == [CompletenessChanged, BlocksStored]
    assert (applied.batches, applied.replay_from, instance_state(reader.truth, "i").complete) == (1, None, True)


def test_gap_names_the_replay_start_and_changes_nothing_yet() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    for start in (0, 100, 200):
        engine.serve_prompt(list(range(start, start + 5)))
        engine.publish()
    reader.follow(reader.stream.on_live_frame(engine.frames[0]))
    applied = reader.follow(reader.stream.on_live_frame(engine.frames[2]))
    assert (applied.replay_from, reader.counts["gaps"], applied.changes) == (0, 1, [])
    outcomes = [outcome for frame in [*engine.replay(0), None] for outcome in reader.stream.on_replayed_frame(frame)]
    applied = reader.follow(outcomes)
    assert (applied.batches, reader.counts["duplicates"], instance_state(reader.truth, "i").blocks) == (2, 1, 3)


def test_unreadable_batch_counts_as_lost() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(9)))
    frame = engine.publish()
    assert frame is not None
    reader.follow(reader.stream.on_live_frame(frame))
    damaged = msgspec.msgpack.encode([0.0, [{"type": "BlockRemoved", "block_hashes": 7}], 0])
    applied = reader.follow(reader.stream.on_live_frame(EventFrame(1, damaged)))
    assert reader.counts["unreadable:removal"] == 1
    assert [type(change) for change in applied.changes] == [InstanceCleared, CompletenessChanged]
    assert not instance_state(reader.truth, "i").complete


def test_disconnect_marks_the_instance_until_the_process_is_proved() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(9)))
    engine.publish()
    reader.follow(reader.stream.on_live_frame(engine.frames[0]))
    reader.follow(reader.stream.on_disconnected())
    assert instance_state(reader.truth, "i").reason == "disconnected"
    assert reader.follow(reader.stream.on_connected()).replay_from == 0
    reader.follow(
        [outcome for frame in [*engine.replay(0), None] for outcome in reader.stream.on_replayed_frame(frame)]
    )
    assert (instance_state(reader.truth, "i").complete, instance_state(reader.truth, "i").epoch) == (True, 1)
    reader.follow(reader.stream.on_disconnected())
    reader.follow(reader.stream.on_replaced("its pod is another one"))
    assert reader.counts["restarts"] == 1
    assert (instance_state(reader.truth, "i").epoch, instance_state(reader.truth, "i").blocks) == (2, 0)


def large_frame(number: int, first: int, blocks: int = 600) -> AcceptBatch:
    """Returns a batch of one event with many blocks, as the sequencer accepts it."""
    hashes = list(range(first, first + blocks))
    event = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": hashes,
        "block_size": 1,
    }
    return AcceptBatch(number, msgspec.msgpack.encode([1.5, [event], 0]))


def sliced_application() -> tuple[BlockStore, EventApplication]:
    store = BlockStore()
    store.attach("i", "default/tiny", 0.0)
    return store, EventApplication(store, "i", Limits(kv_slice_bytes=512))


def test_large_batch_is_applied_in_slices_in_order() -> None:
    store, application = sliced_application()
    application.add([large_frame(0, 1), StreamComplete("whole"), large_frame(1, 1_001)])
    assert application.waiting_bytes > 0
    grown: list[int] = []
    completed_at = None
    while application.is_busy:
        applied = application.run(1.0, 512)
        assert applied.cost < 1_200
        grown.append(sum(len(change.hashes) for change in applied.changes if isinstance(change, BlocksStored)))
        if any(isinstance(change, CompletenessChanged) for change in applied.changes):
            completed_at = sum(grown)
    assert max(grown) <= 64
    assert (sum(grown), instance_state(store, "i").blocks, application.waiting_bytes) == (1_200, 1_200, 0)
    assert completed_at is not None and 600 <= completed_at < 700  # noqa: PT018


def test_clears_of_one_batch_are_applied_a_few_at_a_time() -> None:
    store = BlockStore()
    store.attach("i", "default/tiny", 0.0)
    application = EventApplication(store, "i")
    payload = msgspec.msgpack.encode([1.0, [["AllBlocksCleared"]] * 1_000, 0])
    application.add([AcceptBatch(0, payload)])
    slices = 0
    while application.is_busy:
        application.run(1.0, Limits().kv_slice_bytes)
        slices += 1
    assert slices > 1_000 / 20, "each takes 0.1 ms"


def test_sleep_between_two_slices_leaves_no_block_of_the_batch() -> None:
    store, application = sliced_application()
    application.add([large_frame(0, 1)])
    while instance_state(store, "i").blocks < 100:
        application.run(1.0, 512)
    application.add([EngineSleep(is_asleep=True), large_frame(1, 1)])
    while application.is_busy:
        application.run(1.0, 512)
    assert instance_state(store, "i").blocks == 0


def test_reload_of_an_adapter_with_many_blocks_takes_many_short_steps() -> None:
    store, application = sliced_application()
    hashes = list(range(1, 5_001))
    apply_batch(store, "i", EventBatch(0.0, [StoredEvent(hashes, None, hashes, 1, 1, "GPU", "a")]), 1.0)
    reload = {"type": "BlockStored", "block_hashes": [9_999], "parent_block_hash": None, "token_ids": [7]}
    application.add([AcceptBatch(0, msgspec.msgpack.encode([1.0, [{**reload, **ADAPTER}], 0]))])
    removed: list[int] = []
    while application.is_busy:
        applied = application.run(1.0, 512)
        removed.append(sum(len(change.hashes) for change in applied.changes if isinstance(change, BlocksRemoved)))
    assert (sum(removed), len(list(store.content("i")))) == (5_000, 1)
    assert max(removed) <= 512


def test_clear_of_a_tier_with_many_blocks_takes_many_short_steps() -> None:
    store, application = sliced_application()
    hashes = list(range(1, 5_001))
    apply_batch(store, "i", EventBatch(0.0, [StoredEvent(hashes, None, hashes, 1, None, "disk")]), 1.0)
    application.add(
        [AcceptBatch(0, msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared", "medium": "disk"}], 0]))]
    )
    steps = 0
    while application.is_busy:
        applied = application.run(1.0, 512)
        steps += 1
        assert sum(len(change.hashes) for change in applied.changes if isinstance(change, BlocksRemoved)) <= 512
    assert (steps >= 10, instance_state(store, "i").blocks) == (True, 0)


def test_orphans_of_one_parent_are_linked_in_many_short_steps() -> None:
    store, application = sliced_application()
    children = [StoredEvent([number], 1, [number], 1) for number in range(2, 5_002)]
    apply_batch(store, "i", EventBatch(0.0, children), 1.0)
    application.add([large_frame(0, 1, 1)])
    most = 0
    while application.is_busy:
        applied = application.run(1.0, 512)
        most = max(most, sum(len(change.hashes) for change in applied.changes if isinstance(change, BlocksStored)))
    assert (instance_state(store, "i").blocks, instance_state(store, "i").orphans) == (5_001, 0)
    assert most <= 1_024


def test_eviction_of_a_large_overflow_takes_many_short_steps() -> None:
    limits = Limits(kv_slice_bytes=512, kv_blocks_per_instance=20_000)
    store = BlockStore(limits=limits)
    store.attach("i", "default/tiny", 0.0)
    hashes = list(range(1, 20_001))
    apply_batch(store, "i", EventBatch(0.0, [StoredEvent(hashes, None, hashes, 1)]), 1.0)
    application = EventApplication(store, "i", limits)
    application.add([large_frame(0, 100_000, 8_000)])
    most = 0
    while application.is_busy:
        applied = application.run(100.0, 512)
        most = max(most, sum(len(change.hashes) for change in applied.changes if isinstance(change, BlocksRemoved)))
    assert (most, instance_state(store, "i").blocks <= 20_000) == (1_024, True)
