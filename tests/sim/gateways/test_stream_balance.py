"""Moves in the fleet simulator: a moved stream keeps its tokens, pauses, and is computed again."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import KvPullSource, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionPolicy
from fairlead_gateway.admission.defragmentation import MemoryWait
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import AdmissionControlledGateway
from fairlead_sim.gateways.move_planner import (
    InstanceStreams,
    MovePlan,
    RecentMoves,
    StreamMove,
    plan_moves,
)
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.gateways.stream_balance import BalancedGateway, BalanceOptions, MoveRule
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

PROFILE = builtin_profile("l4-qwen8b")
NAMES = ["sim-0/0/0", "sim-1/0/0"]
BLOCK = 16


def no_moves(instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait) -> MovePlan:
    del instances, recent, queued
    return MovePlan((), "")


def every_stream_once(instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait) -> MovePlan:
    """Moves each stream to the other engine, once."""
    del recent, queued
    moves = [
        StreamMove(stream.id, source.id, destination.id, 0.0, 0.0, "")
        for source, destination in (instances, instances[::-1])
        for stream in source.running
        if stream.is_movable and not stream.moves
    ]
    return MovePlan(moves, "")


def run(
    requests: Sequence[TraceRequest],
    rule: MoveRule,
    *,
    gate: bool = False,
    profile: EngineProfile = PROFILE,
    link: KvPullSource | None = None,
) -> tuple[list[RequestResult], FleetSimulation, BalancedGateway]:
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0), "least-request")
    router = ModelRouter(secret=b"test")
    router.update(model, instances_of(NAMES, profile))
    prompts = TracePromptCache(BLOCK, secret=b"test", seed=model.key.encode())
    gateway = SingleGateway(router, prompts.prefix_chain, {}, model, profile, never_queues=True)
    if gate:
        gateway = AdmissionControlledGateway(router, prompts.prefix_chain, model, profile, AdmissionPolicy(Limits()))
    front = BalancedGateway(gateway, BalanceOptions(rule, pull=link))
    options = FleetOptions(NAMES, profile, BLOCK, reserve_tokens=0, move_pull=link)
    simulation = FleetSimulation(front, options, prompts=prompts)
    results = simulation.run(requests)
    assert {load.inflight for load in router.loads().values()} <= {0}
    return results, simulation, front


def drawn(count: int = 60, rate: float = 2.0) -> list[TraceRequest]:
    draw, at, requests = random.Random(1), 0.0, []
    for number in range(count):
        at += draw.expovariate(rate)
        requests.append(TraceRequest(f"r{number}", at, draw.randint(50, 900), draw.randint(1, 200), ()))
    return requests


@pytest.mark.parametrize("gate", [False, True])
def test_moved_streams_lose_no_token_and_go_forward_in_time(gate: bool) -> None:
    results, simulation, front = run(drawn(), every_stream_once, gate=gate)
    assert front.moves > 30
    for request, result in zip(drawn(), results, strict=True):
        assert (result.error, result.output_tokens) == (None, request.output_tokens)
        times = list(result.token_times)
        assert len(times) == request.output_tokens
        assert all(earlier < later for earlier, later in pairwise(times))
        assert result.ttft_seconds == times[0] - request.arrival
        assert result.moves <= 1
    assert all(core.is_idle and not core.pool.referenced for core in simulation.engine_cores.values())
    assert simulation.prefilled_tokens > sum(result.prompt_tokens for result in results)


def test_a_move_costs_its_stream_a_pause_of_the_computation() -> None:
    lone = [TraceRequest("r0", 0.0, 4_000, 50, ())]
    (still,), before, _ = run(lone, no_moves)
    (moved,), after, _ = run(lone, every_stream_once)
    assert (still.moves, moved.moves) == (0, 1)
    assert max(moved.token_gaps) > PROFILE.prefill_time(4_000) > 10 * max(still.token_gaps)
    recomputed = after.prefilled_tokens - before.prefilled_tokens
    assert 4_000 <= recomputed <= 4_050


def test_a_copied_stream_pauses_for_the_copy_and_computes_one_token() -> None:
    link = KvPullSource("", bytes_per_token=1_000.0, bytes_per_second=2e6, latency_seconds=0.5)
    lone = [TraceRequest("r0", 0.0, 4_000, 50, ())]
    _, before, _ = run(lone, no_moves)
    (moved,), after, _ = run(lone, every_stream_once, link=link)
    assert moved.moves == 1
    assert max(moved.token_gaps) == pytest.approx(link.transfer_seconds(4_000), rel=0.1)
    assert after.prefilled_tokens == before.prefilled_tokens + 1


def test_what_an_engine_has_cached_of_a_moved_stream_is_not_computed_again() -> None:
    shared = tuple(range(8))
    requests = [TraceRequest(f"r{number}", 0.01 * number, 4_096, 80, shared) for number in range(2)]
    _, before, _ = run(requests, no_moves)
    _, after, front = run(requests, every_stream_once)
    assert front.moves == 2
    assert after.prefilled_tokens - before.prefilled_tokens < 2 * (BLOCK + 80)


def test_runs_without_moves_are_those_of_the_gateway_alone() -> None:
    requests = drawn()
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0), "least-request")
    router = ModelRouter(secret=b"test")
    router.update(model, instances_of(NAMES, PROFILE))
    prompts = TracePromptCache(BLOCK, secret=b"test", seed=model.key.encode())
    gateway = SingleGateway(router, prompts.prefix_chain, {}, model, PROFILE, never_queues=True)
    alone = FleetSimulation(gateway, FleetOptions(NAMES, PROFILE, BLOCK, reserve_tokens=0), prompts=prompts)
    assert [list(one.token_times) for one in alone.run(requests)] == [
        list(one.token_times) for one in run(requests, no_moves)[0]
    ]


@pytest.mark.parametrize("gate", [False, True])
def test_a_long_prompt_gets_room_in_a_fragmented_fleet(gate: bool) -> None:
    # Each engine has 28,672 tokens: 18,000 of them are in use, and the long prompt needs 12,000.
    chats = [TraceRequest(f"r{number}", 0.0, 3_200, 900, ()) for number in range(10)]
    long = TraceRequest("long", 30.0, 12_000, 10, ())
    waits = {}
    for rule in (no_moves, plan_moves):
        results = run([*chats, long], rule, gate=gate)[0]
        assert not [result for result in results if result.error]
        waits[rule] = results[-1].ttft_seconds or 0.0
    assert waits[no_moves] > 2 * waits[plan_moves]


def test_engines_that_only_decode_compute_no_prompt_but_moved_streams() -> None:
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0), "least-request")
    router = ModelRouter(secret=b"test")
    router.update(model, instances_of(NAMES, PROFILE))
    prompts = TracePromptCache(BLOCK, secret=b"test", seed=model.key.encode())
    gateway = SingleGateway(router, prompts.prefix_chain, {}, model, PROFILE, never_queues=True)
    fleet = FleetOptions(NAMES, PROFILE, BLOCK, prefilled_elsewhere=True)
    simulation = FleetSimulation(gateway, fleet, prompts=prompts)
    requests = drawn()
    assert not [result for result in simulation.run(requests) if result.error]
    assert simulation.prefilled_tokens == len(requests)  # the last token of a prompt is always computed
