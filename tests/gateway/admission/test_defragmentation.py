"""Plans of room: which streams leave an instance so that a waiting request fits there."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.admission.defragmentation import (
    FILL_SHARE,
    FILL_STEPS,
    InstanceMemory,
    MemoryWait,
    MovableStream,
    plan_moves,
)
from fairlead_gateway.admission.kv_capacity import SequenceForecast

KV_TOKENS = 10_000.0
PROFILE = EngineProfile("test", 1e-5, weights_seconds=0.01, resident_token_seconds=1e-6, kv_tokens=int(KV_TOKENS))
BUDGET = 8


def instance(
    name: str, *streams: MovableStream, other_tokens: float = 0.0, has_waiting: bool = False
) -> InstanceMemory:
    sequences = [SequenceForecast(stream.tokens, stream.remaining_tokens) for stream in streams]
    return InstanceMemory(name, PROFILE, KV_TOKENS, sequences, streams, other_tokens, has_waiting)


def streams(name: str, *tokens: float, tier: int = 0) -> list[MovableStream]:
    return [MovableStream(f"{name}{number}", each, 600.0, tier) for number, each in enumerate(tokens)]


FULL_A, FULL_B = instance("a", *streams("a", *[1_000.0] * 7)), instance("b", *streams("b", *[1_000.0] * 7))
IDLE = instance("c")
MISSING = {"a": 1_500.0, "b": 900.0}


def test_streams_leave_where_least_is_missing() -> None:
    (move,) = plan_moves([FULL_A, FULL_B, IDLE], MemoryWait(1, MISSING), BUDGET)
    assert (move.source, move.destination) == ("b", "c")
    assert move.gain_seconds > move.price_seconds > 0.0
    assert move.reason.startswith("it makes room for a request that waits: ")


def test_the_smallest_stream_that_suffices_leaves() -> None:
    mixed = instance("a", *streams("a", 300.0, 2_000.0, 5_000.0))
    (move,) = plan_moves([mixed, IDLE], MemoryWait(1, {"a": 1_500.0}), BUDGET)
    assert move.stream == "a1"


def test_several_streams_leave_together_or_none_does() -> None:
    both = plan_moves([FULL_A, IDLE], MemoryWait(1, {"a": 1_500.0}), BUDGET)
    assert len(both) == 2
    assert plan_moves([FULL_A, IDLE], MemoryWait(1, {"a": 1_500.0}), 1) == []
    assert plan_moves([FULL_A, IDLE], MemoryWait(1, {"a": 9_000.0}), BUDGET) == []


def test_streams_of_a_higher_tier_stay_and_the_lowest_leave_first() -> None:
    assert plan_moves([FULL_A, IDLE], MemoryWait(1, {"a": 900.0}, tier=1), BUDGET) == []
    mixed = instance("a", *streams("high", 1_000.0, 1_000.0), *streams("low", 1_000.0, tier=2))
    (move,) = plan_moves([mixed, IDLE], MemoryWait(1, {"a": 900.0}), BUDGET)
    assert move.stream == "low0"


def test_no_stream_goes_where_requests_wait_or_others_fill_the_memory() -> None:
    wait = MemoryWait(1, {"a": 900.0})
    assert plan_moves([FULL_A, instance("c", has_waiting=True)], wait, BUDGET) == []
    assert plan_moves([FULL_A, instance("c", other_tokens=9_000.0)], wait, BUDGET) == []


def test_a_move_that_costs_more_than_the_wait_is_not_made() -> None:
    slow = replace(PROFILE, prefill_token_seconds=1.0)
    fleet = [replace(one, profile=slow) for one in (FULL_A, IDLE)]
    assert plan_moves(fleet, MemoryWait(1, {"a": 900.0}), BUDGET) == []
    assert plan_moves(fleet, MemoryWait(100, {"a": 900.0}), BUDGET)


def test_nothing_moves_without_a_request_that_waits() -> None:
    assert plan_moves([FULL_A, IDLE], MemoryWait(), BUDGET) == []
    assert plan_moves([], MemoryWait(1, MISSING), BUDGET) == []


STREAM = st.builds(MovableStream, st.uuids().map(str), st.floats(1, 3_000), st.floats(1, 2_000), st.integers(0, 1))
STREAMS = st.lists(STREAM, max_size=8, unique_by=lambda stream: stream.id)


@given(st.lists(STREAMS, min_size=2, max_size=5), st.floats(1, 5_000), st.integers(0, 1))
def test_what_leaves_suffices_and_fits_where_it_goes(
    fleet: list[list[MovableStream]], missing: float, tier: int
) -> None:
    instances = [instance(str(number), *found) for number, found in enumerate(fleet)]
    wait = MemoryWait(3, {one.id: missing for one in instances}, tier)
    moves = plan_moves(instances, wait, BUDGET)
    assert len(moves) <= BUDGET
    assert len({move.stream for move in moves}) == len(moves)
    assert len({move.source for move in moves}) <= 1
    by_id = {stream.id: stream for found in fleet for stream in found}
    if moves:
        assert sum(by_id[move.stream].tokens for move in moves) >= missing
    assert all(by_id[move.stream].tier >= tier for move in moves)
    for one in instances:
        arrived = [by_id[move.stream] for move in moves if move.destination == one.id]
        for steps in FILL_STEPS if arrived else ():
            grown = [stream.tokens + steps for stream in (*one.movable, *arrived) if stream.remaining_tokens >= steps]
            assert sum(grown) <= FILL_SHARE * KV_TOKENS + FILL_STEPS[-1] * len(arrived)
