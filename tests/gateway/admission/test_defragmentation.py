"""Plans of room: which streams leave an instance so that a waiting request fits there."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.admission.defragmentation import (
    FILL_SHARE,
    FILL_STEPS,
    InstanceMemory,
    MemoryMove,
    MemoryWait,
    MovableStream,
    MovableStreams,
    plan_moves,
)
from fairlead_gateway.admission.kv_capacity import SequenceForecast

KV_TOKENS = 10_000.0
PROFILE = EngineProfile("test", 1e-5, weights_seconds=0.01, resident_token_seconds=1e-6, kv_tokens=int(KV_TOKENS))
BUDGET = 8
Moves = list[MemoryMove]


class Engine(NamedTuple):
    """An instance with the streams that may leave."""

    memory: InstanceMemory
    movable: Sequence[MovableStream]


class Places(MovableStreams):
    """Streams that may go to some instances alone."""

    def __init__(self, fleet: Sequence[Engine], closed: Sequence[str] = ()) -> None:
        super().__init__({engine.memory.id: engine.movable for engine in fleet})
        self.closed = closed
        self.asked: list[str] = []

    def at(self, instance: str) -> Sequence[MovableStream]:
        self.asked.append(instance)
        return super().at(instance)

    def may_go(self, stream: str, destination: str) -> bool:
        return super().may_go(stream, destination) and destination not in self.closed


def instance(name: str, *streams: MovableStream, other_tokens: float = 0.0, free: float = math.inf) -> Engine:
    sequences = [SequenceForecast(stream.tokens, stream.remaining_tokens) for stream in streams]
    return Engine(InstanceMemory(name, PROFILE, KV_TOKENS, sequences, other_tokens, free), streams)


def plan(fleet: Sequence[Engine], wait: MemoryWait, budget: int = BUDGET, places: Places | None = None) -> Moves:
    return plan_moves([engine.memory for engine in fleet], wait, budget, places or Places(fleet))


def streams(name: str, *tokens: float, tier: int = 0) -> list[MovableStream]:
    return [MovableStream(f"{name}{number}", each, 600.0, tier) for number, each in enumerate(tokens)]


FULL_A, FULL_B = instance("a", *streams("a", *[1_000.0] * 7)), instance("b", *streams("b", *[1_000.0] * 7))
IDLE = instance("c")
MISSING = {"a": 1_500.0, "b": 900.0}


def test_streams_leave_where_least_is_missing() -> None:
    (move,) = plan([FULL_A, FULL_B, IDLE], MemoryWait(1, MISSING))
    assert (move.source, move.destination) == ("b", "c")
    assert move.gain_seconds > move.price_seconds > 0.0
    assert move.reason.startswith("it makes room for a request that waits: ")


def test_the_smallest_stream_that_suffices_leaves() -> None:
    mixed = instance("a", *streams("a", 300.0, 2_000.0, 5_000.0))
    (move,) = plan([mixed, IDLE], MemoryWait(1, {"a": 1_500.0}))
    assert move.stream == "a1"


def test_several_streams_leave_together_or_none_does() -> None:
    both = plan([FULL_A, IDLE], MemoryWait(1, {"a": 1_500.0}))
    assert len(both) == 2
    assert plan([FULL_A, IDLE], MemoryWait(1, {"a": 1_500.0}), 1) == []
    assert plan([FULL_A, IDLE], MemoryWait(1, {"a": 9_000.0})) == []


def test_streams_of_a_higher_tier_stay_and_the_lowest_leave_first() -> None:
    assert plan([FULL_A, IDLE], MemoryWait(1, {"a": 900.0}, tier=1)) == []
    mixed = instance("a", *streams("high", 1_000.0, 1_000.0), *streams("low", 1_000.0, tier=2))
    (move,) = plan([mixed, IDLE], MemoryWait(1, {"a": 900.0}))
    assert move.stream == "low0"


def test_no_stream_goes_where_requests_wait_or_others_fill_the_memory() -> None:
    wait = MemoryWait(1, {"a": 900.0})
    assert plan([FULL_A, instance("c", free=0.0)], wait) == []
    assert plan([FULL_A, instance("c", other_tokens=9_000.0)], wait) == []


def test_a_move_that_costs_more_than_the_wait_is_not_made() -> None:
    slow = replace(PROFILE, prefill_token_seconds=1.0)
    fleet = [one._replace(memory=replace(one.memory, profile=slow)) for one in (FULL_A, IDLE)]
    assert plan(fleet, MemoryWait(1, {"a": 900.0})) == []
    assert plan(fleet, MemoryWait(100, {"a": 900.0}))


def test_streams_go_only_where_they_may_and_no_more_than_can_begin() -> None:
    wait = MemoryWait(1, {"a": 1_500.0})
    other = instance("d", *streams("d", 1_000.0))
    fleet = [FULL_A, IDLE, other]
    assert {move.destination for move in plan(fleet, wait, places=Places(fleet, closed=["c"]))} == {"d"}
    assert plan(fleet, wait, places=Places(fleet, closed=["c", "d"])) == []
    assert plan([FULL_A, instance("c", free=1.0)], wait) == []
    assert sorted(move.destination for move in plan([FULL_A, instance("c", free=1.0), other], wait)) == ["c", "d"]


def test_memory_of_other_processes_alone_does_not_keep_streams_elsewhere() -> None:
    full = instance("b", other_tokens=9_500.0)
    (move,) = plan([FULL_A, full, IDLE], MemoryWait(1, {"a": 900.0, "b": 900.0}))
    assert (move.source, move.destination) == ("a", "c")


def test_streams_of_few_instances_are_looked_at() -> None:
    fleet = [instance(str(number), *streams(str(number), *[1_000.0] * 7)) for number in range(40)]
    places = Places([*fleet, IDLE])
    assert plan([*fleet, IDLE], MemoryWait(1, dict.fromkeys(map(str, range(40)), 900.0)), places=places)
    assert len(places.asked) == 5


def test_nothing_moves_without_a_request_that_waits() -> None:
    assert plan([FULL_A, IDLE], MemoryWait()) == []
    assert plan([], MemoryWait(1, MISSING)) == []


STREAM = st.builds(MovableStream, st.uuids().map(str), st.floats(1, 3_000), st.floats(1, 2_000), st.integers(0, 1))
STREAMS = st.lists(STREAM, max_size=8, unique_by=lambda stream: stream.id)


@given(st.lists(STREAMS, min_size=2, max_size=5), st.floats(1, 5_000), st.integers(0, 1))
def test_what_leaves_suffices_and_fits_where_it_goes(
    fleet: list[list[MovableStream]], missing: float, tier: int
) -> None:
    instances = [instance(str(number), *found) for number, found in enumerate(fleet)]
    wait = MemoryWait(3, {one.memory.id: missing for one in instances}, tier)
    moves = plan(instances, wait)
    assert len(moves) <= BUDGET
    assert len({move.stream for move in moves}) == len(moves)
    assert len({move.source for move in moves}) <= 1
    by_id = {stream.id: stream for found in fleet for stream in found}
    if moves:
        assert sum(by_id[move.stream].tokens for move in moves) >= missing
    assert all(by_id[move.stream].tier >= tier for move in moves)
    for one in instances:
        arrived = [by_id[move.stream] for move in moves if move.destination == one.memory.id]
        for steps in FILL_STEPS if arrived else ():
            grown = [stream.tokens + steps for stream in (*one.movable, *arrived) if stream.remaining_tokens >= steps]
            assert sum(grown) <= FILL_SHARE * KV_TOKENS + FILL_STEPS[-1] * len(arrived)
