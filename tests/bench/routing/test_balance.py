"""The benchmark of moves: its rules, and that its cells run."""

from dataclasses import replace

import pytest

from fairlead_bench.results import load_goals
from fairlead_bench.routing import balance
from fairlead_sim.gateways.move_planner import InstanceStreams, RecentMoves, StreamLoad
from fairlead_sim.workload.traces import TraceRequest

GOALS = load_goals("balance")


def instance(name: str, running: list[float], *waiting: float, is_ready: bool = True) -> InstanceStreams:
    def streams(sizes: list[float], kind: str) -> list[StreamLoad]:
        return [StreamLoad(f"{name}-{kind}{number}", size, 500.0) for number, size in enumerate(sizes)]

    profile = balance.L4
    return InstanceStreams(name, profile, 10_000, streams(running, "r"), streams([*waiting], "w"), is_ready)


def test_llumnix_rule_pairs_the_worst_with_the_best_and_moves_the_shortest() -> None:
    full = instance("full", [6_000.0, 3_000.0], 4_000.0)
    assert balance.freeness(full) == pytest.approx(-3_000 / 16 / 3)
    fleet = [instance("half", [5_000.0]), full, instance("empty", [])]
    moves = balance.llumnix_moves(fleet, RecentMoves()).moves
    assert [(move.stream, move.destination) for move in moves] == [("full-r1", "empty")]
    assert not balance.llumnix_moves([full, instance("small", [7_500.0])], RecentMoves()).moves


def test_drained_instances_give_their_streams_to_the_emptiest_one() -> None:
    fleet = [instance("gone", [1_000.0, 2_000.0], is_ready=False), instance("a", [900.0]), instance("b", [])]
    moves = balance.drain_moves(fleet, RecentMoves()).moves
    assert [(move.source, move.destination) for move in moves] == [("gone", "b"), ("gone", "a")]


def test_a_long_prompt_waits_less_with_moves() -> None:
    values = {row.metric: row.ratio for row in balance.long_rows(GOALS, [4], 500)}
    metric = "long: mean TTFT ÷ that of an empty engine"
    moves, none = values[f"{metric}: moves"], values[f"{metric}: none"]
    assert moves is not None
    assert none is not None
    assert moves <= 1.2 < none


def test_a_drained_engine_is_empty_sooner_and_no_stream_fails() -> None:
    values = {row.metric: row.value for row in balance.drain_rows(GOALS, [4])}
    assert values["drain: failed streams: moves"] == 0
    metric = "drain: seconds until the engine is empty, at most"
    moves, none = values[f"{metric}: moves"], values[f"{metric}: none"]
    assert moves is not None
    assert none is not None
    assert 4 * moves < none


def test_the_high_tier_goes_where_no_prompt_waits_and_headroom_keeps_others_away() -> None:
    tiers = {"high": 0, "low": 1}
    low = [TraceRequest(f"l{number}", 0.0, 2_000, 500, (), tenant="low") for number in range(7)]
    short, high = (TraceRequest(name, 0.0, 16, 500, (), tenant="low") for name in ("short", "high"))
    late = replace(high, arrival=0.1, tenant="high")
    fleet = balance.BalanceFleet(balance.A100, tiers=tiers, dispatch="dual-hash, least prefill for the high tier")
    found = {result.id: result.instance for result in fleet.run([*low, short, late], balance.no_moves).results}
    assert found["high"] not in {found[one.id] for one in low}
    fleet = replace(fleet, dispatch="Llumnix' headroom")
    after = [replace(one, arrival=0.1) for one in low]
    results = fleet.run([replace(high, tenant="high"), short, *after], balance.no_moves).results
    assert results[0].instance not in {result.instance for result in results[1:]}
