"""From frames to changes: each outcome of a stream does to the truth what it says."""

import msgspec

from fairlead_kvstore.events.outcomes import Frame, Outcome
from fairlead_kvstore.events.sequence import Stream
from fairlead_kvstore.follow import Followed, follow
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.truth.changes import Cleared, Marked, Stored
from fairlead_kvstore.truth.truth import Truth


class Reader:
    """One stream that is followed."""

    def __init__(self) -> None:
        self.truth, self.stream = Truth(), Stream(replayable=True)
        self.truth.attach("i", "default/tiny", 0.0)
        self.follow(self.stream.connected())
        self.follow(self.stream.replayed(None))

    def follow(self, outcomes: list[Outcome]) -> Followed:
        return follow(self.truth, "i", outcomes, 1.0)


def test_the_first_batch_makes_a_slice_complete() -> None:
    reader, engine = Reader(), Engine(capacity=20)
    engine.prompt(list(range(13)))
    frame = engine.publish()
    assert frame is not None
    found = reader.follow(reader.stream.live(frame))
    assert [type(one) for one in found.changes] == [Marked, Stored]
    assert (found.batches, found.ask, reader.truth.state("i").complete) == (1, None, True)


def test_a_gap_names_what_to_ask_for_and_changes_nothing_yet() -> None:
    reader, engine = Reader(), Engine(capacity=20)
    for start in (0, 100, 200):
        engine.prompt(list(range(start, start + 5)))
        engine.publish()
    reader.follow(reader.stream.live(engine.frames[0]))
    found = reader.follow(reader.stream.live(engine.frames[2]))
    assert (found.ask, found.gaps, found.changes) == (0, 1, [])
    outcomes = [one for frame in [*engine.replay(0), None] for one in reader.stream.replayed(frame)]
    found = reader.follow(outcomes)
    assert (found.batches, found.duplicates, reader.truth.state("i").blocks) == (2, 1, 3)


def test_a_batch_that_cannot_be_read_counts_as_lost() -> None:
    reader, engine = Reader(), Engine(capacity=20)
    engine.prompt(list(range(9)))
    frame = engine.publish()
    assert frame is not None
    reader.follow(reader.stream.live(frame))
    damaged = msgspec.msgpack.encode([0.0, [{"type": "BlockRemoved", "block_hashes": 7}], 0])
    found = reader.follow(reader.stream.live(Frame(b"", 1, damaged)))
    assert found.unreadable == ("removal",)
    assert [type(one) for one in found.changes] == [Cleared, Marked]
    assert not reader.truth.state("i").complete


def test_a_connection_that_breaks_marks_the_slice_until_it_is_known_who_is_there() -> None:
    reader, engine = Reader(), Engine(capacity=20)
    engine.prompt(list(range(9)))
    engine.publish()
    reader.follow(reader.stream.live(engine.frames[0]))
    reader.follow(reader.stream.disconnected())
    assert reader.truth.state("i").reason == "disconnected"
    assert reader.follow(reader.stream.connected()).ask == 0
    reader.follow([one for frame in [*engine.replay(0), None] for one in reader.stream.replayed(frame)])
    assert (reader.truth.state("i").complete, reader.truth.state("i").epoch) == (True, 1)
    reader.follow(reader.stream.disconnected())
    found = reader.follow(reader.stream.replaced("its pod is another one"))
    assert found.restarts == 1
    assert (reader.truth.state("i").epoch, reader.truth.state("i").blocks) == (2, 0)
