"""Coding agents: the shape of their sessions."""

from collections import defaultdict
from functools import cache
from itertools import pairwise
from statistics import fmean, median

import pytest

from fairlead.errors import BadInput
from fairlead_sim.workload.coding_agents import (
    COMPACTION_SHARE,
    CONTEXT_TOKENS,
    MAX_PERSON_SECONDS,
    RATE,
    coding_agent_traffic,
)
from fairlead_sim.workload.generators import TOKEN_SECONDS
from fairlead_sim.workload.sources import load_source
from fairlead_sim.workload.traces import TraceRequest, ideal_cached_share


@cache
def calls_of(seed: int) -> tuple[TraceRequest, ...]:
    return tuple(coding_agent_traffic(6_000, seed=seed))


def end_of(call: TraceRequest) -> float:
    return call.arrival + call.output_tokens * TOKEN_SECONDS


def contexts(calls: tuple[TraceRequest, ...]) -> list[list[TraceRequest]]:
    """Returns the calls of each context in order: of a session itself, and of each sub-agent.

    A call continues the context that has ended before, and whose blocks but the last it has.
    """
    open_contexts: dict[str | None, list[list[TraceRequest]]] = defaultdict(list)
    for call in calls:
        of_session = open_contexts[call.session]
        for context in of_session:
            blocks = context[-1].blocks[:-1]
            if end_of(context[-1]) <= call.arrival and call.blocks[: len(blocks)] == blocks:
                context.append(call)
                break
        else:
            of_session.append([call])
    return [context for of_session in open_contexts.values() for context in of_session]


def test_equal_seeds_give_equal_calls_and_others_do_not() -> None:
    assert coding_agent_traffic(50, seed=1) == coding_agent_traffic(50, seed=1)
    assert coding_agent_traffic(50, seed=1) != coding_agent_traffic(50, seed=2)
    assert load_source("coding-agents", limit=40).requests == coding_agent_traffic(40, seed=0)
    with pytest.raises(BadInput, match="at least 1 request"):
        coding_agent_traffic(0, seed=1)


def test_a_context_grows_after_a_pause_of_milliseconds_to_minutes_until_a_compaction() -> None:
    grown, pauses = [], []
    for context in contexts(calls_of(3)):
        for before, after in pairwise(context):
            grown.append(after.prompt_tokens - before.prompt_tokens)
            pauses.append(after.arrival - end_of(before))
        assert all(call.prompt_tokens <= COMPACTION_SHARE * CONTEXT_TOKENS for call in context)
    assert 1_500 < fmean(grown) < 2_600
    assert 0.15 < median(pauses) < 0.5
    assert min(pauses) < 0.01
    assert max(pauses) > MAX_PERSON_SECONDS / 2


def test_sessions_have_the_published_shape() -> None:
    sessions: dict[str | None, list[TraceRequest]] = defaultdict(list)
    for call in calls_of(4):
        sessions[call.session].append(call)
    assert 18_000 < median([calls[0].prompt_tokens for calls in sessions.values()]) < 26_000
    assert 35 < median([len(calls) for calls in sessions.values()]) < 90
    outputs = sorted([call.output_tokens for call in calls_of(4)])
    assert 380 < outputs[len(outputs) // 2] < 480
    assert 1_800 < outputs[int(0.9 * len(outputs))] < 2_600
    assert 0.94 < ideal_cached_share(list(calls_of(4))) < 0.97


def test_the_rate_is_reached_once_sessions_end_as_they_begin() -> None:
    arrivals = [call.arrival for call in calls_of(5)]
    late = [at for at in arrivals if at > arrivals[-1] / 2]
    assert len(late) / (arrivals[-1] / 2) == pytest.approx(RATE, rel=0.35)
