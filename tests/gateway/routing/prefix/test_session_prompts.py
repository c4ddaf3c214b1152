"""The cached tokens of a session's next prompt, from what the engine reported of the last one."""

from random import Random

import pytest

from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_gateway.routing.prefix.session_prompts import PROMPTS_PER_SESSION, ComputedPrompt, SessionPrompts


def chain(conversation: int, turns: int) -> PrefixChain:
    """A prompt of turns of 3 KiB; equal numbers give equal text."""
    text = b"".join([Random(f"{conversation} {turn}").randbytes(3_072) for turn in range(turns)])
    return prefix_chain(text, secret=b"s", seed=b"m")


def observe(prompts: SessionPrompts, session: str, prompt: PrefixChain, tokens: int, *of_engine: int) -> None:
    """Records a prompt of which the index had found nothing.

    of_engine: output and cached tokens.
    """
    output, cached = of_engine or (0, 0)
    prompts.observe(session, prompt, ComputedPrompt("e-0", prompt, tokens, output), cached, 0.0)


def cached(prompts: SessionPrompts, session: str, prompt: PrefixChain, instance: str = "e-0") -> int | None:
    """Returns what is known of a prompt whose blocks are all found."""
    return prompts.cached(session, instance, prompt, prompt.ends[-1])


@pytest.fixture
def prompts() -> SessionPrompts:
    return SessionPrompts(2)


def test_the_next_turn_finds_the_whole_blocks_of_the_last_prompt(prompts: SessionPrompts) -> None:
    observe(prompts, "s", chain(1, 2), 1_007, 90, 0)
    assert cached(prompts, "s", chain(1, 3)) == 992


def test_only_the_same_conversation_of_the_session_at_its_instance_is_known(prompts: SessionPrompts) -> None:
    observe(prompts, "s", chain(1, 2), 1_007, 90, 0)
    assert cached(prompts, "s", chain(1, 3), "e-1") is None
    assert cached(prompts, "s", chain(2, 3)) is None
    assert cached(prompts, "s", chain(1, 1)) is None
    assert cached(prompts, "t", chain(1, 3)) is None


def test_answers_count_once_an_engine_had_one_cached(prompts: SessionPrompts) -> None:
    observe(prompts, "s", chain(1, 2), 1_000, 90, 0)
    observe(prompts, "s", chain(1, 3), 2_000, 96, 1_088)
    assert cached(prompts, "s", chain(1, 4)) == 2_096
    observe(prompts, "s", chain(1, 4), 3_000, 96, 2_000)
    assert cached(prompts, "s", chain(1, 5)) == 2_992


def test_a_subagent_in_the_session_leaves_the_agents_prompt_known(prompts: SessionPrompts) -> None:
    observe(prompts, "s", chain(1, 2), 1_000)
    for other in range(2, 1 + PROMPTS_PER_SESSION):
        observe(prompts, "s", chain(other, 1), 500)
    assert cached(prompts, "s", chain(1, 3)) is not None
    observe(prompts, "s", chain(9, 1), 500)
    assert cached(prompts, "s", chain(1, 3)) is None


def test_the_session_without_a_prompt_for_the_longest_time_is_dropped(prompts: SessionPrompts) -> None:
    for session in ("a", "b", "a", "c"):
        observe(prompts, session, chain(1, 2), 1_000)
    known = [session for session in "abc" if cached(prompts, session, chain(1, 3)) is not None]
    assert known == ["a", "c"]


def test_an_empty_prompt_is_not_kept(prompts: SessionPrompts) -> None:
    observe(prompts, "s", PrefixChain((), (), 1), 7)
    assert cached(prompts, "s", chain(1, 1)) is None


def test_evicted_blocks_of_the_last_prompt_leave_it_unknown(prompts: SessionPrompts) -> None:
    observe(prompts, "s", chain(1, 2), 1_000)
    assert prompts.cached("s", "e-0", chain(1, 3), chain(1, 2).ends[-2]) is None


def test_what_conversations_share_is_what_the_engine_last_reported(prompts: SessionPrompts) -> None:
    shared = chain(1, 3).ends[2]
    prompts.observe("s", chain(1, 3), ComputedPrompt("e-0", chain(1, 3), 2_000, 0), 704, shared)
    assert prompts.cached("t", "e-1", chain(1, 4), shared + 0.4) == 704
    assert prompts.cached("t", "e-1", chain(1, 4), chain(1, 3).ends[1]) is None
    assert prompts.cached("t", "e-1", chain(2, 4), shared) is None
