"""From frames to changes: the effect of each outcome on the block store."""

import msgspec

from fairlead_kvstore.blockstore.changes import BlocksStored, CompletenessChanged, InstanceCleared
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import EventFrame, StreamOutcome
from fairlead_kvstore.reader.event_application import AppliedEvents, apply_outcomes
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine


class Reader:
    """One stream and its block store."""

    def __init__(self) -> None:
        self.truth, self.stream = BlockStore(), EventSequencer(replayable=True)
        self.truth.attach("i", "default/tiny", 0.0)
        self.follow(self.stream.on_connected())
        self.follow(self.stream.on_replayed_frame(None))

    def follow(self, outcomes: list[StreamOutcome]) -> AppliedEvents:
        return apply_outcomes(self.truth, "i", outcomes, 1.0)


def test_first_batch_makes_an_instance_complete() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(13)))
    frame = engine.publish()
    assert frame is not None
    found = reader.follow(reader.stream.on_live_frame(frame))
    assert [type(one) for one in found.changes] == [CompletenessChanged, BlocksStored]
    assert (found.batches, found.replay_from, reader.truth.state("i").complete) == (1, None, True)


def test_gap_names_the_replay_start_and_changes_nothing_yet() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    for start in (0, 100, 200):
        engine.serve_prompt(list(range(start, start + 5)))
        engine.publish()
    reader.follow(reader.stream.on_live_frame(engine.frames[0]))
    found = reader.follow(reader.stream.on_live_frame(engine.frames[2]))
    assert (found.replay_from, found.gaps, found.changes) == (0, 1, [])
    outcomes = [one for frame in [*engine.replay(0), None] for one in reader.stream.on_replayed_frame(frame)]
    found = reader.follow(outcomes)
    assert (found.batches, found.duplicates, reader.truth.state("i").blocks) == (2, 1, 3)


def test_unreadable_batch_counts_as_lost() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(9)))
    frame = engine.publish()
    assert frame is not None
    reader.follow(reader.stream.on_live_frame(frame))
    damaged = msgspec.msgpack.encode([0.0, [{"type": "BlockRemoved", "block_hashes": 7}], 0])
    found = reader.follow(reader.stream.on_live_frame(EventFrame(b"", 1, damaged)))
    assert found.unreadable == ("removal",)
    assert [type(one) for one in found.changes] == [InstanceCleared, CompletenessChanged]
    assert not reader.truth.state("i").complete


def test_disconnect_marks_the_instance_until_the_process_is_proved() -> None:
    reader, engine = Reader(), PrefixCacheEngine(capacity=20)
    engine.serve_prompt(list(range(9)))
    engine.publish()
    reader.follow(reader.stream.on_live_frame(engine.frames[0]))
    reader.follow(reader.stream.on_disconnected())
    assert reader.truth.state("i").reason == "disconnected"
    assert reader.follow(reader.stream.on_connected()).replay_from == 0
    reader.follow([one for frame in [*engine.replay(0), None] for one in reader.stream.on_replayed_frame(frame)])
    assert (reader.truth.state("i").complete, reader.truth.state("i").epoch) == (True, 1)
    reader.follow(reader.stream.on_disconnected())
    found = reader.follow(reader.stream.on_replaced("its pod is another one"))
    assert found.restarts == 1
    assert (reader.truth.state("i").epoch, reader.truth.state("i").blocks) == (2, 0)
