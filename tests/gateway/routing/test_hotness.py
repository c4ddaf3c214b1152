"""The adaptive key: first, that a prefix which everyone shares does not decide everyone's home."""

from random import Random

from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_gateway.routing.hotness import HotPrefixes

levels = HotPrefixes().levels


def chain_of_blocks(*blocks: int) -> PrefixChain:
    """A prompt of 2 KiB blocks; equal numbers give equal text."""
    text = b"".join(Random(block).randbytes(2048) for block in blocks)
    return prefix_chain(text, secret=b"s", seed=b"m")


def test_the_key_of_a_conversation_is_not_the_block_that_all_share() -> None:
    hot = HotPrefixes()
    keys = {hot.key(levels(chain_of_blocks(0, session))) for session in range(1, 50)}
    assert len(keys) == 49


def test_a_growing_conversation_keeps_its_key() -> None:
    hot = HotPrefixes()
    turns = [chain_of_blocks(0, 5, *range(100, 100 + turn)) for turn in range(6)]
    assert len({hot.key(levels(turn)) for turn in turns}) == 1


def test_a_prefix_of_more_than_two_nths_of_the_requests_extends_the_key() -> None:
    hot = HotPrefixes()
    for request in range(100):
        hot.observe(levels(chain_of_blocks(0, 1, 1_000 + request)), instances=8)
    one, two = chain_of_blocks(0, 1, 7), chain_of_blocks(0, 1, 8)
    assert hot.key(levels(one)) != hot.key(levels(two))


def test_a_hot_prefix_cools_when_its_share_falls_below_one_nth() -> None:
    hot = HotPrefixes()
    for request in range(100):
        hot.observe(levels(chain_of_blocks(0, 1, 1_000 + request)), instances=8)
    assert len(hot) == 1
    for request in range(400):
        hot.observe(levels(chain_of_blocks(0, 2_000 + request)), instances=8)
    assert len(hot) == 0
    one, two = chain_of_blocks(0, 1, 7), chain_of_blocks(0, 1, 8)
    assert hot.key(levels(one)) == hot.key(levels(two))


def test_between_the_thresholds_nothing_changes() -> None:
    hot = HotPrefixes()
    for request in range(200):  # 20 % of the requests: below 2/8, above 1/8
        session = 1 if request % 5 == 0 else 10_000 + request
        hot.observe(levels(chain_of_blocks(0, session, 500 + request)), instances=8)
    assert len(hot) == 0


def test_counts_are_forgotten_with_the_window() -> None:
    hot = HotPrefixes()
    for request in range(2_000):
        hot.observe(levels(chain_of_blocks(0, request)), instances=8)
    assert len(hot._counts) <= 2 * 200


def test_a_short_prompt_has_one_level_that_its_next_turn_often_keeps() -> None:
    text = Random(1).randbytes(4_000)
    first, second = (prefix_chain(text[:size], secret=b"s", seed=b"m") for size in (700, 1_000))
    assert levels(first) == levels(second)
    assert len(levels(first)) == 1


def test_a_prompt_below_one_block_is_keyed_by_all_of_it() -> None:
    one, two = (prefix_chain(text, secret=b"s", seed=b"m") for text in (b"hello", b"hallo"))
    assert levels(one) == (one.tail,)
    assert levels(one) != levels(two)
