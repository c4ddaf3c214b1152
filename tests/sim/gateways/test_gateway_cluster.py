"""Several gateways in front of one simulated fleet: shared information decides the cache hits."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import GatewayCluster
from fairlead_sim.gateways.simulated_gateway import (
    NO_SHARING,
    PERFECT_KNOWLEDGE,
    ClusterOptions,
    GatewayRestart,
    SharingOptions,
)
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.generators import agent_sessions
from fairlead_sim.workload.trace_prompts import trace_keys
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.pytest_hooks.nightly import shortened

ENGINES = ("e-0", "e-1", "e-2", "e-3")
SHORT = replace(builtin_profile("tiny-cpu"), kv_tokens=24_000)
LONG = replace(builtin_profile("l4-qwen8b").sped_up(2.0), kv_tokens=40_000)


def gateways(
    number: int,
    knowledge: SharingOptions,
    *,
    profile: EngineProfile = SHORT,
    seed: int = 0,
    by_session: bool = False,
    restart: GatewayRestart | None = None,
) -> GatewayCluster:
    fleet = FleetOptions(ENGINES, profile, 16)
    routing = RoutingOptions(SloTargets(), f"secret {seed}".encode(), seed)
    return GatewayCluster(fleet, routing, ClusterOptions(number, knowledge, by_session, restart))


def served(
    number: int,
    knowledge: SharingOptions,
    *,
    profile: EngineProfile = SHORT,
    sessions: int = 20,
    seed: int = 0,
    **how: Any,
) -> list[RequestResult]:
    front = gateways(number, knowledge, profile=profile, seed=seed, **how)
    simulation = FleetSimulation(front, FleetOptions(ENGINES, profile, 16, publishes_kv_events=knowledge.index))
    return simulation.run_sessions(
        agent_sessions(sessions, seed=seed), concurrency=10, round_trip_seconds=0.01, seed=seed
    )


def cached_tokens_of(simulation: FleetSimulation, request: TraceRequest) -> int:
    keys = trace_keys(request.blocks, request.prompt_tokens, 16)
    return 16 * max(len(core.pool.match(keys, len(keys))) for core in simulation.engine_cores.values())


def cached(runs: Sequence[Sequence[RequestResult]]) -> float:
    every = [one for run in runs for one in run]
    return sum(one.cached_tokens for one in every) / sum(one.prompt_tokens for one in every)


def mean(number: int, knowledge: SharingOptions, seeds: int = shortened(4, 2), **how: Any) -> float:
    return cached([served(number, knowledge, seed=seed, **how) for seed in range(seeds)])


def test_equal_arguments_give_equal_results() -> None:
    knowledge = SharingOptions(index=True)
    assert served(3, knowledge, restart=GatewayRestart(1, 50)) == served(3, knowledge, restart=GatewayRestart(1, 50))


def test_one_gateway_is_the_same_whatever_it_would_tell() -> None:
    assert served(1, SharingOptions()) == served(1, NO_SHARING)


def test_every_request_is_answered_while_a_gateway_is_restarted() -> None:
    for knowledge in (NO_SHARING, SharingOptions(), SharingOptions(index=True), PERFECT_KNOWLEDGE):
        assert all(
            one.error is None and one.finish is not None for one in served(3, knowledge, restart=GatewayRestart(0, 40))
        )


def test_stale_loads_do_not_divert_short_requests_from_their_caches() -> None:
    shared, apart = mean(3, SharingOptions(), 4), mean(3, NO_SHARING, 4)
    assert shared > apart - 0.03  # who hears nothing of others keeps to the homes, which serves such traffic best
    assert shared > mean(3, SharingOptions(loads=False), 4) - 0.03
    assert mean(3, SharingOptions(raw_loads=True), 4) < apart - 0.05, "this is no case to tell the difference by"


def test_three_gateways_that_share_find_what_one_finds() -> None:
    one = mean(1, NO_SHARING, profile=LONG, sessions=40)
    shared, apart = (
        mean(3, SharingOptions(), profile=LONG, sessions=40),
        mean(3, NO_SHARING, profile=LONG, sessions=40),
    )
    assert shared > one - 0.02
    assert shared > apart + 0.015


def test_a_restarted_gateway_goes_on_from_what_others_kept() -> None:
    restart = GatewayRestart(0, 100)
    one = mean(1, NO_SHARING, profile=LONG, sessions=40, restart=restart)
    shared = mean(3, SharingOptions(), profile=LONG, sessions=40, restart=restart)
    assert shared > one


def test_evicted_blocks_are_not_expected_in_the_cache() -> None:
    """The gateways overestimate the engines' memory by a factor of twenty."""
    slow = builtin_profile("l4-qwen8b").sped_up(0.1)  # other gateways' prompts count as on their way for half a minute
    wrong, real = replace(slow, kv_tokens=160_000), replace(slow, kv_tokens=8_000)
    believed = {False: 0.0, True: 0.0}
    seeds = shortened([0, 1, 2, 3], [3])
    for seed, knowledge in product(seeds, (SharingOptions(), SharingOptions(index=True))):
        front = gateways(3, knowledge, profile=wrong, seed=seed)
        simulation = FleetSimulation(front, FleetOptions(ENGINES, real, 16, publishes_kv_events=knowledge.index))
        sessions = agent_sessions(40, seed=seed)
        simulation.run_sessions(sessions, concurrency=10, round_trip_seconds=0.01, seed=seed)
        lasts = [session[-1] for session in sessions]
        truth = [cached_tokens_of(simulation, request) for request in lasts]
        believed[knowledge.index] += sum(
            max(0.0, front.believed_cached_tokens(request) - there) for request, there in zip(lasts, truth, strict=True)
        )
    assert believed[False] > 20_000 * len(seeds)
    assert believed[True] < 0.35 * believed[False], believed


def test_sessions_that_stay_at_a_gateway_need_less_sharing() -> None:
    assert mean(3, NO_SHARING, by_session=True) > mean(3, NO_SHARING) - 0.02
    runs = [served(3, SharingOptions(), by_session=True, seed=seed) for seed in range(2)]
    assert all(one.error is None for run in runs for one in run)


def test_no_gateways_cannot_answer() -> None:
    with pytest.raises(BadInput, match="0 gateways"):
        served(0, NO_SHARING)
