"""The adaptive routing key: a prefix that all requests share does not decide their home."""

from collections import Counter, deque
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_gateway.routing.prefix.hot_prefixes import MIN_SAMPLES, WINDOW, HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import block_ends


def chain_of_blocks(*blocks: int) -> PrefixChain:
    """A prompt of 2 KiB blocks; equal numbers give equal text."""
    text = b"".join(Random(block).randbytes(2048) for block in blocks)
    return prefix_chain(text, secret=b"s", seed=b"m")


def test_the_key_of_a_conversation_is_not_the_block_that_all_share() -> None:
    hot = HotPrefixes()
    keys = {hot.routing_key(chain_of_blocks(0, session)) for session in range(1, 50)}
    assert len(keys) == 49


def test_a_growing_conversation_keeps_its_key() -> None:
    hot = HotPrefixes()
    turns = [chain_of_blocks(0, 5, *range(100, 100 + turn)) for turn in range(6)]
    assert len({hot.routing_key(turn) for turn in turns}) == 1


def test_a_prefix_of_more_than_two_nths_of_the_requests_extends_the_key() -> None:
    hot = HotPrefixes()
    for request in range(100):
        hot.observe(chain_of_blocks(0, 1, 1_000 + request), instances=8)
    first, second = chain_of_blocks(0, 1, 7), chain_of_blocks(0, 1, 8)
    assert hot.routing_key(first) != hot.routing_key(second)


def test_the_key_reaches_past_a_common_prompt_of_25_000_tokens() -> None:
    common, hot = range(50), HotPrefixes()
    chains = [chain_of_blocks(*common, *range(1_000 * number, 1_000 * number + 6)) for number in range(1, 300)]
    for chain in chains:
        hot.observe(chain, instances=8)
    assert len({hot.routing_key(chain) for chain in chains}) == len(chains)


def test_a_hot_prefix_cools_when_its_share_falls_below_one_nth() -> None:
    hot = HotPrefixes()
    for request in range(100):
        hot.observe(chain_of_blocks(0, 1, 1_000 + request), instances=8)
    assert len(hot) == 1
    for request in range(400):
        hot.observe(chain_of_blocks(0, 2_000 + request), instances=8)
    assert len(hot) == 0
    first, second = chain_of_blocks(0, 1, 7), chain_of_blocks(0, 1, 8)
    assert hot.routing_key(first) == hot.routing_key(second)


def test_between_the_thresholds_nothing_changes() -> None:
    hot = HotPrefixes()
    for request in range(200):  # 20 % of the requests: below 2/8, above 1/8
        hot.observe(chain_of_blocks(0, 1 if request % 5 == 0 else 10_000 + request, 500 + request), instances=8)
    assert len(hot) == 0


def test_counts_are_forgotten_with_the_window() -> None:
    hot = HotPrefixes()
    for request in range(2_000):
        hot.observe(chain_of_blocks(0, request), instances=8)
    assert len(hot._levels) <= 2 * 200


def test_a_short_prompt_has_one_level_that_its_next_turn_often_keeps() -> None:
    text = Random(1).randbytes(4_000)
    first, second = (prefix_chain(text[:size], secret=b"s", seed=b"m") for size in (700, 1_000))
    key = HotPrefixes().routing_key
    assert key(first) == key(second)


def test_a_prompt_below_one_block_is_keyed_by_all_of_it() -> None:
    first, second = (prefix_chain(text, secret=b"s", seed=b"m") for text in (b"hello", b"hallo"))
    key = HotPrefixes().routing_key
    assert key(first) == first.tail
    assert key(first) != key(second)


def plain_keys(prompts: Sequence[tuple[int, ...]], instances: int) -> list[tuple[int, ...]]:
    """The rule literally: each prompt's key as blocks; the first two blocks are the base."""
    window: deque[list[tuple[int, ...]]] = deque()
    counts, hot, keys = Counter[tuple[int, ...]](), set[tuple[int, ...]](), []
    for prompt in prompts:
        levels = [prompt[: size + 1] for size in range(1, len(prompt))]
        window.append(levels)
        counts.update(levels)
        if len(window) > WINDOW:
            gone = window.popleft()
            counts.subtract(gone)
            hot -= {level for level in gone if counts[level] * instances < WINDOW}
        if len(window) >= MIN_SAMPLES:
            shares = [counts[level] * instances / len(window) for level in levels]
            over = next((index for index, share in enumerate(shares) if share <= 2), len(shares))
            hot.update(levels[:over])
            if over < len(shares) and shares[over] < 1:
                hot.discard(levels[over])
        keys.append(next((level for level in levels if level not in hot), levels[-1]))
    return keys


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 4))
def test_keys_are_those_of_the_rule_by_the_letter(seed: int, instances: int, kinds: int) -> None:
    draw = Random(seed)
    prompts = [(0, *(draw.randrange(1, kinds + 1) for _ in range(draw.randrange(1, 5)))) for _ in range(300)]
    texts = {prompt: chain_of_blocks(*prompt) for prompt in set(prompts)}
    names = {texts[prompt].hashes[-1]: prompt for prompt in texts}
    for prompt in texts:  # the parts of a prompt are prompts too
        for size in range(2, len(prompt)):
            names[chain_of_blocks(*prompt[:size]).hashes[-1]] = prompt[:size]
    hot = HotPrefixes()
    for prompt, expected in zip(prompts, plain_keys(prompts, instances), strict=True):
        assert names[hot.observe(texts[prompt], instances)] == expected  # type: ignore[index]
        assert names[hot.routing_key(texts[prompt])] == expected  # type: ignore[index]


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_forged_blocks_with_equal_hashes_cause_no_error(kinds: int) -> None:
    hot = HotPrefixes()
    draw = Random(kinds)
    for number in range(3 * WINDOW):
        forged = [draw.randrange(kinds) for _ in range(24)]
        chain = forged if number % 2 else range(1_000 * number, 1_000 * number + 24)
        hot.observe(PrefixChain(tuple(chain), block_ends(24), number), 2)
    for number in range(WINDOW):
        hot.observe(PrefixChain(tuple(range(-24 * number - 24, -24 * number)), block_ends(24), number), 2)
    assert len(hot) == 0
