"""The turns of conversations, and the prefixes that their prompts share."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_sim.autoscaling.fleet_plant.conversation_prompts import ConversationPrompts
from fairlead_sim.autoscaling.fleet_plant.conversations import (
    NO_PARENT,
    PREFIX_BLOCK_TOKENS,
    ConversationOptions,
    ConversationTurns,
    conversation_turns,
)
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals
from fairlead_sim.workload.traces import TraceRequest

LOAD = poisson_arrivals([8.0] * 20, CHAT_LENGTHS, Random(1))


def prompts_of(load: ArrivalTrace, turns: ConversationTurns, options: ConversationOptions) -> ConversationPrompts:
    return ConversationPrompts(load, turns, options, secret=b"s", seed=b"m")


def endless_cache_share(requests: list[TraceRequest], prompts: ConversationPrompts) -> float:
    cached: set[int] = set()
    reused = 0
    for request in requests:
        keys = prompts.block_keys(request)
        reused += PREFIX_BLOCK_TOKENS * len([key for key in keys if key in cached])
        cached.update(keys)
    return reused / sum(request.prompt_tokens for request in requests)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_an_endless_cache_would_have_the_share_that_was_asked_for(share: float) -> None:
    options = ConversationOptions(cached_share=share)
    turns = conversation_turns(LOAD, options, Random(2))
    assert turns.cached_share == pytest.approx(share, abs=0.01)
    prompts = prompts_of(LOAD, turns, options)
    requests = [prompts.take(number) for number in range(len(LOAD))]
    assert endless_cache_share(requests, prompts) == pytest.approx(turns.cached_share, abs=0.001)
    assert [request.prompt_tokens for request in requests] == list(LOAD.prompts)
    assert [request.output_tokens for request in requests] == list(LOAD.outputs)
    assert [request.arrival for request in requests] == list(LOAD.arrivals)


def test_without_a_share_no_two_prompts_have_anything_in_common() -> None:
    options = ConversationOptions(cached_share=0.0)
    turns = conversation_turns(LOAD, options, Random(2))
    prompts = prompts_of(LOAD, turns, options)
    assert endless_cache_share([prompts.take(number) for number in range(len(LOAD))], prompts) == 0.0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 900.0), st.integers(1, 3_000), st.integers(1, 300)), min_size=1, max_size=80),
    st.floats(0.0, 0.9),
)
def test_a_turn_follows_a_finished_shorter_one_and_each_has_one_next(
    drawn: list[tuple[float, int, int]], share: float
) -> None:
    arrivals, lengths, outputs = zip(*sorted(drawn), strict=True)
    load = ArrivalTrace(arrivals, lengths, outputs)
    options = ConversationOptions(cached_share=share, pause_seconds=5.0)
    turns = conversation_turns(load, options, Random(3))
    assert turns == conversation_turns(load, options, Random(3))
    parents = [parent for parent in turns.parents if parent != NO_PARENT]
    assert len(set(parents)) == len(parents)
    for number, parent in enumerate(turns.parents):
        if parent != NO_PARENT:
            assert parent < number
            assert lengths[number] > lengths[parent] + outputs[parent]
            assert arrivals[number] > arrivals[parent]
    prompts = prompts_of(load, turns, options)
    requests = [prompts.take(number) for number in range(len(load))]
    for number, parent in enumerate(turns.parents):
        if parent != NO_PARENT:
            shared = lengths[parent] // PREFIX_BLOCK_TOKENS
            mine, before = prompts.block_keys(requests[number]), prompts.block_keys(requests[parent])
            assert mine[:shared] == before
            assert len(set(mine) & set(before)) == shared


def test_the_gateway_sees_the_same_common_prefixes_as_the_engines() -> None:
    load = ArrivalTrace([0.0, 100.0, 200.0], [512, 1_024, 1_024], [10, 10, 10])
    options = ConversationOptions(cached_share=0.5, system_tokens=256, pause_seconds=1.0)
    turns = conversation_turns(load, options, Random(1))
    assert list(turns.parents) == [NO_PARENT, 0, NO_PARENT]
    prompts = prompts_of(load, turns, options)
    first, second, third = [prompts.prefix_chain(prompts.take(number)) for number in range(3)]
    blocks = 512 * 4 // 256
    assert second.hashes[:blocks] == first.hashes
    assert third.hashes[: blocks // 2] == first.hashes[: blocks // 2]
    assert third.hashes[blocks // 2] != first.hashes[blocks // 2]
    assert len({first.tail, second.tail, third.tail}) == 3


@pytest.mark.parametrize("wrong", [{"cached_share": 1.0}, {"pause_seconds": 0.0}, {"system_tokens": -1}])
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        ConversationOptions(**wrong)  # type: ignore[arg-type]
