"""Block hashes, and the values that they depend on."""

import pytest

from fairlead.errors import BadInput
from fairlead_kvstore.blockstore.block_hash import (
    block_hashes,
    chain_root,
    engine_hash,
    extra_bytes,
    hash_with_extras,
    token_bytes,
)
from fairlead_testing.kvstore.block_store import block_extras, cached_tokens

START = chain_root("default/tiny")


def test_block_hashes_are_stable_across_machines_and_releases() -> None:
    """Redis contains hashes that one release writes and the next reads."""
    assert START == 9992791669714652236
    assert block_hashes(START, [1, 2, 3, 4_294_967_295], 2) == [15545567489756096267, 2549065674650195159]
    assert block_hashes(START, [1, 2], 2, {0: ["salt"]}) == [1403607802017451528]


def test_chain_continues_from_its_last_block_and_skips_partial_blocks() -> None:
    whole = block_hashes(START, list(range(11)), 2)
    assert len(whole) == 5
    assert block_hashes(block_hashes(START, list(range(4)), 2)[-1], list(range(4, 11)), 2) == whole[2:]


def test_block_hash_depends_on_all_earlier_tokens() -> None:
    tokens = list(range(8))
    chains = [
        block_hashes(START, tokens, 2),
        block_hashes(START, [9, *tokens[1:]], 2),
        block_hashes(chain_root("default/other"), tokens, 2),
        block_hashes(chain_root("default/tiny", "bot"), tokens, 2),
        block_hashes(chain_root("default/tiny", secret=b"s"), tokens, 2),
        block_hashes(START, tokens, 2, block_extras(4, 2, salt="acme")),
        block_hashes(START, tokens, 2, block_extras(4, 2, images=[("cat", 0, 1)])),
        block_hashes(START, tokens, 2, block_extras(4, 2, images=[("cat", 1, 1)])),
    ]
    assert len({own for chain in chains for own in chain}) == 8 * 4


def test_image_keys_are_on_touched_blocks_and_salt_on_the_first() -> None:
    extras = block_extras(4, 4, salt="acme", images=[("red", 3, 6), ("blue", 9, 2)])
    assert extras == {0: [["red", 3], "acme"], 1: [["red", -1]], 2: [["red", -5], ["blue", 1]]}
    assert hash_with_extras(7, extra_bytes(["acme"])) != hash_with_extras(7, extra_bytes([["acme", 0]])) != 7


@pytest.mark.parametrize(
    ("blocks", "prompt", "cached"), [(3, 100, 96), (3, 97, 96), (3, 96, 64), (3, 1, 0), (0, 96, 0), (9, 64, 32)]
)
def test_last_token_is_never_cached_in_the_gpu(blocks: int, prompt: int, cached: int) -> None:
    assert cached_tokens(blocks, prompt, 32) == cached


@pytest.mark.parametrize(("blocks", "slower", "prompt", "cached"), [
    (20, 46, 1500, 1472), (0, 25, 800, 800), (25, 25, 800, 800), (6, 7, 224, 224), (7, 0, 224, 192), (3, 2, 224, 96),
])  # fmt: skip
def test_slower_tier_loads_the_last_token_too(blocks: int, slower: int, prompt: int, cached: int) -> None:
    """Measured: a real engine with a CPU tier answered so for 225 of 225 prompts."""
    assert cached_tokens(blocks, prompt, 32, slower=slower) == cached


@pytest.mark.parametrize("token", [-1, 2**32, None, "1"])
def test_invalid_token_is_an_error_that_names_the_field(token: object) -> None:
    with pytest.raises(BadInput) as caught:
        token_bytes([1, token])  # type: ignore[list-item]
    assert caught.value.field == "tokens"


def test_engine_hashes_are_reduced_to_64_bits() -> None:
    assert engine_hash(2**64 - 1) == engine_hash(-1) == 2**64 - 1
    assert 0 <= engine_hash(b"\x01" * 32) < 2**64
    assert engine_hash(b"\x01" * 32) != engine_hash(b"\x01" * 31)
