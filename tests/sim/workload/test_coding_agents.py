"""Coding agents: the shape of their sessions, and the closed loop that runs them."""

from collections import defaultdict
from functools import cache
from itertools import pairwise
from statistics import fmean, median

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import ClusterOptions, GatewayCluster, SharingOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.coding_agents import (
    COMPACTION_SHARE,
    CONTEXT_TOKENS,
    MAX_PERSON_SECONDS,
    PREFIX_TOKENS,
    RATE,
    AgentCall,
    coding_agent_calls,
    coding_agent_traffic,
)
from fairlead_sim.workload.sources import load_source
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest, ideal_cached_share


@cache
def calls_of(seed: int) -> tuple[AgentCall, ...]:
    return tuple(coding_agent_calls(6_000, seed=seed))


def contexts(calls: tuple[AgentCall, ...]) -> list[list[AgentCall]]:
    """Returns the calls of each context in order: of a session itself, and of each sub-agent."""
    found: dict[str, list[AgentCall]] = {}
    made: list[list[AgentCall]] = []
    for call in calls:
        before = found.get(call.after[0]) if call.after else None
        is_new = before is None or (
            call.request.blocks[: len(before[-1].request.blocks) - 1] != before[-1].request.blocks[:-1]
        )
        if before is None or is_new:
            before = []
            made.append(before)
        before.append(call)
        found[call.request.id] = before
    return made


def test_equal_seeds_give_equal_calls_and_others_do_not() -> None:
    assert coding_agent_calls(50, seed=1) == coding_agent_calls(50, seed=1)
    assert coding_agent_calls(50, seed=1) != coding_agent_calls(50, seed=2)
    with pytest.raises(BadInput, match="at least 1 request"):
        coding_agent_calls(0, seed=1)


def test_calls_wait_for_earlier_ones_and_pause_from_milliseconds_to_minutes() -> None:
    seen: set[str] = set()
    pauses = []
    for call in calls_of(3):
        assert seen.issuperset(call.after)
        seen.add(call.request.id)
        if call.after:
            pauses.append(call.pause_seconds)
    assert 0.15 < median(pauses) < 0.5
    assert min(pauses) < 0.01
    assert 60 < max(pauses) <= MAX_PERSON_SECONDS


def test_prompts_grow_behind_their_prefix_until_a_compaction() -> None:
    grown = []
    for context in contexts(calls_of(3)):
        prefix = context[0].request.blocks[: PREFIX_TOKENS[0] // TRACE_BLOCK_TOKENS]
        for before, after in pairwise([call.request for call in context]):
            assert after.blocks[: len(prefix)] == prefix
            grown.append(after.prompt_tokens - before.prompt_tokens)
        assert all(call.request.prompt_tokens <= COMPACTION_SHARE * CONTEXT_TOKENS for call in context)
    assert 1_500 < fmean([tokens for tokens in grown if tokens > 0]) < 2_600


def test_sessions_have_the_published_shape() -> None:
    sessions: dict[str | None, list[AgentCall]] = defaultdict(list)
    for call in calls_of(4):
        sessions[call.request.session].append(call)
    first = [calls[0].request.prompt_tokens for calls in sessions.values()]
    assert 18_000 < median(first) < 26_000
    assert 35 < median([len(calls) for calls in sessions.values()]) < 90
    outputs = sorted([call.request.output_tokens for call in calls_of(4)])
    assert 380 < outputs[len(outputs) // 2] < 480
    assert 1_800 < outputs[int(0.9 * len(outputs))] < 2_600
    assert 0.94 < ideal_cached_share([call.request for call in calls_of(4)]) < 0.97
    waits = [any(len(call.after) > 1 for call in calls) for calls in sessions.values()]
    assert 0.25 < fmean(waits) < 0.5


def test_the_rate_is_reached_once_sessions_end_as_they_begin() -> None:
    arrivals = [call.request.arrival for call in calls_of(5)]
    late = [at for at in arrivals if at > arrivals[-1] / 2]
    assert len(late) / (arrivals[-1] / 2) == pytest.approx(RATE, rel=0.35)


def test_the_open_loop_has_the_same_requests_under_its_name() -> None:
    assert coding_agent_traffic(40, seed=0) == [call.request for call in coding_agent_calls(40, seed=0)]
    assert load_source("coding-agents", limit=40).requests == coding_agent_traffic(40, seed=0)


def simulation() -> FleetSimulation:
    """Returns three gateways before four engines."""
    names = [f"e-{number}" for number in range(4)]
    fleet = FleetOptions(names, builtin_profile("h100-llama8b"), TRACE_BLOCK_TOKENS, publishes_kv_events=True)
    routing = RoutingOptions(SloTargets(ttft_seconds=5.0), b"secret")
    cluster = GatewayCluster(fleet, routing, ClusterOptions(3, SharingOptions(index=True)))
    return FleetSimulation(cluster, fleet)


def test_each_call_arrives_its_pause_after_the_last_of_those_that_it_waits_for() -> None:
    calls = coding_agent_calls(200, seed=1)
    results = {result.id: result for result in simulation().run_calls(calls)}
    assert list(results) == [call.request.id for call in calls]
    for call in calls:
        result = results[call.request.id]
        assert result.error is None
        ends = [results[name].finish or 0.0 for name in call.after]
        wanted = max(ends) + call.pause_seconds if ends else call.request.arrival
        assert result.arrival == pytest.approx(wanted)


def test_a_call_without_its_predecessor_is_refused() -> None:
    request = TraceRequest("b", 0.0, 100, 1, (1,))
    with pytest.raises(BadInput, match="waits for one that is not there"):
        simulation().run_calls([AgentCall(request, ("a",))])
