"""The numbers of batches at the end of their range."""

import msgspec
import pytest

from fairlead_kvstore.errors import MalformedEvents
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_frame


def test_no_batch_has_the_number_that_ends_a_replay() -> None:
    with pytest.raises(MalformedEvents):
        parse_frame([b"kv@pod@model", b"\xff" * 8, b"x"])
    stream = EventSequencer(replayable=False)
    stream.on_live_frame(parse_frame([b"kv@pod@model", (2**64 - 2).to_bytes(8, "big"), b"x"]))
    assert msgspec.msgpack.encode(stream.position)  # the indexer stores it
