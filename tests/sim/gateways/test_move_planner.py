"""Plans of moves: requests that wait get room, and streams leave crowded instances if that pays."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.admission.defragmentation import MemoryWait
from fairlead_sim.gateways.move_planner import (
    MOVES_AT_ONCE,
    MOVES_PER_SECOND,
    MOVES_PER_STREAM,
    REST_SECONDS,
    InstanceStreams,
    RecentMoves,
    StreamLoad,
    plan_moves,
)

KV_TOKENS = 10_000
PROFILE = EngineProfile("test", 1e-5, weights_seconds=0.01, resident_token_seconds=1e-6, kv_tokens=KV_TOKENS)
STEADY = RecentMoves()


def streams(name: str, *tokens: float, remaining: float = 600.0, tier: int = 0) -> list[StreamLoad]:
    return [StreamLoad(f"{name}-{number}", each, remaining, tier) for number, each in enumerate(tokens)]


def instance(name: str, running: Sequence[StreamLoad], *waiting: StreamLoad, is_ready: bool = True) -> InstanceStreams:
    return InstanceStreams(name, PROFILE, KV_TOKENS, running, waiting, is_ready)


CROWDED = instance("a", streams("a", *[1_000.0] * 9))
IDLE = instance("b", [])
LONG = StreamLoad("long", 4_000.0, 100.0)


def test_a_stream_leaves_a_crowded_instance_for_an_idle_one() -> None:
    plan = plan_moves([CROWDED, IDLE], STEADY)
    assert plan.moves
    for move in plan.moves:
        assert (move.source, move.destination) == ("a", "b")
        assert move.gain_seconds > move.price_seconds > 0.0
        assert "a is the more crowded" in move.reason


def test_equal_instances_keep_their_streams() -> None:
    plan = plan_moves([CROWDED, instance("b", streams("b", *[1_000.0] * 9))], STEADY)
    assert (plan.moves, plan.reason) == ([], "no other move is worth its price")


def test_a_move_that_costs_more_than_it_saves_is_not_made() -> None:
    half = replace(CROWDED, running=CROWDED.running[:5])
    slow = replace(PROFILE, prefill_token_seconds=1e-2)
    assert plan_moves([half, IDLE], STEADY).moves
    assert not plan_moves([replace(half, profile=slow), replace(IDLE, profile=slow)], STEADY).moves


def test_a_copy_of_kv_is_a_price_that_only_its_own_stream_pays() -> None:
    slow = replace(PROFILE, prefill_token_seconds=1e-2)
    link = KvPullSource("", bytes_per_token=1_000.0, bytes_per_second=1e9, latency_seconds=0.5)
    half, idle = (replace(each, profile=slow, pull=link) for each in (CROWDED, IDLE))
    plan = plan_moves([half, idle], STEADY)
    assert {move.price_seconds for move in plan.moves} == {link.transfer_seconds(1_000.0)}


def test_streams_that_end_soon_stay() -> None:
    assert not plan_moves([instance("a", streams("a", *[1_000.0] * 9, remaining=1.0)), IDLE], STEADY).moves


def test_forecast_preemptions_make_a_move_worth_it() -> None:
    flat = replace(PROFILE, resident_token_seconds=0.0)
    growing = instance("a", streams("a", *[1_200.0] * 8, remaining=2_000.0))
    assert plan_moves([replace(growing, profile=flat), replace(IDLE, profile=flat)], STEADY).moves
    assert not plan_moves([replace(CROWDED, running=CROWDED.running[:4], profile=flat), IDLE], STEADY).moves


@pytest.mark.parametrize(
    "changed",
    [
        {"is_movable": False},
        {"moves": MOVES_PER_STREAM},
        {"seconds_since_move": REST_SECONDS / 2},
    ],
)
def test_a_stream_stays_that_cannot_move_or_has_moved(changed: dict[str, object]) -> None:
    running = [replace(stream, **changed) for stream in CROWDED.running]  # type: ignore[arg-type]
    assert not plan_moves([replace(CROWDED, running=running), IDLE], STEADY).moves


def test_nothing_moves_while_streams_break() -> None:
    plan = plan_moves([CROWDED, IDLE], RecentMoves(broken=3))
    assert (plan.moves, plan.reason) == ((), "3 streams broke just now")


def test_moves_at_once_and_per_second_are_bounded() -> None:
    assert len(plan_moves([CROWDED, IDLE], RecentMoves(inflight=MOVES_AT_ONCE - 1)).moves) == 1
    assert not plan_moves([CROWDED, IDLE], RecentMoves(inflight=MOVES_AT_ONCE)).moves
    assert not plan_moves([CROWDED, IDLE], RecentMoves(last_second=MOVES_PER_SECOND)).moves


def test_only_ready_instances_take_part() -> None:
    assert plan_moves([CROWDED, replace(IDLE, is_ready=False)], STEADY).reason == "no other instance"


def test_a_waiting_request_goes_where_it_fits() -> None:
    plan = plan_moves([instance("a", CROWDED.running, LONG), IDLE], STEADY)
    assert [(move.stream, move.destination, move.price_seconds) for move in plan.moves[:1]] == [("long", "b", 0.0)]


def test_streams_make_room_where_the_fleet_is_fragmented() -> None:
    fleet = [instance(name, streams(name, *[1_000.0] * 7)) for name in "bcd"]
    plan = plan_moves([instance("a", streams("a", *[1_000.0] * 7), LONG), *fleet], STEADY)
    assert [(move.source, "room" in move.reason) for move in plan.moves] == [("a", True)] * 2
    assert len({move.destination for move in plan.moves}) == 2


def test_a_request_that_waits_for_computation_moves_nothing() -> None:
    fleet = [instance(name, streams(name, *[1_000.0] * 7)) for name in "ab"]
    assert not plan_moves([replace(fleet[0], waiting=[replace(LONG, tokens=1_000.0)]), fleet[1]], STEADY).moves


def test_lower_tiers_leave_first_and_never_for_lower_ones() -> None:
    mixed = [*streams("high", *[1_000.0] * 4), *streams("low", *[1_000.0] * 3, tier=1)]
    fleet = [instance(name, streams(name, *[1_000.0] * 7)) for name in "bcd"]
    plan = plan_moves([instance("a", mixed, LONG), *fleet], STEADY)
    assert {move.stream.partition("-")[0] for move in plan.moves} == {"low"}
    highs = instance("a", streams("a", *[1_000.0] * 7), replace(LONG, tier=1))
    assert not [move for move in plan_moves([highs, *fleet], STEADY).moves if move.stream.startswith("a-")]


def test_streams_make_room_for_a_request_in_the_gateway_where_least_is_missing() -> None:
    fleet = [*[instance(name, streams(name, *[1_000.0] * 7)) for name in "ab"], instance("c", [])]

    def made_room(queued: MemoryWait) -> list[str]:
        return [
            move.source
            for move in plan_moves(fleet, STEADY, queued).moves
            if "for a request that waits: " in move.reason
        ]

    missing = {"a": 1_500.0, "b": 900.0}
    assert made_room(MemoryWait(1, missing)) == ["b"]
    assert made_room(MemoryWait(1, {})) == []
    assert made_room(MemoryWait(1, missing, tier=1)) == []


STREAM = st.builds(StreamLoad, st.uuids().map(str), st.floats(1, 3_000), st.floats(1, 2_000), st.integers(0, 1))
STREAMS = st.lists(STREAM, max_size=8, unique_by=lambda stream: stream.id)
FLEETS = st.lists(st.tuples(STREAMS, st.lists(STREAM, max_size=2)), min_size=2, max_size=5)


@given(FLEETS)
def test_a_plan_moves_each_stream_once_and_fills_no_instance(
    fleet: list[tuple[list[StreamLoad], list[StreamLoad]]],
) -> None:
    instances = [instance(str(number), running, *waiting) for number, (running, waiting) in enumerate(fleet)]
    plan = plan_moves(instances, STEADY)
    assert len(plan.moves) <= MOVES_AT_ONCE
    assert len({move.stream for move in plan.moves}) == len(plan.moves)
    by_id = {stream.id: stream for each in instances for stream in (*each.running, *each.waiting)}
    for each in instances:
        gone = {move.stream for move in plan.moves if move.source == each.id}
        arrived = [by_id[move.stream].tokens for move in plan.moves if move.destination == each.id]
        kept = sum(stream.tokens for stream in each.running if stream.id not in gone)
        assert not arrived or kept + sum(arrived) <= KV_TOKENS + 1e-6
    assert plan_moves(instances, STEADY) == plan
