"""Frames that are held during a replay, and then taken in slices."""

from fairlead.limits import Limits
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import EventFrame
from fairlead_testing.kvstore.zmq_engine import begun, frame, live, replay, short

SMALL_TURN = Limits(kv_turn_bytes=142)
"""Two frames of ``frame`` are one slice."""


def draining(upto: int) -> EventSequencer:
    """Returns a stream whose replay is over, with frames 6 and 7 taken and the rest held."""
    stream = begun(limits=SMALL_TURN)
    assert live(stream, *range(6, upto + 1)) == ["G4-5?3"]
    assert replay(stream, 3, 4, 5) == ["A4", "A5", "A6", "A7"]
    assert stream.is_draining
    return stream


def test_frames_held_during_a_replay_are_taken_in_slices() -> None:
    stream = draining(11)
    assert stream.position is not None
    assert (stream.position.following, stream.held_frames, stream.is_replaying) == (8, 4, False)
    assert stream.accept_in_order(frame(8)) is None
    assert (live(stream, 12), short(stream.on_quiet())) == ([], [])
    assert short(stream.on_drain(1)) == ["A8"]
    assert short(stream.on_drain(1_000)) == ["A9", "A10", "A11", "A12"]
    assert (stream.is_draining, stream.held_frames, stream.held_bytes) == (False, 0, 0)
    assert stream.accept_in_order(frame(13)) is not None


def test_disconnect_between_two_slices_loses_no_batch() -> None:
    stream = draining(11)
    assert short(stream.on_disconnected()) == ["S"]
    assert (stream.is_draining, stream.held_frames, stream.held_bytes) == (False, 0, 0)
    assert short(stream.on_connected()) == ["G8-?7"]
    assert replay(stream, 7, 8, 9, 10, 11) == ["resumed", "A8", "A9", "A10", "A11"]


def test_restart_between_two_slices_keeps_the_order_of_frames() -> None:
    stream = draining(9)
    assert live(stream, 2, 3, process="second") == []
    assert short(stream.on_drain(1_000)) == ["A8", "A9", "R", "G0-1?0"]
    assert (stream.is_replaying, stream.is_draining, stream.held_frames) == (True, False, 2)
    assert replay(stream, 0, 1, process="second") == ["C", "A0", "A1", "A2", "A3"]


def test_frames_without_a_payload_are_taken_in_slices_too() -> None:
    stream = begun(limits=Limits(kv_turn_bytes=1_024))
    for number in range(6, 1_006):
        stream.on_live_frame(EventFrame(b"", number, b""))
    replay(stream, 3, 4, 5)
    assert stream.held_frames > 900, "the first slice leaves most of them"
    assert len(stream.on_drain(1_024)) < 100


def test_frames_that_arrive_during_slices_are_bounded() -> None:
    stream = begun(limits=Limits(kv_turn_bytes=1, kv_replay_buffered=4))
    live(stream, 6, 7, 8, 9)
    found = replay(stream, 3, 4, 5)
    for number in range(10, 100):
        found += live(stream, number)
        assert stream.held_frames <= 4
    while stream.is_draining:
        found += short(stream.on_drain(1))
    assert found == [f"A{number}" for number in range(4, 100)]
