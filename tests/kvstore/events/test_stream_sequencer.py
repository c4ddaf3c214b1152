"""The stream of an engine: gaps, replays, restarts, and frames that wait during a replay."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import event, given

from fairlead.limits import Limits
from fairlead_kvstore.errors import MalformedEvents
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_frame, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import AcceptBatch, BatchesLost, EventFrame, ProcessRestarted, StreamOutcome
from fairlead_testing.kvstore.zmq_engine import begun, frame, live, replay, short

END = [b"", b"", b"\xff" * 8, b""]


def connected(**more: int) -> EventSequencer:
    """Returns a stream that has requested its first replay."""
    stream = EventSequencer(replayable=True, **more)
    stream.on_connected()
    return stream


def reconnected(stream: EventSequencer) -> EventSequencer:
    """Returns the stream after a short disconnect."""
    stream.on_disconnected()
    stream.on_connected()
    return stream


# --- a stream begins ----------------------------------------------------------------------------------------------------


def test_reader_from_the_start_is_complete() -> None:
    stream = EventSequencer(replayable=False)
    assert stream.on_connected() == []
    assert live(stream, 0, 1, 2) == ["C", "A0", "A1", "A2"]
    assert stream.next_number == 3


def test_late_reader_requests_everything_and_holds_live_frames() -> None:
    stream = EventSequencer(replayable=True)
    assert short(stream.on_connected()) == ["G0-?0"]
    assert live(stream, 5) == []
    assert (stream.is_replaying, len(stream._held_frames)) == (True, 1)
    assert replay(stream, 0, 1, 2, 3, 4, 5, end=False) == ["C", "A0", "A1", "A2", "A3", "A4", "A5"]
    assert live(stream, 6) == []
    assert replay(stream) == ["D5", "A6"]
    assert (stream.is_replaying, len(stream._held_frames)) == (False, 0)


def test_replay_from_the_start_may_begin_at_one_unless_it_fills_the_buffer() -> None:
    stream = connected(buffer=3)
    assert replay(stream, 1, 2) == ["L0-0", "A1", "A2", "C"]
    stream = connected(buffer=2)
    assert replay(stream, 1, 2) == ["L0-0", "A1", "A2"]


def test_hole_after_a_replay_from_one_leaves_it_incomplete() -> None:
    stream = connected()
    assert live(stream, 5) == []
    assert replay(stream, 1, 2) == ["L0-0", "A1", "A2", "G3-?2"]
    assert replay(stream, 2) == ["C", "L3-4", "A5"]
    stream = connected()
    assert replay(stream, 1, 3) == ["L0-0", "A1", "D3", "G2-?1"]
    assert replay(stream, 1, 3) == ["L2-2", "A3"]


def test_live_batch_older_than_the_replay_is_lost() -> None:
    stream = connected()
    assert live(stream, 11) == []
    assert replay(stream, 12, 13) == ["L0-11", "A12", "A13", "D11"]
    assert live(stream, 14) == ["A14"]


def test_reader_before_the_first_batch_is_complete_for_any_first_number() -> None:
    stream = connected()
    assert replay(stream) == []
    assert live(stream, 1) == ["G0-0?0"]  # or 0 was dropped
    assert replay(stream, 1) == ["L0-0", "A1", "C", "D1"]


def test_replay_that_begins_later_has_lost_batches() -> None:
    stream = connected()
    assert replay(stream, 114, 115) == ["L0-113", "A114", "A115"]


def test_late_reader_without_replay_reports_lost_batches() -> None:
    assert live(EventSequencer(replayable=False), 7, 8) == ["L0-6", "A7", "A8"]
    assert live(EventSequencer(replayable=False), 1) == ["L0-0", "A1"]


def test_frame_before_on_connected_requests_a_replay() -> None:
    stream = EventSequencer(replayable=True)
    assert live(stream, 3) == ["G0-2?0"]
    assert replay(stream, 0, 1, 2, 3) == ["C", "A0", "A1", "A2", "A3", "D3"]


def test_engine_without_batches_begins_later() -> None:
    stream = connected()
    assert replay(stream) == []
    assert live(stream, 0, 1) == ["C", "A0", "A1"]


def test_engine_without_a_buffer_gets_one_request() -> None:
    stream = connected()
    assert replay(stream) == []
    assert live(stream, 4, 5) == ["G0-3?0"]
    assert replay(stream) == ["L0-3", "A4", "A5"]


# --- numbers that do not fit --------------------------------------------------------------------------------------------


def test_gap_is_requested_from_the_last_known_batch() -> None:
    stream = begun()
    assert live(stream, 7, 8) == ["G4-6?3"]
    assert replay(stream, 3, 4, 5, 6, 7, end=False) == ["A4", "A5", "A6", "A7"]
    assert replay(stream) == ["D7", "A8"]


def test_gap_without_replay_is_lost() -> None:
    assert live(begun(replayable=False), 7, 8) == ["L4-6", "A7", "A8"]


def test_gap_beyond_the_buffer_is_lost() -> None:
    stream = begun()
    assert live(stream, 9) == ["G4-8?3"]
    assert replay(stream, 7, 8, 9) == ["L4-6", "A7", "A8", "A9", "D9"]


def test_buffer_that_begins_with_the_next_batch_loses_nothing() -> None:
    stream = begun()
    live(stream, 6)
    assert replay(stream, 4, 5, 6) == ["A4", "A5", "A6", "D6"]


def test_failed_replay_loses_the_gap_and_continues() -> None:
    stream = begun()
    live(stream, 6, 7)
    assert short(stream.on_replay_failed("no answer within 2 s")) == ["L4-5", "A6", "A7"]
    assert live(stream, 8) == ["A8"]
    assert stream.on_replay_failed("again") == []


def test_replay_with_holes_is_requested_until_complete() -> None:
    """An engine drops batches that its socket has no room for, in the middle and at the end."""
    stream = begun()
    live(stream, 12)
    assert replay(stream, 3, 4, 6, 7) == ["A4", "D6", "D7", "G5-?4"]
    assert stream.is_replaying
    assert replay(stream, 4, 5, 6, 7, 9) == ["A5", "A6", "A7", "D9", "G8-?7"]
    assert replay(stream, 7, 8, 9) == ["A8", "A9", "G10-?9"]
    assert replay(stream, 9, 10, 11) == ["A10", "A11", "A12"]
    assert (stream.is_replaying, len(stream._held_frames)) == (False, 0)


def test_repeated_hole_is_lost() -> None:
    stream = begun()
    live(stream, 8)
    assert replay(stream, 3, 4, 6, 7) == ["A4", "D6", "D7", "G5-?4"]
    assert replay(stream, 4, 6, 7) == ["L5-5", "A6", "A7", "A8"]


def test_batches_after_a_replay_without_progress_are_lost() -> None:
    stream = begun()
    live(stream, 8)
    assert replay(stream, 3, 4) == ["A4", "G5-?4"]
    assert replay(stream, 4) == ["L5-7", "A8"]


def test_replay_with_a_hole_and_no_end_is_requested_again() -> None:
    stream = begun()
    live(stream, 8)
    assert replay(stream, 3, 4, 6, end=False) == ["A4", "D6"]
    assert short(stream.on_replay_failed("no end within 2 s")) == ["G5-?4"]
    assert short(stream.on_replay_failed("no answer within 2 s")) == ["L5-7", "A8"]


def test_rest_of_a_replay_that_was_cut_is_requested_if_it_brought_any() -> None:
    stream = connected()
    assert replay(stream, 0, 1, 2, end=False) == ["C", "A0", "A1", "A2"]
    assert short(stream.on_replay_failed("too much is unread", is_cut=True)) == ["G3-?2"]
    assert replay(stream, 2, 3, 4) == ["A3", "A4"]
    stream = begun(upto=3)
    assert live(stream, 6) == ["G4-5?3"]
    assert short(stream.on_replay_failed("too much is unread", is_cut=True)) == ["L4-5", "A6"]


def test_other_process_in_the_rest_of_a_replay_is_detected() -> None:
    stream = begun()
    live(stream, 8)
    assert replay(stream, 3, 4, 6) == ["A4", "D6", "G5-?4"]
    assert replay(stream, 4, process="second", end=False) == ["R", "G0-?0"]


def test_reordered_frames_are_sorted_by_the_replay() -> None:
    stream = begun()
    assert live(stream, 5, 4, 6) == ["G4-4?3"]
    assert replay(stream, 3, 4, 5) == ["A4", "A5", "D5", "D4", "A6"]


def test_repeated_batch_is_a_duplicate() -> None:
    assert live(begun(), 3, 2, 0, 4) == ["D3", "D2", "D0", "A4"]


def test_lower_number_with_other_bytes_is_another_process() -> None:
    stream = begun()
    assert live(stream, 0, 1, process="second") == ["R", "C", "A0", "A1"]


def test_restarted_engine_is_asked_for_its_first_batches() -> None:
    stream = begun(upto=9)
    assert live(stream, 4, process="second") == ["R", "G0-3?0"]
    assert replay(stream, 0, 1, 2, 3, 4, process="second") == ["C", "A0", "A1", "A2", "A3", "A4", "D4"]


def test_batch_older_than_the_known_digests_is_another_process() -> None:
    """This is safe, since everything is then learned again."""
    stream = begun(upto=9, limits=Limits(kv_sequences_known=4))
    assert live(stream, 7) == ["D7"]
    assert live(stream, 2) == ["R", "G0-1?0"]


# --- connections that break ---------------------------------------------------------------------------------------------


def test_live_frames_far_behind_a_replay_are_no_restart() -> None:
    known = Limits().kv_sequences_known
    stream = connected()
    numbers = range(4 * known)
    assert replay(stream, *numbers) == ["C", *(f"A{number}" for number in numbers)]
    assert live(stream, *numbers) == [f"D{number}" for number in numbers]
    assert live(stream, 4 * known) == [f"A{4 * known}"]
    assert "R" in live(stream, 0), "it has caught up, and its digests are dropped"


def test_digests_of_a_replay_are_dropped_when_the_stream_is_quiet() -> None:
    stream = connected()
    replay(stream, *range(4 * Limits().kv_sequences_known))
    stream.on_interval(is_quiet=True)
    stream.on_replay_failed("no answer")
    assert "R" in live(stream, 0)


def test_digests_of_replays_fill_no_memory_while_live_frames_stay_behind() -> None:
    stream = connected()
    replay(stream, *range(20_000))
    assert len(stream._known) <= 16_384, "of up to 131,072 batches"
    stream.on_interval(is_quiet=False)
    assert live(stream, 19_000) == ["D19000"], "live frames are behind, and have some time to catch up"
    stream.on_interval(is_quiet=False)
    assert len(stream._known) == Limits().kv_sequences_known
    assert live(stream, 20_000) == ["A20000"]


def test_short_disconnect_loses_nothing() -> None:
    stream = begun()
    assert short(stream.on_disconnected()) == ["S"]
    assert stream.on_disconnected() == []
    assert short(stream.on_connected()) == ["G4-?3"]
    assert live(stream, 6) == []
    assert replay(stream, 3, 4, 5, 6) == ["resumed", "A4", "A5", "A6", "D6"]


def test_restart_during_a_disconnect_is_detected_by_silence() -> None:
    stream = reconnected(begun())
    assert replay(stream) == ["R"]
    assert live(stream, 0, process="second") == ["C", "A0"]


def test_restart_during_a_disconnect_is_detected_by_another_batch() -> None:
    stream = reconnected(begun())
    assert replay(stream, 3, process="second", end=False) == ["R", "G0-?0"]
    assert replay(stream, 0, 1, 2, 3, 4, process="second") == ["C", "A0", "A1", "A2", "A3", "A4"]


def test_restart_with_one_known_batch_continues_in_the_same_replay() -> None:
    stream = reconnected(begun(upto=0))
    assert replay(stream, 0, 1, process="second") == ["R", "C", "A0", "A1"]


def test_short_buffer_proves_nothing_after_a_disconnect() -> None:
    stream = reconnected(begun())
    assert replay(stream, 50, end=False) == ["R", "G0-?0"]
    assert replay(stream, 50, 51) == ["L0-49", "A50", "A51"]


def test_disconnect_without_replay_ends_the_epoch() -> None:
    stream = begun(replayable=False)
    assert short(stream.on_disconnected()) == ["S"]
    assert short(stream.on_connected()) == ["R"]
    assert live(stream, 4) == ["L0-3", "A4"]


def test_failed_replay_after_a_disconnect_ends_the_epoch() -> None:
    stream = reconnected(begun())
    live(stream, 5)
    assert short(stream.on_replay_failed("no answer within 2 s")) == ["R", "L0-4", "A5"]


def test_disconnect_during_a_replay_requests_it_again() -> None:
    stream = begun()
    live(stream, 6)
    assert short(stream.on_disconnected()) == ["S"]
    assert len(stream._held_frames) == 0
    assert short(stream.on_connected()) == ["G4-?3"]
    assert replay(stream, 3, 4, 5, 6) == ["resumed", "A4", "A5", "A6"]


def test_another_pod_ends_the_epoch() -> None:
    stream = begun()
    live(stream, 6)
    assert short(stream.on_replaced("another pod")) == ["R"]
    assert (stream.next_number, len(stream._held_frames), stream.is_replaying) == (None, 0, False)


def test_restart_is_detected_in_held_frames() -> None:
    stream = begun()
    assert live(stream, 6) == ["G4-5?3"]
    assert live(stream, 0, 1, process="second") == []
    assert replay(stream, 3, 4, 5, 6) == ["A4", "A5", "A6", "D6", "R", "C", "A0", "A1"]


# --- limits and strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(kv_replay_buffered=2), Limits(kv_replay_buffered_bytes=20)])
def test_held_frames_are_bounded_and_late_answers_are_ignored(limits: Limits) -> None:
    stream = begun(limits=limits)
    assert live(stream, 6, 7, 8) == ["G4-5?3", "L4-5", "A6", "A7", "A8"]
    assert replay(stream, 3, 4, 5) == ["D3", "D4", "D5"]
    assert live(stream, 9) == ["A9"]


def test_unrequested_answers_are_ignored() -> None:
    assert replay(begun(), 3, 4) == ["D3", "D4"]


def test_lost_batches_and_restarts_have_a_reason() -> None:
    stream = begun()
    live(stream, 9)
    lost, accepted = stream.on_replay_failed("no answer")
    assert (lost, accepted) == (BatchesLost(4, 8, "no answer"), AcceptBatch(9, frame(9).payload))
    assert stream.on_replaced("another pod") == [ProcessRestarted("another pod")]


def test_frames_are_parsed() -> None:
    assert parse_frame([b"kv@pod@model", (2**63).to_bytes(8, "big"), b"x"]) == EventFrame(2**63, b"x")
    assert parse_replay_frame([b"", b"topic", bytes(7) + b"\x05", b"x"]) == EventFrame(5, b"x")
    assert parse_replay_frame([b"", bytes(7) + b"\x05", b"x"]) == EventFrame(5, b"x")
    assert parse_replay_frame([b"topic", bytes(7) + b"\x05", b"x"]) == EventFrame(5, b"x")
    assert parse_replay_frame(END) is None
    assert parse_replay_frame([b"", b"\xff" * 8, b""]) is None
    assert replay_request(25) == [b"", bytes(7) + b"\x19"]


@pytest.mark.parametrize(
    "parts", [[], [b""], [b"", b"5", b"x"], [b"", b"", b"5", b"x"], [b"a", b"b", b"c", b"d", b"e"]]
)
def test_invalid_frames_raise_malformed_events(parts: list[bytes]) -> None:
    with pytest.raises(MalformedEvents):
        parse_frame(parts)
    with pytest.raises(MalformedEvents):
        parse_replay_frame(parts)


def test_quiet_stream_is_replayed_from_the_last_batch_and_continues() -> None:
    stream = begun(upto=3)
    assert short(stream.on_interval(is_quiet=True)) == ["G4-?3"]
    assert live(stream, 6) == []
    assert replay(stream, 3, 4, 5, 6) == ["A4", "A5", "A6", "D6"]
    assert short(stream.on_interval(is_quiet=True)) == ["G7-?6"]
    assert replay(stream, 6) == []
    assert live(stream, 7) == ["A7"]


def test_quiet_check_detects_another_process() -> None:
    stream = begun(upto=3)
    stream.on_interval(is_quiet=True)
    assert replay(stream, 3, process="second", end=False) == ["R", "G0-?0"]
    assert replay(stream, 0, 1, 2, 3, process="second") == ["C", "A0", "A1", "A2", "A3"]


def test_quiet_check_without_an_answer_changes_nothing() -> None:
    stream = begun(upto=3)
    stream.on_interval(is_quiet=True)
    assert short(stream.on_replay_failed("no answer")) == []
    assert live(stream, 4) == ["A4"]
    assert short(begun(replayable=False, upto=3).on_interval(is_quiet=True)) == []


def test_restarted_engine_that_begins_at_one_is_replayed_from_zero() -> None:
    stream = begun(upto=1)
    stream.on_disconnected()
    assert short(stream.on_connected()) == ["G2-?1"]
    assert replay(stream, 1, process="second", end=False) == ["R", "G0-?0"]
    assert replay(stream, 0, 1, process="second") == ["C", "A0", "A1"]


NUMBERS = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.sampled_from(["first", "second"]),
        st.sampled_from(["live", "live", "replayed", "end", "cut"]),
    ),
    max_size=40,
)


@given(NUMBERS, st.booleans())
def test_many_frames_give_the_outcomes_of_single_ones(steps: list[tuple[int, str, str]], replayable: bool) -> None:
    """Random streams: missing and repeated numbers, other processes, replays and disconnects."""
    long, quick = EventSequencer(replayable=replayable), EventSequencer(replayable=replayable)
    waiting, single, following = list[EventFrame](), list[StreamOutcome](), 0
    for step, process, how in steps:
        if how == "live":
            following = following + 1 if step < 6 else step
            latest = frame(following, process if step > 4 else "first")
            waiting.append(latest)
            single += long.on_live_frame(latest)
            continue
        assert quick.on_live_frames(waiting) == single
        event(f"{min(len(waiting), 3)} frames together")
        waiting, single = [], []
        if how == "cut":
            assert long.on_disconnected() == quick.on_disconnected()
        else:
            one_or_end = None if how == "end" else frame(step, process)
            assert long.on_replayed_frame(one_or_end) == quick.on_replayed_frame(one_or_end)
        assert (long.next_number, long.is_replaying, len(long._held_frames)) == (
            quick.next_number,
            quick.is_replaying,
            len(quick._held_frames),
        )
    assert quick.on_live_frames(waiting) == single


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
    assert (stream.position.following, len(stream._held_frames), stream.is_replaying) == (8, 4, False)
    assert (live(stream, 12), short(stream.on_interval(is_quiet=True))) == ([], [])
    assert short(stream.on_drain(1)) == ["A8"]
    assert short(stream.on_drain(1_000)) == ["A9", "A10", "A11", "A12"]
    assert (stream.is_draining, len(stream._held_frames), stream.held_bytes) == (False, 0, 0)
    assert short(stream.on_live_frames([frame(13)])) == ["A13"]


def test_disconnect_between_two_slices_loses_no_batch() -> None:
    stream = draining(11)
    assert short(stream.on_disconnected()) == ["S"]
    assert (stream.is_draining, len(stream._held_frames), stream.held_bytes) == (False, 0, 0)
    assert short(stream.on_connected()) == ["G8-?7"]
    assert replay(stream, 7, 8, 9, 10, 11) == ["resumed", "A8", "A9", "A10", "A11"]


def test_restart_between_two_slices_keeps_the_order_of_frames() -> None:
    stream = draining(9)
    assert live(stream, 2, 3, process="second") == []
    assert short(stream.on_drain(1_000)) == ["A8", "A9", "R", "G0-1?0"]
    assert (stream.is_replaying, stream.is_draining, len(stream._held_frames)) == (True, False, 2)
    assert replay(stream, 0, 1, process="second") == ["C", "A0", "A1", "A2", "A3"]


def test_frames_without_a_payload_are_taken_in_slices_too() -> None:
    stream = begun(limits=Limits(kv_turn_bytes=1_024))
    for number in range(6, 1_006):
        stream.on_live_frame(EventFrame(number, b""))
    replay(stream, 3, 4, 5)
    assert len(stream._held_frames) > 900, "the first slice leaves most of them"
    assert len(stream.on_drain(1_024)) < 100


def test_frames_that_arrive_during_slices_are_bounded() -> None:
    stream = begun(limits=Limits(kv_turn_bytes=1, kv_replay_buffered=4))
    live(stream, 6, 7, 8, 9)
    outcomes = replay(stream, 3, 4, 5)
    for number in range(10, 100):
        outcomes += live(stream, number)
        assert len(stream._held_frames) <= 4
    while stream.is_draining:
        outcomes += short(stream.on_drain(1))
    assert outcomes == [f"A{number}" for number in range(4, 100)]


def test_no_batch_has_the_number_that_ends_a_replay() -> None:
    with pytest.raises(MalformedEvents):
        parse_frame([b"kv@pod@model", b"\xff" * 8, b"x"])
    stream = EventSequencer(replayable=False)
    stream.on_live_frame(parse_frame([b"kv@pod@model", (2**64 - 2).to_bytes(8, "big"), b"x"]))
    assert msgspec.msgpack.encode(stream.position)  # the indexer stores it
